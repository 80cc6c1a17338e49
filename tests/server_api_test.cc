// What clients of OpenAI's API depend on, held against what the engine says to the same request. Tests are named after
// what servers got wrong: the table of infer/server/README.md says which report each one is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "infer/unicode.h"
#include "tests/support/server_api.h"

namespace kvloom {
namespace {

using test::Json;
using test::kChat;
using test::kCompletions;
using test::ServerApi;
using test::text_of;
using ::testing::HasSubstr;

TEST_F(ServerApi, ACompletionIsWhatTheEngineSays) {
  const test::Answer wanted = offline_->answer(greedy(prompt_, 30));
  const Json answer = completion({{"model", "small"}, {"prompt", prompt_}, {"max_tokens", 30}, {"temperature", 0}});
  EXPECT_EQ(answer["choices"][0]["text"], offline_->text(wanted.tokens));
  EXPECT_EQ(answer["object"], "text_completion");
  EXPECT_EQ(answer["model"], "small");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], wanted.finish == FinishReason::kStop ? "stop" : "length");
  EXPECT_TRUE(answer["choices"][0]["logprobs"].is_null());
  const auto tokens = std::ssize(wanted.tokens) + (wanted.end ? 1 : 0);
  EXPECT_EQ(answer["usage"]["completion_tokens"], tokens);
  EXPECT_EQ(answer["usage"]["prompt_tokens"], offline_->encode(prompt_).size());
  EXPECT_EQ(answer["usage"]["total_tokens"], tokens + std::ssize(offline_->encode(prompt_)));
  EXPECT_TRUE(answer["usage"]["prompt_tokens_details"]["cached_tokens"].is_number());
}

TEST_F(ServerApi, MaxTokensOfACompletionIs16ByDefault) {
  const Json answer = completion({{"prompt", prompt_}, {"ignore_eos", true}, {"max_tokens", nullptr}, {"seed", 3}});
  EXPECT_LE(answer["usage"]["completion_tokens"], 16);
  if (answer["choices"][0]["finish_reason"] == "length") {
    EXPECT_EQ(answer["usage"]["completion_tokens"], 16);
  }
}

TEST_F(ServerApi, PromptsAreTextsOrIdsOneOrMany) {
  const auto ids = offline_->encode(prompt_);
  const Json text = completion({{"prompt", prompt_}, {"temperature", 0}})["choices"][0]["text"];
  for (const Json& prompt : {Json(ids), Json::array({prompt_}), Json::array({ids})}) {
    EXPECT_EQ(completion({{"prompt", prompt}, {"temperature", 0}})["choices"][0]["text"], text) << prompt;
  }
}

// lmdeploy#4419
TEST_F(ServerApi, ManyTextsOfManyPromptsComeByIndex) {
  const Json body = {{"prompt", {"first", "second"}}, {"n", 3}, {"seed", 5}, {"max_tokens", 12}};
  const Json answer = completion(body);
  ASSERT_EQ(answer["choices"].size(), 6U);
  const std::vector<Json> chunks = stream(kCompletions, body);
  for (std::size_t prompt = 0; prompt < 2; ++prompt) {
    Request request = greedy(body["prompt"][prompt], 12);
    request.sampling = {.temperature = 1, .seed = 5};
    request.n = 3;
    const std::vector<test::Answer> wanted = offline_->answers(request);
    for (std::size_t k = 0; k < 3; ++k) {
      const std::size_t index = prompt * 3 + k;
      EXPECT_EQ(answer["choices"][index]["index"], index);
      EXPECT_EQ(answer["choices"][index]["text"], offline_->text(wanted[k].tokens)) << "prompt " << prompt << ", " << k;
      EXPECT_EQ(text_of(chunks, static_cast<int>(index)), answer["choices"][index]["text"]);
    }
  }
}

// v#12886, v#16529, s#7670, l#19367
TEST_F(ServerApi, BadParametersAreRefusedBeforeTheQueueInNestedForm) {
  const Json good = {{"prompt", prompt_}};
  const auto with = [&](const std::string& field, const Json& value) {
    Json body = good;
    body[field] = value;
    return body;
  };
  const double submitted = server_->metric("kvloom_steps_total");
  for (const auto& [field, value] :
       std::vector<std::pair<std::string, Json>>{{"temperature", -1},
                                                 {"temperature", "hot"},
                                                 {"temperature", 1e300},
                                                 {"top_p", 0},
                                                 {"top_p", 1.5},
                                                 {"min_p", 2},
                                                 {"n", 0},
                                                 {"n", 100000},
                                                 {"n", 1.5},
                                                 {"max_tokens", -1},
                                                 {"max_tokens", "many"},
                                                 {"presence_penalty", 3},
                                                 {"frequency_penalty", -3},
                                                 {"repetition_penalty", 0},
                                                 {"logprobs", 6},
                                                 {"logprobs", -1},
                                                 {"logprobs", true},
                                                 {"stop", 7},
                                                 {"stop", {"a", 7}},
                                                 {"stop", ""},
                                                 {"logit_bias", {1, 2}},
                                                 {"logit_bias", {{"x", 1}}},
                                                 {"logit_bias", {{"1", "x"}}},
                                                 {"logit_bias", {{"1", 200}}},
                                                 {"seed", "x"},
                                                 {"seed", std::numeric_limits<std::uint64_t>::max()},
                                                 {"stream", 1},
                                                 {"best_of", 4},
                                                 {"suffix", "x"},
                                                 {"top_k", -5},
                                                 {"stop_token_ids", {-1}},
                                                 {"prompt", 7},
                                                 {"prompt", Json::array()},
                                                 {"prompt", nullptr},
                                                 {"prompt", {1.5}},
                                                 {"prompt", {{"a", 1}}}}) {
    expect_refused(kCompletions, with(field, value), field, "");
  }
  expect_refused(kCompletions, with("prompt", {1, 2, 100000}), "prompt", "100000");
  expect_refused(kCompletions, with("prompt", {-1}), "prompt", "-1");
  expect_refused(kCompletions, with("logit_bias", {{"5000", 1}}), "logit_bias", "5000");
  expect_refused(kCompletions, with("stream_options", {{"include_usage", true}}), "stream_options", "stream");
  expect_refused(kChat, {{"messages", {{{"role", "user"}, {"content", "x"}}}}, {"top_logprobs", 3}}, "top_logprobs",
                 "logprobs");
  expect_refused(kChat, {{"messages", Json::array()}}, "messages", "");
  expect_refused(kChat, {{"messages", {{{"content", "x"}}}}}, "messages", "role");
  expect_refused(kChat, {{"messages", {{{"role", "user"}, {"content", 7}}}}}, "messages", "");
  expect_refused(kChat, {{"messages", {{{"role", "user"}, {"content", {{{"type", "image_url"}}}}}}}}, "messages",
                 "image_url");
  EXPECT_EQ(server_->metric("kvloom_steps_total"), submitted);
  for (const std::string body :
       {"", "{", "[]", "nonsense", "{\"prompt\": \"\xff\"}", "{\"prompt\": \"\\ud800\"}", "7"}) {
    const test::HttpReply reply = server_->ask("POST", kCompletions, body);
    EXPECT_EQ(reply.status, 400) << body;
    EXPECT_TRUE(reply.json().at("error").is_object());
  }
  EXPECT_EQ(server_->ask("POST", kCompletions, std::string(2000000, '[')).status, 400);
  EXPECT_EQ(completion(good)["object"], "text_completion") << "the engine lives on";
}

TEST_F(ServerApi, WhatIsNotDoneIsRefusedWithTheReasonAndUnknownFieldsAreIgnored) {
  const Json messages = {{{"role", "user"}, {"content", "x"}}};
  expect_refused(kChat, {{"messages", messages}, {"response_format", {{"type", "json_object"}}}}, "response_format",
                 "json_object");
  expect_refused(kChat, {{"messages", messages}, {"tool_choice", "required"}}, "tool_choice", "none");
  const Json tool = {{"type", "function"}, {"function", {{"name", "f"}}}};
  expect_refused(kChat, {{"messages", messages}, {"tools", {tool}}}, "tools", "");
  chat({{"messages", messages}, {"tools", {tool}}, {"tool_choice", "none"}, {"max_tokens", 2}});
  chat({{"messages", messages},
        {"response_format", {{"type", "text"}}},
        {"user", "me"},
        {"store", false},
        {"whatever", {1, 2}},
        {"max_completion_tokens", 2}});
}

TEST_F(ServerApi, AModelThatIsNotThereIs404AndPathsAndMethodsToo) {
  expect_refused(kCompletions, {{"model", "gpt-4"}, {"prompt", "x"}}, "model", "gpt-4", 404);
  EXPECT_EQ(server_->post(kCompletions, {{"model", "gpt-4"}, {"prompt", "x"}}).json()["error"]["code"],
            "model_not_found");
  EXPECT_EQ(server_->ask("GET", "/v1/nothing").status, 404);
  EXPECT_EQ(server_->ask("GET", "/v1/models/other").status, 404);
  EXPECT_EQ(server_->ask("GET", "/v1/models/small").json()["id"], "small");
  const test::HttpReply wrong = server_->ask("GET", kCompletions);
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.header("Allow"), "POST");
  EXPECT_EQ(server_->ask("OPTIONS", kCompletions).status, 405) << "CORS is off";
  EXPECT_EQ(server_->ask("POST", kCompletions, "x=1", {{"Content-Type", "application/x-www-form-urlencoded"}}).status,
            415);
  const test::HttpReply foreign =
      server_->ask("POST", kCompletions, R"({"prompt": "x"})", {{"Origin", "http://evil.example"}});
  EXPECT_EQ(foreign.status, 403);
  EXPECT_EQ(foreign.header("Access-Control-Allow-Origin"), "");
  const Json models = server_->ask("GET", "/v1/models?limit=1").json();
  EXPECT_EQ(models["object"], "list");
  EXPECT_EQ(models["data"][0]["id"], "small");
}

// t#19457, s#2876
TEST_F(ServerApi, MoreThanTheContextIs400WithItsCode) {
  const std::string long_text(2 * test::kServerContext, 'x');
  expect_refused(kCompletions, {{"prompt", long_text}}, "prompt", "maximum context length is 512");
  expect_refused(kCompletions, {{"prompt", "x"}, {"max_tokens", 512}}, "prompt", "maximum context length");
  expect_refused(kChat, {{"messages", {{{"role", "user"}, {"content", long_text}}}}}, "messages",
                 "maximum context length");
  EXPECT_EQ(server_->post(kCompletions, {{"prompt", long_text}}).json()["error"]["code"], "context_length_exceeded");
  const Json full = completion({{"prompt", "x"}, {"max_tokens", 511}, {"ignore_eos", true}, {"temperature", 0}});
  EXPECT_LE(full["usage"]["total_tokens"], 512);
  // A chat that does not say goes on to the end of the context.
  const Json open = chat({{"seed", 4}});
  EXPECT_LE(open["usage"]["total_tokens"], 512);
}

// v#2012, l#8367
TEST_F(ServerApi, ContentInPartsIsOneTextAndTheTemplateIsTheModels) {
  const Json whole = {
      {"messages", {{{"role", "system"}, {"content", "Be"}}, {{"role", "user"}, {"content", "Hello there"}}}}};
  const Json parts = {{"messages",
                       {{{"role", "developer"}, {"content", "Be"}},
                        {{"role", "user"}, {"content", {{{"type", "text"}, {"text", "Hello there"}}}}}}}};
  const std::string prompt =
      "<|im_start|>system\nBe<|im_end|>\n<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n";
  const auto ids = offline_->encode(prompt);
  EXPECT_EQ(server_->answer("/tokenize", whole)["tokens"], ids);
  EXPECT_EQ(server_->answer("/tokenize", parts)["tokens"], ids);
  Request request = greedy(prompt, 20);
  request.ends = {258, 260, 261, 262, 263};
  Json body = whole;
  body["temperature"] = 0;
  body["max_completion_tokens"] = 20;
  EXPECT_EQ(chat(body)["choices"][0]["message"]["content"], offline_->text(offline_->answer(request).tokens));
}

// v#2012: a text that names the start itself, as chat templates do, has it once.
TEST_F(ServerApi, AStartIdComesOnce) {
  nlohmann::json json = test::byte_level_tokenizer();
  json["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single",
       {{{"SpecialToken", {{"id", "<|endoftext|>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"pair", nlohmann::json::array()},
      {"special_tokens",
       {{"<|endoftext|>", {{"id", "<|endoftext|>"}, {"ids", {258}}, {"tokens", {"<|endoftext|>"}}}}}}};
  const auto tokenizer = test::tokenizer_from(json);
  ASSERT_EQ(tokenizer->start_ids(), std::vector<std::int32_t>{258});
  ModelTexts texts;
  texts.tokenizer = tokenizer.get();
  const PromptMaker prompts(texts);
  EXPECT_EQ(prompts.of_text("xy").ids, (std::vector<std::int32_t>{258, 'x', 'y'}));
  EXPECT_EQ(prompts.of_text("<|endoftext|>xy").ids, (std::vector<std::int32_t>{258, 'x', 'y'}));
  EXPECT_EQ(prompts.of_text("").ids, std::vector<std::int32_t>{258});
  EXPECT_EQ(prompts.of_input(std::vector<std::int32_t>{'x'}).ids, std::vector<std::int32_t>{'x'});
}

TEST_F(ServerApi, TextBecomesIdsAndBack) {
  const Json tokens = server_->answer("/tokenize", {{"prompt", "ab é"}});
  EXPECT_EQ(tokens["tokens"], offline_->encode("ab é"));
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(tokens["max_model_len"], 512);
  EXPECT_EQ(server_->answer("/detokenize", {{"tokens", tokens["tokens"]}})["prompt"], "ab é");
  expect_refused("/detokenize", {{"tokens", {9999}}}, "tokens", "9999");
  expect_refused("/tokenize", Json::object(), "prompt", "");
}

TEST_F(ServerApi, SeedsRepeatAndNoSeedDoesNot) {
  const Json body = {{"prompt", prompt_}, {"max_tokens", 40}, {"temperature", 1}};
  Json seeded = body;
  seeded["seed"] = -7;
  EXPECT_EQ(completion(seeded)["choices"][0]["text"], completion(seeded)["choices"][0]["text"]);
  EXPECT_NE(completion(body)["choices"][0]["text"], completion(body)["choices"][0]["text"]);
}

TEST_F(ServerApi, CachedTokensAreSaidEvenWhereAStopTextEnds) {
  Json body;
  std::string text;
  for (int i = 0; i < 50 && (text.empty() || !is_well_formed(text.substr(0, 1))); ++i) {
    const std::string prompt = std::string(200, static_cast<char>('A' + i)) + std::to_string(seed_);
    body = {{"prompt", prompt}, {"max_tokens", 2}, {"temperature", 0}, {"ignore_eos", true}};
    EXPECT_EQ(completion(body)["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    const Json again = completion(body);
    EXPECT_GE(again["usage"]["prompt_tokens_details"]["cached_tokens"], 128);
    text = again["choices"][0]["text"];
  }
  ASSERT_FALSE(text.empty()) << "the model says no text to stop at";
  Json stopped = body;
  stopped["stop"] = text.substr(0, 1);
  const Json third = completion(stopped);
  EXPECT_EQ(third["choices"][0]["finish_reason"], "stop");
  EXPECT_GE(third["usage"]["prompt_tokens_details"]["cached_tokens"], 128);
}

// v#10583, v#15041
TEST_F(ServerApi, ARequestIdGivenTwiceIsTwoRequests) {
  const test::HttpClient::Headers same = {{"X-Request-Id", "mine"}};
  test::HttpClient one(server_->port());
  test::HttpClient two(server_->port());
  const std::string body = Json({{"prompt", prompt_}, {"max_tokens", 100}, {"seed", 1}, {"ignore_eos", true}}).dump();
  one.send(test::HttpClient::request_text("POST", kCompletions, body, same));
  two.send(test::HttpClient::request_text("POST", kCompletions, body, same));
  const Json first = one.receive().json();
  const Json second = two.receive().json();
  EXPECT_NE(first["id"], second["id"]);
  EXPECT_EQ(first["choices"], second["choices"]);
}

TEST_F(ServerApi, MetricsAreWhatPrometheusReads) {
  completion({{"prompt", prompt_}, {"max_tokens", 5}});
  const test::HttpReply reply = server_->ask("GET", "/metrics");
  EXPECT_THAT(reply.header("Content-Type"), HasSubstr("text/plain; version=0.0.4"));
  for (const char* name :
       {"kvloom_sequences_waiting", "kvloom_sequences_running", "kvloom_pages{group=\"0\",state=\"free\"}",
        "kvloom_prefix_cache_hits_total", "kvloom_generated_tokens_total", "kvloom_time_to_first_token_seconds_count",
        "kvloom_time_between_tokens_seconds_bucket{le=\"0.001\"}", "kvloom_passes_per_token_sum",
        "kvloom_preemptions_total", "kvloom_cancellations_total", "kvloom_io_processor_seconds_total"}) {
    EXPECT_THAT(reply.body, HasSubstr("\n" + std::string(name) + " ")) << name;
  }
  EXPECT_GE(server_->metric("kvloom_generated_tokens_total"), 1);
  EXPECT_GE(server_->metric("kvloom_time_to_first_token_seconds_count"), 1);
}

TEST_F(ServerApi, ThePageAsksNobodyElse) {
  const test::HttpReply page = server_->ask("GET", "/");
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.header("Content-Type"), HasSubstr("text/html"));
  EXPECT_THAT(page.header("Content-Security-Policy"), HasSubstr("default-src 'none'"));
  EXPECT_EQ(page.body.find("http://"), std::string::npos);
  EXPECT_EQ(page.body.find("https://"), std::string::npos);
}

TEST(ServerKeys, ProtectWhatComputes) {
  test::TestServerOptions options;
  options.server.api_key = "secret";
  const test::TestServer server(test::Random().seed(), options);
  const std::string body = R"({"prompt": "x", "max_tokens": 1})";
  EXPECT_EQ(server.ask("POST", kCompletions, body).status, 401);
  EXPECT_EQ(server.ask("POST", kCompletions, body).json()["error"]["code"], "invalid_api_key");
  for (const char* wrong : {"Bearer secre", "Bearer secrets", "Bearer ", "secret", "Basic secret", "Bearer SECRET"}) {
    EXPECT_EQ(server.ask("POST", kCompletions, body, {{"Authorization", wrong}}).status, 401) << wrong;
  }
  EXPECT_EQ(server.ask("POST", kCompletions, body, {{"Authorization", "Bearer secret"}}).status, 200);
  EXPECT_EQ(server.ask("GET", "/v1/models").status, 401);
  EXPECT_EQ(server.ask("POST", "/tokenize", R"({"prompt": "x"})").status, 401);
  for (const char* open : {"/", "/health", "/version", "/metrics"})
    EXPECT_EQ(server.ask("GET", open).status, 200) << open;
}

TEST(ServerKeys, AreComparedInConstantTimeAndRightly) {
  EXPECT_TRUE(equal_in_constant_time("", ""));
  EXPECT_TRUE(equal_in_constant_time("abc", "abc"));
  for (const char* given : {"", "a", "abd", "abcabc", "abcd", "bbc"})
    EXPECT_FALSE(equal_in_constant_time(given, "abc"));
  EXPECT_FALSE(equal_in_constant_time("a", ""));
}

}  // namespace
}  // namespace kvloom
