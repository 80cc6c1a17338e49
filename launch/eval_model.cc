#include "launch/eval_model.h"

#include "core/config.h"
#include "core/kv_pages.h"
#include "kernels/error.h"
#include "launch/passes_option.h"

namespace kvloom {

void EvalModelOptions::add_to(CLI::App& verb) {
  verb.add_option("--checkpoint", checkpoint,
                  "Checkpoint, output directory (its best checkpoint, else the newest) or Hugging Face folder");
  auto* given = verb.add_option("--passes", passes, "Passes of upward-read segments; default: as trained, m + b");
  verb.add_flag("--sequential", sequential, "Token by token, as decoding computes: no passes")->excludes(given);
  verb.add_option("--limit", limit, "At most this many sequences, or items of each task");
  verb.add_option("--precision", precision, "Of hidden states and weights: f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  verb.add_option("--weights", weights,
                  "f32, bf16 or int8 (rounded as they are loaded); default: that of --precision. With --data the loss "
                  "without rounding is measured as well");
  verb.add_option("--kv-dtype", kv_dtype, "K and V are kept in f32, bf16 or int8; default: that of --precision");
  device.add_to(verb);
  verb.add_flag("--json", json, "Print JSON");
}

void EvalModelOptions::check() const {
  if (limit.value_or(1) < 1) reject_input("--limit: {} sequences; right is 1 or more", *limit);
  inference_format(precision, weights);
  parse_kv_format(kv_name());
}

bool EvalModelOptions::rounds() const {
  const auto bytes = [](KvFormat format) { return kv_row_bytes(format, 1, 64); };
  return weights_name() == "int8" || bytes(parse_kv_format(kv_name())) < bytes(parse_kv_format(precision));
}

EvalModelOptions EvalModelOptions::unrounded() const {
  EvalModelOptions options = *this;
  options.weights.clear();
  options.kv_dtype.clear();
  return options;
}

ScoringOptions EvalModelOptions::scoring(const proto::Manifest& manifest) const {
  return {.form = sequential ? ScoringForm::kSequential : ScoringForm::kParallel,
          .passes = passes_for(passes, passes_of(manifest.passes()))};
}

EvalModel::EvalModel(const EvalModelOptions& options, Allocator& allocator) {
  if (allocator.device().kind == Device::Kind::kCpu) {
    held_ = load_inference_model(options.checkpoint, inference_format(options.precision, options.weights), allocator);
    scorer_ = make_scorer(*held_.model, parse_kv_format(options.kv_name()));
    return;
  }
  if (!options.weights.empty() || !options.kv_dtype.empty()) {
    reject_input("--{}: a GPU holds weights and K/V as --precision computes; right is --device cpu, or without it",
                 options.weights.empty() ? "kv-dtype" : "weights");
  }
  trained_ = load_model(options.checkpoint, options.precision == "bf16" ? DType::kBF16 : DType::kF32, allocator);
  scorer_ = make_scorer(*trained_.model);
}

}  // namespace kvloom
