// What clients of OpenAI's API depend on of streams, stop texts and log-probabilities, held against what the engine
// says to the same request. Tests are named after what servers got wrong: the table of infer/server/README.md says
// which report each one is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "infer/unicode.h"
#include "tests/support/server_api.h"

namespace kvloom {
namespace {

using test::Json;
using test::kChat;
using test::kCompletions;
using test::text_of;
using ::testing::HasSubstr;

class ServerStreams : public test::ServerApi {};

// s#3912, s#4550, v#27572, s#8417, v#35705, s#954, v#36379
TEST_F(ServerStreams, AStreamHasOneIdARoleFirstOneFinishAnIndexAndAnEmptyLastDelta) {
  for (const std::string& path : {kChat, kCompletions}) {
    const std::vector<Json> chunks =
        stream(path, {{"prompt", prompt_}, {"n", 3}, {"seed", 1}, {"max_tokens", 9}, {"temperature", 1}});
    std::map<int, int> finishes;
    std::set<int> seen;
    std::set<std::string> ids;
    for (const Json& chunk : chunks) {
      ids.insert(chunk.at("id").get<std::string>());
      EXPECT_FALSE(chunk.contains("usage")) << chunk;
      EXPECT_EQ(chunk.at("object"), path == kChat ? "chat.completion.chunk" : "text_completion");
      ASSERT_EQ(chunk.at("choices").size(), 1U);
      const Json& choice = chunk["choices"][0];
      const int index = choice.at("index").get<int>();
      EXPECT_EQ(finishes[index], 0) << "a chunk after the last one: " << chunk;
      const bool first = seen.insert(index).second;
      if (path == kChat) {
        EXPECT_EQ(choice.at("delta").contains("role"), first) << chunk;
      }
      if (choice.at("finish_reason").is_null()) continue;
      ++finishes[index];
      EXPECT_THAT(choice["finish_reason"].get<std::string>(), ::testing::AnyOf("stop", "length"));
      if (path == kChat) {
        EXPECT_EQ(choice["delta"], Json::object()) << chunk;
      }
      if (path == kCompletions) {
        EXPECT_EQ(choice["text"], "") << chunk;
      }
    }
    EXPECT_EQ(ids.size(), 1U);
    EXPECT_EQ(finishes, (std::map<int, int>{{0, 1}, {1, 1}, {2, 1}}));
  }
}

TEST_F(ServerStreams, UsageOfAStreamIsItsLastChunkWithoutChoices) {
  for (const std::string& path : {kChat, kCompletions}) {
    const Json body = {
        {"prompt", prompt_}, {"max_tokens", 7}, {"temperature", 0}, {"stream_options", {{"include_usage", true}}}};
    const std::vector<Json> chunks = stream(path, body);
    for (std::size_t i = 0; i + 1 < chunks.size(); ++i) {
      EXPECT_TRUE(chunks[i].at("usage").is_null());
      EXPECT_EQ(chunks[i].at("choices").size(), 1U);
    }
    EXPECT_EQ(chunks.back().at("choices"), Json::array());
    EXPECT_GT(chunks.back().at("usage").at("prompt_tokens"), 0);
    EXPECT_LE(chunks.back()["usage"]["completion_tokens"], 7);
    Json without = body;
    without["stream_options"] = Json::object();
    for (const Json& chunk : stream(path, without)) EXPECT_FALSE(chunk.contains("usage"));
    without.erase("stream_options");
    Json whole = without;
    EXPECT_EQ(text_of(chunks), path == kChat ? chat(whole)["choices"][0]["message"]["content"]
                                             : completion(whole)["choices"][0]["text"]);
  }
}

// v#3179, v#4795, s#5984, v#10234
TEST_F(ServerStreams, LogProbabilitiesHaveTheLayoutOfTheirEndpoint) {
  Request request = greedy(prompt_, 8);
  request.alternatives = 3;
  const test::Answer wanted = offline_->answer(request);
  const Json answer = completion({{"prompt", prompt_}, {"max_tokens", 8}, {"temperature", 0}, {"logprobs", 3}});
  const Json& layout = answer["choices"][0]["logprobs"];
  ASSERT_EQ(layout["tokens"].size(), wanted.tokens.size() + (wanted.end ? 1U : 0U));
  for (std::size_t i = 0; i < wanted.tokens.size(); ++i) {
    EXPECT_EQ(layout["token_logprobs"][i].get<float>(), wanted.log_probabilities[i]);
    EXPECT_EQ(layout["tokens"][i], shown_token(offline_->tokenizer(), wanted.tokens[i]));
    double best = -1e9;
    for (const auto& [text, value] : layout["top_logprobs"][i].items()) best = std::max(best, value.get<double>());
    EXPECT_EQ(layout["token_logprobs"][i], best) << "greedy, and yet not the likeliest";
  }
  for (const Json& top : {Json(nullptr), Json(0), Json(5)}) {
    Json body = {{"max_tokens", 6}, {"temperature", 0}, {"logprobs", true}};
    if (!top.is_null()) body["top_logprobs"] = top;
    const Json content = chat(body)["choices"][0]["logprobs"]["content"];
    EXPECT_GT(content.size(), 0U);
    for (const Json& entry : content) {
      EXPECT_EQ(entry.at("top_logprobs").size(), top.is_null() ? 0U : top.get<std::size_t>());
      EXPECT_LE(entry.at("logprob"), 0.0);
      std::string bytes;
      for (const Json& byte : entry.at("bytes")) bytes += static_cast<char>(byte.get<int>());
      if (entry.at("token").get<std::string>().rfind("bytes:", 0) != 0) {
        EXPECT_EQ(entry["token"], bytes);
      }
    }
  }
  const Json zero = completion({{"prompt", prompt_}, {"max_tokens", 2}, {"logprobs", 0}});
  EXPECT_EQ(zero["choices"][0]["logprobs"]["top_logprobs"][0].size(), 1U) << "logprobs 0 is not off";
  EXPECT_TRUE(chat({{"max_tokens", 2}})["choices"][0]["logprobs"].is_null());
}

TEST_F(ServerStreams, ImpossibleTokensHaveAFiniteLogProbability) {
  Json bias = Json::object();
  for (int id = 0; id < 264; ++id) bias[std::to_string(id)] = id == 65 ? 100 : -100;
  const Json answer = completion({{"prompt", prompt_}, {"logit_bias", bias}, {"max_tokens", 3}, {"logprobs", 5}});
  EXPECT_EQ(answer["choices"][0]["text"], "AAA");
  for (const Json& value : answer["choices"][0]["logprobs"]["token_logprobs"]) EXPECT_TRUE(value.is_number());
}

// l#27174, v#47815, v#6521, and what lm-evaluation-harness reads
TEST_F(ServerStreams, EchoScoresThePromptFromItsSecondTokenAndPlacesItsTokens) {
  const std::string text = "ab é ab的 end";
  const auto ids = offline_->encode(text);
  Request request = greedy(text, 1);
  request.alternatives = 1;
  request.prompt_scores = PromptScores{1, 1};
  const test::Answer wanted = offline_->answer(request);
  for (const std::int64_t max_tokens : {1, 0}) {
    for (const bool streamed : {false, true}) {
      const Json body = {
          {"prompt", {ids}}, {"echo", true}, {"max_tokens", max_tokens}, {"logprobs", 1}, {"temperature", 0}};
      Json choice;
      if (streamed) {
        for (const Json& chunk : stream(kCompletions, body)) {
          const Json& part = chunk["choices"][0];
          if (choice.is_null()) {
            choice = part;
            continue;
          }
          choice["text"] = choice["text"].get<std::string>() + part["text"].get<std::string>();
          if (part["logprobs"].is_null()) continue;
          for (const auto& [name, list] : part["logprobs"].items()) {
            for (const Json& value : list) choice["logprobs"][name].push_back(value);
          }
        }
      } else {
        choice = completion(body)["choices"][0];
      }
      const Json& layout = choice["logprobs"];
      const std::size_t count = ids.size() + static_cast<std::size_t>(max_tokens);
      ASSERT_EQ(layout["tokens"].size(), count) << "one token always comes, even an end";
      EXPECT_TRUE(layout["token_logprobs"][0].is_null());
      EXPECT_TRUE(layout["top_logprobs"][0].is_null());
      EXPECT_TRUE(choice["text"].get<std::string>().starts_with(text));
      for (std::size_t i = 1; i < ids.size(); ++i) {
        EXPECT_EQ(layout["token_logprobs"][i].get<float>(), wanted.prompt_scores[i - 1].log_probability) << i;
        double best = -1e9;
        for (const auto& [name, value] : layout["top_logprobs"][i].items()) best = std::max(best, value.get<double>());
        const bool greedy = wanted.prompt_scores[i - 1].top.front().first == ids[i];
        EXPECT_EQ(layout["token_logprobs"][i] == best, greedy) << i;
      }
      std::int64_t characters = 0;
      for (std::size_t i = 0; i < ids.size(); ++i) {
        const std::string bytes = offline_->tokenizer().bytes_of(ids[i]);
        const bool inside = (static_cast<unsigned char>(bytes[0]) & 0xC0U) == 0x80U;
        EXPECT_EQ(layout["text_offset"][i], characters - (inside ? 1 : 0)) << i;
        for (const char c : bytes) characters += (static_cast<unsigned char>(c) & 0xC0U) != 0x80U ? 1 : 0;
      }
      if (max_tokens == 1) {
        EXPECT_EQ(layout["text_offset"][ids.size()], characters);
      }
    }
  }
}

TEST_F(ServerStreams, NothingToGenerateIsAnAnswer) {
  const Json plain = completion({{"prompt", prompt_}, {"max_tokens", 0}});
  EXPECT_EQ(plain["choices"][0]["text"], "");
  EXPECT_EQ(plain["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(plain["usage"]["completion_tokens"], 0);
  const Json echoed = completion({{"prompt", "x"}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 1}, {"n", 2}});
  EXPECT_EQ(echoed["choices"][1]["text"], "x");
  EXPECT_TRUE(echoed["choices"][1]["logprobs"]["token_logprobs"][0].is_null());
  EXPECT_EQ(text_of(stream(kCompletions, {{"prompt", "x"}, {"max_tokens", 0}, {"echo", true}})), "x");
}

// v#3672, s#11462, v#31135
std::vector<std::size_t> places_of_stops(const std::string& text) {
  std::vector<std::size_t> places;
  for (std::size_t at = 2; at + 3 < text.size(); at += 5) {
    if (is_well_formed(text.substr(at, 3)) && is_well_formed(text.substr(0, at))) places.push_back(at);
  }
  return places;
}

TEST_F(ServerStreams, AStopTextNeverShowsAndTokensLeaveWithTheirText) {
  // Random weights may end a text at once, or say no characters: a prompt that they answer with texts to stop at. Those
  // go over token borders, from any place of whole characters.
  std::string prompt = prompt_;
  test::Answer whole;
  std::vector<std::size_t> places;
  for (; places.size() < 2 && prompt.size() < 100; prompt += 'a') {
    whole = offline_->answer(greedy(prompt, 40));
    places = places_of_stops(offline_->text(whole.tokens));
  }
  prompt.pop_back();
  ASSERT_GE(places.size(), 2U);
  const std::string text = offline_->text(whole.tokens);
  for (const std::size_t at : places) {
    const std::string stop = text.substr(at, 3);
    const std::string wanted = text.substr(0, text.find(stop));
    const Json body = {
        {"prompt", prompt}, {"max_tokens", 40}, {"temperature", 0}, {"stop", {stop, "never this"}}, {"logprobs", 0}};
    const Json answer = completion(body);
    EXPECT_EQ(answer["choices"][0]["text"], wanted);
    EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
    const std::vector<Json> chunks = stream(kCompletions, body);
    EXPECT_EQ(text_of(chunks), wanted);
    std::string shown;
    std::size_t scores = 0;
    for (const Json& chunk : chunks) {
      shown += chunk["choices"][0]["text"].get<std::string>();
      EXPECT_EQ(shown.find(stop), std::string::npos);
      if (!chunk["choices"][0]["logprobs"].is_null()) scores += chunk["choices"][0]["logprobs"]["tokens"].size();
    }
    EXPECT_EQ(scores, answer["choices"][0]["logprobs"]["tokens"].size());
    const std::vector<std::int32_t> left(whole.tokens.begin(),
                                         whole.tokens.begin() + static_cast<std::ptrdiff_t>(scores));
    EXPECT_TRUE(offline_->text(left).starts_with(wanted)) << "text without its tokens";
  }
  EXPECT_EQ(
      completion({{"prompt", prompt}, {"stop", nullptr}, {"temperature", 0}, {"max_tokens", 40}})["choices"][0]["text"],
      text);
}

// l#9195, l#11738, l#14937
TEST_F(ServerStreams, SplitCharactersComeWholeAndBrokenOnesAsReplacement) {
  // Bytes, one a token: of a character, and of one that lacks its end.
  for (const auto& [ids, wanted] :
       std::vector<std::pair<std::vector<int>, std::string>>{{{0xC3, 0xA9}, "é"}, {{0xC3}, "\xef\xbf\xbd"}}) {
    const Json answer = server_->answer("/detokenize", {{"tokens", ids}});
    EXPECT_EQ(answer["prompt"], wanted);
  }
  // Random weights say bytes that are no text: every event is UTF-8, and the pieces are the whole.
  for (int seed = 0; seed < 10; ++seed) {
    const Json body = {{"prompt", prompt_}, {"max_tokens", 60}, {"temperature", 2}, {"seed", seed}};
    Request request = greedy(prompt_, 60);
    request.sampling = {.temperature = 2, .seed = static_cast<std::uint64_t>(seed)};
    const std::string wanted = offline_->text(offline_->answer(request).tokens);
    EXPECT_EQ(text_of(stream(kCompletions, body)), wanted);
    EXPECT_EQ(completion(body)["choices"][0]["text"], wanted);
    EXPECT_THAT(wanted, HasSubstr("\xef\xbf\xbd"));
  }
}

}  // namespace
}  // namespace kvloom
