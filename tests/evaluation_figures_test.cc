// What `kvloom eval` says of a token file: figures that follow from one another.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "data/token_file.h"
#include "tests/support/random.h"
#include "tests/support/tiny_run.h"

namespace kvloom {
namespace {

// Bits a byte times bytes times ln 2 are the nats, whichever part is measured: text is as dense in one as in another
// only by chance.
TEST(EvaluationFigures, BitsAByteAreOfThePartThatIsMeasured) {
  test::Random random;
  const test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=1", "--set", "train.evaluate_every=0"}).status, 0);
  struct Measured {
    Part part;
    const char* name;
    std::vector<std::int32_t> tokens;
  };
  // Of a byte tokenizer: every id is a byte, but for the separator, which is none. So parts have other bytes a token.
  std::vector<Measured> parts = {{Part::kTraining, "training", random.tokens(200, 257)},
                                 {Part::kValidation, "validation", random.tokens(90, 256)}};
  for (std::size_t i = 0; i < parts[0].tokens.size(); i += 2) parts[0].tokens[i] = 256;
  TokenFileWriter writer(run / "dense.h5", {.vocab = 257, .tokenizer_kind = "bytes", .created_by = "test"});
  for (const Measured& part : parts) {
    writer.begin_document(part.part);
    writer.append(part.part, part.tokens, part.tokens.size());
  }
  writer.finish();
  for (const Measured& part : parts) {
    const test::ProcessResult result =
        run.kvloom({"eval", "--checkpoint", "out", "--data", "dense.h5", "--part", part.name, "--json"});
    ASSERT_EQ(result.status, 0) << result.error;
    const auto figures = nlohmann::json::parse(result.output);
    const double loss = figures["loss"];
    const auto targets = static_cast<double>(part.tokens.size() - 1);
    EXPECT_EQ(figures["tokens"], part.tokens.size() - 1);
    const auto bytes = static_cast<double>(
        std::count_if(part.tokens.begin() + 1, part.tokens.end(), [](std::int32_t id) { return id < 256; }));
    EXPECT_NEAR(figures["bits_per_byte"].get<double>() * bytes * std::log(2.0), loss * targets, 1e-6 * loss * targets)
        << part.name;
    EXPECT_NEAR(figures["perplexity"].get<double>(), std::exp(loss), 1e-6 * std::exp(loss));
  }
}

}  // namespace
}  // namespace kvloom
