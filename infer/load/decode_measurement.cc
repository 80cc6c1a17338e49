#include "infer/load/decode_measurement.h"

#include <memory>

#include "core/config.h"
#include "core/kv_pages.h"

namespace kvloom {
namespace {

// The first step loads kernels and makes plans, the second one is recorded as a graph.
constexpr int kUntimedSteps = 2;

}  // namespace

DType dtype_of(const DecodeMeasurementRequest& request) {
  return request.precision == proto::TrainConfig::BF16 ? DType::kBF16 : DType::kF32;
}

ModelConfig config_of(const DecodeMeasurementRequest& request, const std::string& map) {
  proto::ModelConfig message = request.model;
  message.set_kv_map(map);
  message.set_context(static_cast<std::uint32_t>(request.prompt + kUntimedSteps + request.steps));
  return ModelConfig::from_proto(message);
}

DecodeMeasurement measure_decode(const DecodeMeasurementRequest& request, const Model& model, const std::string& map,
                                 std::int64_t sequences) {
  const ModelConfig& config = model.config();
  Allocator& allocator = model.allocator();
  const std::int64_t prompt_tokens = sequences * request.prompt;
  DecodeMeasurement result{.map = map, .sequences = sequences};
  result.step = decode_cost(config, model.dtype(), sequences, request.prompt + kUntimedSteps, request.steps);
  result.prompt_tokens = static_cast<double>(prompt_tokens);
  result.cache_bytes = static_cast<double>(sequences * kv_bytes(config, kv_format_of(model.dtype()), request.prompt));
  // One bound, and so one graph, for all steps.
  Decoder decoder(model, sequences, config.context, {.launch = request.launch, .first_bound = config.context});
  const auto prompts =
      Tensor::of<std::int32_t>(allocator, {prompt_tokens}, random_tokens(prompt_tokens, config.vocab, 1));
  Tensor next = decoder.tokens();
  next.assign<std::int32_t>(random_tokens(sequences, config.vocab, 2));
  const PrefillOptions prefilling{.passes = {.without_gradient = request.passes, .with_gradient = 0}, .tolerance = 0};
  for (int repetition = 0; repetition < request.repetitions; ++repetition) {
    decoder.clear();
    const double prefill = seconds_of(allocator, [&] { decoder.prefill(prompts, prefilling); });
    for (int step = 0; step < kUntimedSteps; ++step) decoder.step(next);
    const double steps = seconds_of(allocator, [&] {
      for (int step = 0; step < request.steps; ++step) decoder.step(next);
    });
    result.prefill_seconds = std::min(result.prefill_seconds, prefill);
    result.step_seconds = std::min(result.step_seconds, steps / request.steps);
  }
  result.prefill_passes = decoder.prefill_passes();
  return result;
}

DecodeCeilings measured_decode_ceilings(const DecodeMeasurementRequest& request, const ModelConfig& config) {
  constexpr std::int64_t kRows = 4096;
  const std::unique_ptr<Allocator> allocator = make_allocator(request.device, request.gpu);
  return {measured_memory_rates(*allocator), measured_product_rate(config, kRows, dtype_of(request), *allocator)};
}

}  // namespace kvloom
