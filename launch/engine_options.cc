#include "launch/engine_options.h"

#include "core/device_choice.h"
#include "core/kv_pages.h"
#include "core/quantity_text.h"
#include "kernels/error.h"
#include "launch/at_least.h"

namespace kvloom {
namespace {

constexpr const char* kGroup = "Engine";

std::string on_or_off(bool on) { return on ? "on" : "off"; }

}  // namespace

EngineOptionSet::EngineOptionSet(EngineOptions defaults)
    : options_(defaults),
      prefix_cache_(on_or_off(defaults.prefix_cache)),
      reuse_generated_(on_or_off(defaults.reuse_generated)) {}

void EngineOptionSet::add_to(CLI::App& verb) {
  verb_ = &verb;
  const auto add = [&](const char* name, auto& value, const char* help) {
    return verb.add_option(name, value, help)->group(kGroup);
  };
  const auto add_number = [&](const char* name, auto& value, std::int64_t least, const char* help) {
    add(name, value, help)->check(at_least(least))->capture_default_str();
  };
  const auto add_switch = [&](const char* name, std::string& value, const char* help) {
    add(name, value, help)->check(CLI::IsMember({"on", "off"}))->capture_default_str();
  };
  add("--precision", precision_, "Of hidden states and weights: f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  add("--weights", weights_, "f32, bf16 or int8 (rounded as they are loaded); default: that of --precision");
  add("--kv-dtype", kv_dtype_, "K and V are kept in f32, bf16 or int8; default: that of --precision");
  add("--kv-memory", kv_memory_,
      "For K and V, such as 4GiB; default: what --max-sequences of --context tokens take, 1GiB at most");
  add("--swap-memory", swap_memory_,
      "Of the host, for K and V of texts that had to give way; default 0: they are computed again");
  add_number("--max-sequences", options_.max_sequences, 1, "Texts that are computed at one time");
  add_number("--context", options_.context, 0, "Tokens of a text, with its prompt, at most; 0: as the model has it");
  add_number("--page-size", options_.page_size, 16, "Positions of a page of K and V; a power of two");
  add_number("--max-chunk", options_.max_chunk, 1, "Tokens of one prompt in one step");
  add_number("--wavefront", options_.window, 1,
             "Where layers read K/V from above: tokens of a prompt that are iterated together");
  add_number("--grid", options_.grid, 1,
             "Prompts are worked on in blocks of so many tokens, and beginnings that prompts share are found by them");
  add("--tolerance", options_.tolerance, "A token has settled when its K/V change less than this; 0: when no bit does")
      ->capture_default_str();
  add_number("--prefill-passes", options_.prefill_passes, 0,
             "A token settles after so many passes at the latest, and the result says so; 0: when it has settled");
  add_switch("--prefix-cache", prefix_cache_, "Prompts that begin alike share the K and V of that: on or off");
  add_switch("--reuse-generated", reuse_generated_,
             "Prompts that go on with a generated text share its K and V too; where layers read from above these are "
             "exact, and so differ from a prompt's by up to --tolerance: on or off");
}

InferenceFormat EngineOptionSet::format() const { return inference_format(precision_, weights_); }

EngineOptions EngineOptionSet::options() const {
  EngineOptions options = options_;
  options.kv_format = parse_kv_format(kv_dtype_.empty() ? precision_ : kv_dtype_);
  if (!kv_memory_.empty()) options.kv_bytes = parse_bytes(kv_memory_, "--kv-memory");
  if (!swap_memory_.empty()) options.swap_bytes = parse_bytes(swap_memory_, "--swap-memory");
  options.prefix_cache = prefix_cache_ == "on";
  options.reuse_generated = reuse_generated_ == "on";
  if (!(options.tolerance >= 0)) reject_input("--tolerance: {}; right is 0 or more", options.tolerance);
  return options;
}

bool EngineOptionSet::was_given(const std::string& name) const {
  return verb_ != nullptr && verb_->count("--" + name) > 0;
}

void require_cpu(const std::string& device) {
  if (parse_device(device).kind == Device::Kind::kCpu) return;
  reject_input("--device: {}; the engine runs on CPUs so far: right is cpu", device);
}

}  // namespace kvloom
