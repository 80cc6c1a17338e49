#include "train/evaluation_dump.h"

#include <algorithm>

#include <google/protobuf/text_format.h>

#include "kernels/error.h"

namespace kvloom {
namespace {

void describe(const hdf5::File& file, const Model& model, const EvaluationOrigin& origin) {
  const ModelConfig& config = model.config();
  std::string text;
  google::protobuf::TextFormat::PrintToString(config.to_proto(), &text);
  hdf5::write_attribute(file, "created_by", origin.created_by);
  hdf5::write_attribute(file, "model", text);
  hdf5::write_attribute(file, "map", config.kv_map.explicit_form());
  hdf5::write_attribute(file, "dtype", std::string(name_of(model.dtype())));
  hdf5::write_attribute(file, "m", std::int64_t{origin.gradient_passes.without_gradient});
  hdf5::write_attribute(file, "b", std::int64_t{origin.gradient_passes.with_gradient});
  hdf5::write_attribute(file, "counted_targets", origin.counted_targets);
  hdf5::write_attribute(file, "step", static_cast<std::int64_t>(origin.step));
  hdf5::write_attribute(file, "part", origin.part);
  hdf5::write_attribute(file, "data", origin.data);
}

void describe_form(const hdf5::File& file, EvaluationForm form, int passes) {
  const bool parallel = form == EvaluationForm::kParallel;
  hdf5::write_attribute(file, "form", std::string(parallel ? "parallel" : "sequential"));
  hdf5::write_attribute(file, "passes", std::int64_t{parallel ? passes : 0});
}

void create_tokens(const hdf5::File& file, std::int64_t sequences, std::int64_t positions) {
  for (const char* name : {"tokens", "targets"}) {
    hdf5::create_dataset(file, name, {sequences, positions}, DType::kI32);
  }
}

void write_tokens(const hdf5::File& file, const EvaluationWindow& sequence) {
  const Rectangle row{{sequence.index, 0}, {1, static_cast<std::int64_t>(sequence.tokens.size())}};
  hdf5::write_rectangle(file, "tokens", row, DType::kI32, sequence.tokens.data());
  hdf5::write_rectangle(file, "targets", row, DType::kI32, sequence.targets.data());
}

Passes gradient_passes(const EvaluationOrigin& origin) {
  if (origin.form != EvaluationForm::kParallel) {
    reject_input("gradients go through passes; a token-by-token evaluation has none");
  }
  return origin.gradient_passes;
}

}  // namespace

LogitsDump::LogitsDump(const std::filesystem::path& path, const Model& model, const EvaluationOrigin& origin)
    : file_(path), shape_({origin.sequences, model.config().context, model.config().vocab}) {
  describe(file_.file(), model, origin);
  describe_form(file_.file(), origin.form, origin.passes);
  create_tokens(file_.file(), shape_[0], shape_[1]);
  hdf5::create_dataset(file_.file(), "logits", shape_, DType::kF32);
}

void LogitsDump::add_tokens(const EvaluationWindow& sequence) { write_tokens(file_.file(), sequence); }

LogitsSink LogitsDump::sink_of(const EvaluationWindow& sequence) {
  return [this, index = sequence.index](std::int64_t first, const Tensor& logits) {
    const std::vector<float> values = logits.values<float>();
    hdf5::write_rectangle(file_.file(), "logits", {{index, first, 0}, {1, logits.size(0), shape_[2]}}, DType::kF32,
                          values.data());
  };
}

void LogitsDump::finish(double mean_loss) {
  hdf5::write_attribute(file_.file(), "mean_loss", mean_loss);
  file_.commit();
}

GradientDump::GradientDump(const std::filesystem::path& path, const Model& model, const EvaluationOrigin& origin)
    : model_(model),
      counted_targets_(origin.counted_targets),
      pass_(model, gradient_passes(origin), model.config().context, Recompute::kNone),
      file_(path),
      gradients_(model) {
  describe(file_.file(), model, origin);
  const bool iterated = std::ranges::any_of(segments_of(model.config().kv_map), &Segment::iterated);
  describe_form(file_.file(), EvaluationForm::kParallel,
                iterated ? origin.gradient_passes.without_gradient + origin.gradient_passes.with_gradient : 1);
  create_tokens(file_.file(), origin.sequences, model.config().context);
}

void GradientDump::add(const EvaluationWindow& sequence) {
  write_tokens(file_.file(), sequence);
  const TokenBatch batch = make_token_batch(model_, sequence.tokens, sequence.targets, 1);
  nats_ += pass_.run(batch, static_cast<float>(1.0 / static_cast<double>(counted_targets_)), gradients_);
}

void GradientDump::finish() {
  hdf5::write_attribute(file_.file(), "mean_loss", nats_ / static_cast<double>(counted_targets_));
  for (const Parameter& parameter : model_.layout().all()) {
    const std::vector<float> values = gradients_.flat.view(parameter.offset, parameter.shape).values<float>();
    hdf5::write_dataset(file_.file(), parameter.name, parameter.shape, DType::kF32, values.data());
  }
  file_.commit();
}

EvaluationDumps::EvaluationDumps(const Paths& paths, const Model& model, const EvaluationOrigin& origin,
                                 const Passes& passes)
    : model_(model), form_(origin.form), passes_(passes) {
  if (!paths.logits.empty()) logits_.emplace(paths.logits, model, origin);
  if (!paths.gradients.empty()) gradients_.emplace(paths.gradients, model, origin);
}

double EvaluationDumps::add(const EvaluationWindow& window) {
  LogitsSink sink;
  if (logits_) {
    logits_->add_tokens(window);
    sink = logits_->sink_of(window);
  }
  const TokenBatch batch = make_token_batch(model_, window.tokens, window.targets, 1);
  const Tensor losses = form_ == EvaluationForm::kSequential ? sequential_losses(model_, batch, sink)
                                                             : parallel_losses(model_, passes_, batch, sink);
  if (gradients_) gradients_->add(window);
  return sum_of_losses(losses);
}

void EvaluationDumps::finish(double mean_loss) {
  if (logits_) logits_->finish(mean_loss);
  if (gradients_) gradients_->finish();
}

}  // namespace kvloom
