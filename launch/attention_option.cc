#include "launch/attention_option.h"

#include <fmt/format.h>

#include <cstdio>

namespace kvloom {

void add_attention(CLI::App& verb, std::string& attention) {
  verb.add_option("--attention", attention,
                  "On a GPU: cudnn (fused kernels where they take the shape), kvloom (its own), auto (its own)")
      ->check(CLI::IsMember({"auto", "cudnn", "kvloom"}))
      ->capture_default_str();
}

AttentionSetting attention_setting(const std::string& attention) {
  return {parse_attention(attention), [](const std::string& words) { fmt::print(stderr, "{}\n", words); }};
}

}  // namespace kvloom
