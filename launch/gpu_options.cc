#include "launch/gpu_options.h"

#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <set>

namespace kvloom {

void GpuOptions::add_to(CLI::App& verb) {
  verb.add_option("--attention", attention,
                  "On a GPU: cudnn (fused kernels where they take the shape), kvloom (its own), auto (its own)")
      ->check(CLI::IsMember({"auto", "cudnn", "kvloom"}))
      ->capture_default_str();
  verb.add_option("--matmul-precision", matmul_precision,
                  "On a GPU, products of f32 operands: f32, or tf32 (tensor cores, operands of 11 bits); bf16 and the "
                  "CPU know no other than their own")
      ->check(CLI::IsMember({"f32", "tf32"}))
      ->capture_default_str();
}

GpuSetting GpuOptions::setting(int rank) const {
  GpuSetting chosen{.attention = parse_attention(attention), .matmul = parse_matmul_precision(matmul_precision)};
  if (rank != 0) return chosen;
  chosen.log = [said = std::make_shared<std::set<std::string>>()](const std::string& words) {
    if (said->insert(words).second) fmt::print(stderr, "{}\n", words);
  };
  return chosen;
}

std::string GpuOptions::unusual() const {
  if (attention != GpuOptions{}.attention) return "--attention " + attention;
  if (matmul_precision != GpuOptions{}.matmul_precision) return "--matmul-precision " + matmul_precision;
  return {};
}

void add_cuda_graphs_option(CLI::App& verb, std::string& cuda_graphs) {
  verb.add_option("--cuda-graphs", cuda_graphs,
                  "On a GPU: on gives a step's work to it in one call, off operation by operation; the same tokens")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
}

}  // namespace kvloom
