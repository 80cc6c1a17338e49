#include "train/step_measurement.h"

#include <algorithm>
#include <memory>

#include "core/config.h"
#include "core/cost.h"
#include "core/measured_rates.h"
#include "core/training_pass.h"
#include "train/optimizer.h"

namespace kvloom {

ModelConfig config_of(const StepMeasurementRequest& request, const std::string& map) {
  proto::ModelConfig message = request.model;
  message.set_kv_map(map);
  return ModelConfig::from_proto(message);
}

DType dtype_of(const StepMeasurementRequest& request) {
  return request.precision == proto::TrainConfig::BF16 ? DType::kBF16 : DType::kF32;
}

StepMeasurement measure_step(const StepMeasurementRequest& request, const std::string& map) {
  const ModelConfig config = config_of(request, map);
  const std::unique_ptr<Allocator> owned = make_allocator(request.device, request.gpu);
  Allocator& allocator = *owned;
  Model model(config, dtype_of(request), allocator);
  model.initialize(1);
  proto::RunConfig run;
  *run.mutable_model() = config.to_proto();
  AdamWOptimizer optimizer(model, {0, model.layout().count()}, parse_run_config("bench", to_text(run), {}).train());
  ModelGradients gradients(model);
  TrainingPass pass(model, request.passes, config.context, Recompute::kNone);
  const std::int64_t count = request.micro_batch * config.context;
  const TokenBatch batch = make_token_batch(model, random_tokens(count, config.vocab, 1),
                                            random_tokens(count, config.vocab, 2), request.micro_batch);
  StepMeasurement result{.map = map};
  for (int step = 0; step <= request.steps; ++step) {
    const double seconds = seconds_of(allocator, [&] {
      gradients.flat.fill_zero();
      pass.run(batch, 1.0f / static_cast<float>(count), gradients);
      optimizer.step(gradients.flat, 1e-4, clip_scale(gradient_norm(gradients.flat), 1.0));
    });
    if (step > 0) result.seconds = result.seconds == 0 ? seconds : std::min(result.seconds, seconds);
  }
  result.tally = pass.tally();
  result.flops =
      static_cast<double>(request.micro_batch) * (plan_flops(config, pass.plan(), config.context).total() +
                                                  head_flops(config, config.context, PlanMode::kTrain).total());
  result.peak_bytes = allocator.statistics().peak_bytes;
  return result;
}

double measured_step_rate(const StepMeasurementRequest& request, const ModelConfig& config) {
  const std::unique_ptr<Allocator> allocator = make_allocator(request.device, request.gpu);
  return measured_product_rate(config, request.micro_batch * config.context, dtype_of(request), *allocator);
}

}  // namespace kvloom
