#include "infer/text/prompt_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "infer/unicode.h"
#include "kernels/error.h"
#include "tests/support/mutate.h"
#include "tests/support/random.h"

namespace kvloom {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::StartsWith;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kVocab = 100;

PromptLine parsed(const std::string& text) { return parse_prompt_line(text, "in.jsonl: line 3", kVocab); }

std::string refusal(const std::string& text) {
  try {
    parsed(text);
  } catch (const InputError& error) {
    return error.what();
  }
  return "not refused";
}

// The refusal of a line with one option beside its prompt.
std::string refused_option(const std::string& option) { return refusal(R"({"prompt": "a", )" + option + "}"); }

TEST(PromptLine, APromptIsATextIdsOrMessages) {
  EXPECT_EQ(std::get<std::string>(parsed(R"({"prompt": "Grüße\n"})").prompt), "Grüße\n");
  EXPECT_EQ(std::get<std::string>(parsed(R"({"prompt": ""})").prompt), "");
  EXPECT_THAT(std::get<TokenIds>(parsed(R"({"tokens": [0, 99], "prompt": null})").prompt), ElementsAre(0, 99));
  const PromptLine chat = parsed(R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]})");
  const auto& messages = std::get<std::vector<ChatMessage>>(chat.prompt);
  ASSERT_EQ(messages.size(), 1);
  EXPECT_EQ(messages[0].role, "user");
  EXPECT_EQ(messages[0].content, "a");
}

TEST(PromptLine, OptionsAreRead) {
  const PromptOptions all =
      parsed(R"({"prompt": "a", "max_new_tokens": 7, "temperature": 0.5, "top_k": -1, "top_p": 0.9,
      "min_p": 0, "repetition_penalty": 1.5, "presence_penalty": -2, "frequency_penalty": 2,
      "logit_bias": {"3": -100, "5": 1.5}, "seed": 18446744073709551615, "n": 2, "stop": ["x", "yz"],
      "ignore_eos": true, "logprobs": 0, "prompt_logprobs": 20})")
          .options;
  EXPECT_EQ(all.max_new_tokens, 7);
  EXPECT_EQ(all.temperature, 0.5f);
  EXPECT_EQ(all.top_k, 0);
  EXPECT_EQ(all.top_p, 0.9f);
  EXPECT_EQ(all.min_p, 0.0f);
  EXPECT_EQ(all.repetition_penalty, 1.5f);
  EXPECT_EQ(all.presence_penalty, -2.0f);
  EXPECT_EQ(all.frequency_penalty, 2.0f);
  EXPECT_THAT(all.logit_bias, ElementsAre(Pair(3, -100.0f), Pair(5, 1.5f)));
  EXPECT_EQ(all.seed, std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(all.n, 2);
  EXPECT_THAT(*all.stop, ElementsAre("x", "yz"));
  EXPECT_EQ(all.ignore_eos, true);
  EXPECT_EQ(all.logprobs, 0) << "no alternatives is not the same as no log-probabilities";
  EXPECT_EQ(all.prompt_logprobs, 20);
  EXPECT_THAT(*parsed(R"({"prompt": "a", "stop": "x"})").options.stop, ElementsAre("x"));
}

TEST(PromptLine, WhatALineDoesNotSayIsLeftOpen) {
  for (const char* text :
       {R"({"prompt": "a"})", R"({"prompt": "a", "stop": null, "seed": null, "logprobs": null, "n": null})"}) {
    const PromptOptions open = parsed(text).options;
    EXPECT_FALSE(open.max_new_tokens || open.temperature || open.top_k || open.top_p || open.min_p);
    EXPECT_FALSE(open.repetition_penalty || open.presence_penalty || open.frequency_penalty || open.seed || open.n);
    EXPECT_FALSE(open.stop || open.ignore_eos || open.logprobs || open.prompt_logprobs);
    EXPECT_TRUE(open.logit_bias.empty());
  }
}

TEST(PromptLine, WhatIsWrongIsSaidWithItsFieldAndWhatWouldBeRight) {
  EXPECT_THAT(refusal("{"), StartsWith("in.jsonl: line 3"));
  EXPECT_THAT(refusal("[1]"), StartsWith("in.jsonl: line 3"));
  EXPECT_EQ(refusal("{}"), "in.jsonl: line 3: right is one of 'prompt', 'tokens' and 'messages'");
  EXPECT_THAT(refusal(R"({"prompt": "a", "tokens": [1]})"), HasSubstr("right is one of"));
  EXPECT_EQ(refusal(R"({"prompt": 5})"), "in.jsonl: line 3: 'prompt' is 5; right is a text");
  EXPECT_EQ(refusal(R"({"tokens": []})"), "in.jsonl: line 3: 'tokens' is an array; right is a list of one id or more");
  EXPECT_EQ(refusal(R"({"tokens": [1, 100]})"), "in.jsonl: line 3: 'tokens[1]' is 100; right is an id of 0 to 99");
  EXPECT_THAT(refusal(R"({"tokens": [1.5]})"), HasSubstr("'tokens[0]' is 1.5"));
  EXPECT_EQ(refusal(R"({"messages": [{"role": "user"}]})"),
            "in.jsonl: line 3: messages[0]: has no 'content'; right is a text, or a list of parts with texts");
  EXPECT_EQ(refused_option(R"("top_p": 0)"), "in.jsonl: line 3: 'top_p' is 0; right is a number above 0 up to 1");
  EXPECT_EQ(refused_option(R"("temperature": -1)"),
            "in.jsonl: line 3: 'temperature' is -1; right is a number from 0 up to 1000000");
  const std::string unknown = refused_option(R"("max_tokens": 5)");
  EXPECT_TRUE(unknown.starts_with("in.jsonl: line 3: 'max_tokens' is no field of a prompt; right are ")) << unknown;
  EXPECT_NE(unknown.find(", max_new_tokens, "), std::string::npos) << unknown;
  EXPECT_EQ(refused_option(R"("logit_bias": {"100": 1})"),
            "in.jsonl: line 3: 'logit_bias' has the key '100'; right are ids of 0 to 99, each once");
}

TEST(PromptLine, EveryOptionHasItsBounds) {
  for (const char* option : {R"("max_new_tokens": -1)",
                             R"("max_new_tokens": 1.5)",
                             R"("max_new_tokens": "7")",
                             R"("max_new_tokens": 1e10)",
                             R"("temperature": "1")",
                             R"("temperature": 1e300)",
                             R"("top_k": -2)",
                             R"("top_k": 18446744073709551615)",
                             R"("top_p": 1.1)",
                             R"("top_p": true)",
                             R"("min_p": -0.1)",
                             R"("min_p": 1.1)",
                             R"("repetition_penalty": 0)",
                             R"("repetition_penalty": 101)",
                             R"("presence_penalty": 2.1)",
                             R"("frequency_penalty": -2.1)",
                             R"("logit_bias": [1])",
                             R"("logit_bias": {"a": 1})",
                             R"("logit_bias": {"1": 101})",
                             R"("logit_bias": {"1": 1, "01": 1})",
                             R"("logit_bias": {"-1": 1})",
                             R"("seed": -1)",
                             R"("seed": 1.5)",
                             R"("seed": 18446744073709551616)",
                             R"("n": 0)",
                             R"("n": 1025)",
                             R"("stop": "")",
                             R"("stop": [""])",
                             R"("stop": [1])",
                             R"("stop": 5)",
                             R"("ignore_eos": 1)",
                             R"("logprobs": 21)",
                             R"("logprobs": true)",
                             R"("prompt_logprobs": -1)"}) {
    EXPECT_THAT(refused_option(option), StartsWith("in.jsonl: line 3: '")) << option;
  }
  std::string many = R"("stop": [")";
  for (int i = 0; i < 64; ++i) many += R"(a", ")";
  EXPECT_THAT(refused_option(many + "b\"]"), HasSubstr("'stop' has 65 texts; right are 64 at most"));
}

TEST(ResultLine, OneAnswerStandsInTheLine) {
  const ResultLine result{.index = 4,
                          .prompt_tokens = 3,
                          .passes_per_token = 1.5,
                          .answers = {{.text = "é\n", .tokens = {1, 2}, .finish_reason = AnswerEnd::kLength}}};
  EXPECT_EQ(one_line_of(result_json(result)),
            "{\"index\":4,\"text\":\"é\\n\",\"tokens\":[1,2],\"finish_reason\":\"length\",\"prompt_tokens\":3,"
            "\"passes_per_token\":1.5}");
}

TEST(ResultLine, SeveralAnswersAreChoices) {
  ResultLine result{.index = 0, .answers = {{.text = "a"}, {.text = "b", .finish_reason = AnswerEnd::kLength}}};
  result.answers[0].logprobs = {{{.token = 1, .logprob = -0.5, .top = {{2, -0.25}}}}};
  result.prompt_logprobs = {{{.token = 7, .logprob = std::nullopt}, {.token = 8, .logprob = -1.0}}};
  const Json json = Json::parse(one_line_of(result_json(result)));
  EXPECT_FALSE(json.contains("text"));
  EXPECT_EQ(json["choices"].size(), 2);
  EXPECT_EQ(json["choices"][0]["logprobs"],
            Json::parse(R"([{"token": 1, "logprob": -0.5, "top": [{"token": 2, "logprob": -0.25}]}])"));
  EXPECT_FALSE(json["choices"][1].contains("logprobs"));
  EXPECT_EQ(json["choices"][1]["finish_reason"], "length");
  EXPECT_TRUE(json["prompt_logprobs"][0]["logprob"].is_null());
  EXPECT_EQ(json["prompt_logprobs"][1]["logprob"], -1.0);
}

TEST(ResultLine, NumbersAreFiniteAndTextIsUtf8) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  ResultLine result{.passes_per_token = kInfinity, .answers = {{.text = "a\xff\nb\xc3"}}};
  result.answers[0].logprobs = {{{.token = 1, .logprob = -kInfinity, .top = {{1, NAN}, {2, -1e30}, {3, -9998.5}}}}};
  const std::string line = one_line_of(result_json(result));
  EXPECT_TRUE(is_well_formed(line));
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const Json json = Json::parse(line);
  EXPECT_EQ(json["text"], "a\xef\xbf\xbd\nb\xef\xbf\xbd");
  EXPECT_EQ(json["logprobs"][0]["logprob"], -9999.0);
  EXPECT_EQ(json["logprobs"][0]["top"][0]["logprob"], -9999.0);
  EXPECT_EQ(json["logprobs"][0]["top"][1]["logprob"], -9999.0);
  EXPECT_EQ(json["logprobs"][0]["top"][2]["logprob"], -9998.5);
  EXPECT_EQ(json["passes_per_token"], 0.0);
}

TEST(ResultLine, AnErrorIsALineTooAndWholeLinesAreKnown) {
  const std::string error = one_line_of(error_json(7, "line 8: \"x\" \xff"));
  EXPECT_EQ(Json::parse(error)["finish_reason"], "error");
  EXPECT_EQ(Json::parse(error)["message"], "line 8: \"x\" \xef\xbf\xbd");
  EXPECT_EQ(index_of_result_line(error), 7);
  const std::string whole = one_line_of(result_json({.index = 12, .answers = {{.text = "abc"}}}));
  EXPECT_EQ(index_of_result_line(whole), 12);
  for (std::size_t cut = 0; cut < whole.size(); ++cut)
    EXPECT_EQ(index_of_result_line(whole.substr(0, cut)), std::nullopt);
  EXPECT_EQ(index_of_result_line(R"({"index": -1})"), std::nullopt);
  EXPECT_EQ(index_of_result_line(R"({"index": "1"})"), std::nullopt);
}

TEST(PromptLine, DamagedLinesAreReadOrRefusedInOneLine) {
  test::Random random;
  const std::string good =
      R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "stop": ["x"],
      "logit_bias": {"3": -100}, "top_p": 0.5, "n": 2, "seed": 1})";
  for (int round = 0; round < 3000; ++round) {
    const std::string said = refusal(test::mutated(good, random));
    ASSERT_TRUE(said == "not refused" || said.starts_with("in.jsonl: line 3")) << said;
    ASSERT_EQ(said.find('\n'), std::string::npos);
  }
}

}  // namespace
}  // namespace kvloom
