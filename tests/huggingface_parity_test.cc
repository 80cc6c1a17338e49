// Models of Hugging Face give the logits that `transformers` gives: fixtures/huggingface/make.py made them and the
// numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/convert/model_weights.h"
#include "core/convert/plan_models.h"
#include "core/decoder.h"
#include "core/safetensors.h"
#include "tests/support/fixture_names.h"
#include "tests/support/temporary_folder.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

const fs::path kFixtures = fs::path(KVLOOM_SOURCE_DIR) / "tests/fixtures/huggingface";

struct Expected {
  std::vector<std::int64_t> tokens;
  std::vector<float> logits;
};

Expected expected_of(const std::string& name, DType compute) {
  const SafetensorsFile file(kFixtures / name / "expected.safetensors");
  const SafetensorsEntry& tokens = file.tensor("tokens");
  const SafetensorsEntry& logits = file.tensor(compute == DType::kF32 ? "logits_f32" : "logits_bf16");
  Expected expected;
  expected.tokens.resize(static_cast<std::size_t>(element_count(tokens.shape)));
  std::memcpy(expected.tokens.data(), file.data(tokens).data(), tokens.bytes);
  expected.logits.resize(static_cast<std::size_t>(element_count(logits.shape)));
  cast_elements(file.data(logits).data(), *logits.dtype, reinterpret_cast<std::byte*>(expected.logits.data()),
                DType::kF32, element_count(logits.shape));
  return expected;
}

// transformers stretches dynamic scaling for the length of the prompt, we for the model's context: it has to be of that
// length.
ModelConfig model_for(const ModelConfig& model, std::int64_t positions) {
  ModelConfig longer = model;
  if (model.rope_scaling.kind() != proto::RopeScaling::DYNAMIC || positions <= model.context) return longer;
  longer.rope_scaling.set_original_context(static_cast<std::uint32_t>(model.context));
  longer.context = positions;
  return longer;
}

std::vector<float> logits_of(const ModelSource& source, const std::vector<std::int64_t>& ids, DType compute) {
  const auto positions = static_cast<std::int64_t>(ids.size());
  const ModelConfig config = model_for(source.model, positions);
  const TargetModel target{
      .form = ModelForm::kCheckpoint, .model = config, .passes = source.passes, .family = {}, .dtype = {}};
  PlannedConversion conversion(plan_conversion(source, target), *source.tensors);
  CachingCpuAllocator allocator;
  Model model(config, compute, allocator);
  load_weights(conversion, model);
  Tensor tokens = Tensor::empty(allocator, {positions}, DType::kI32);
  std::ranges::copy(ids, tokens.as<std::int32_t>().begin());
  Decoder decoder(model, 1, positions);
  const Tensor logits = decoder.prefill(tokens, {.passes = source.passes, .tolerance = 0, .asked = positions});
  return {logits.as<float>().begin(), logits.as<float>().end()};
}

// The largest difference, relative to the largest logit.
double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  double difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
    difference = std::max(difference, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return difference / largest;
}

class HuggingFaceParity : public ::testing::TestWithParam<std::string> {};

TEST_P(HuggingFaceParity, LogitsAreThoseOfTransformers) {
  const ModelSource source = open_model_source(kFixtures / GetParam());
  const Expected f32 = expected_of(GetParam(), DType::kF32);
  const Expected bf16 = expected_of(GetParam(), DType::kBF16);
  const double f32_difference = difference(logits_of(source, f32.tokens, DType::kF32), f32.logits);
  const std::vector<float> own_bf16 = logits_of(source, bf16.tokens, DType::kBF16);
  const double bf16_difference = difference(own_bf16, bf16.logits);
  EXPECT_LT(f32_difference, 1e-4);
  EXPECT_LT(bf16_difference, 2e-2);
  RecordProperty("f32", std::to_string(f32_difference));
  if (std::getenv("KVLOOM_TEST_VERBOSE") != nullptr) {
    std::printf("%s f32 %.2e bf16 %.2e, bf16 from f32: ours %.2e, theirs %.2e\n", GetParam().c_str(), f32_difference,
                bf16_difference, difference(own_bf16, f32.logits), difference(bf16.logits, f32.logits));
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, HuggingFaceParity, ::testing::ValuesIn(test::fixture_names(kFixtures)),
                         [](const auto& fixture) {
                           std::string name = fixture.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace kvloom
