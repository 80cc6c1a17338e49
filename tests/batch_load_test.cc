// What `bench serve` measures of a batch.
#include <gtest/gtest.h>

#include "infer/load/load.h"
#include "kernels/error.h"
#include "tests/support/engine_fixture.h"

namespace kvloom {
namespace {

constexpr std::int64_t kContext = 48;
constexpr std::int64_t kPrompt = 32;

BatchResult measured(std::int64_t steps) {
  proto::ModelConfig config = test::small_model(2, "none", 5);
  config.set_context(kContext);
  test::Random random;
  const test::EngineModel built(config, random);
  Engine engine(built.model, {});
  return measure_batch(engine, 1, {.prompt_tokens = kPrompt, .new_tokens = steps}, WholeRun::kNo);
}

TEST(BatchLoad, StepsThatTheContextCutsShortAreNotCountedAsDone) {
  EXPECT_EQ(measured(kContext - kPrompt - 2).decode_steps, kContext - kPrompt - 2);
  EXPECT_THROW(measured(kContext - kPrompt + 1), Error);
}

}  // namespace
}  // namespace kvloom
