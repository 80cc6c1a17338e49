// Many prompts at once: each text is what its prompt gives alone, in the order of the input, whatever ends it.
#include "infer/generation/offline_generation.h"
#include "infer/generation/keyed_output.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "infer/generation/answer_file.h"
#include "infer/generation/keyed_output.h"
#include "infer/generation/line_reader.h"
#include "infer/generation/prompt_request.h"
#include "infer/unicode.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/process.h"
#include "tests/support/sanitized.h"
#include "tests/support/small_tokenizer.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/thrown.h"

namespace kvloom {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Json = nlohmann::ordered_json;
using Lines = std::vector<std::string>;

constexpr std::int64_t kContext = 96;
constexpr std::int64_t kVocab = 270;  // of the model; the tokenizer knows 261

proto::Manifest chat_manifest() {
  nlohmann::json json = test::byte_level_tokenizer();
  json["added_tokens"].push_back(test::added_token(259, "<|im_start|>"));
  json["added_tokens"].push_back(test::added_token(260, "<|im_end|>"));
  proto::Manifest manifest;
  manifest.set_tokenizer_kind("huggingface");
  manifest.set_tokenizer(test::packed_tokenizer(json.dump()));
  return manifest;
}

proto::ModelConfig chat_config(const std::string& map) {
  proto::ModelConfig config = test::small_model(4, map, 7);
  config.set_vocab(kVocab);
  config.set_context(kContext);
  return config;
}

struct Speaker {
  Speaker(const std::string& map, test::Random& random)
      : built(chat_config(map), random), text(chat_manifest(), built.model.config(), "model", "chatml") {}

  EngineOptions options() const {
    EngineOptions options{.window = 8, .grid = 16, .page_size = 16, .max_sequences = 24, .reuse_generated = false};
    options.kv_bytes = 12 * paged_bytes(built.model.config(), KvFormat::kF32, 16, kContext, 512);
    return options;
  }

  test::EngineModel built;
  TextModel text;
};

OfflinePrompt prompt_of(const std::string& line, std::int64_t number, const TextRequest& defaults) {
  OfflinePrompt prompt{.place = fmt::format("line {}", number), .request = {}, .problem = {}};
  try {
    prompt.request = request_of(parse_prompt_line(line, prompt.place, kVocab), defaults);
  } catch (const InputError& error) {
    prompt.problem = error.what();
  }
  return prompt;
}

std::string text_of(std::int64_t line, const TextResult& result) {
  return one_line_of(result.message.empty() ? result_json(result_of(line, result)) : error_json(line, result.message));
}

struct Written {
  Lines lines;
  OfflineCounts counts;
};

const TextRequest kDefaults{.max_new_tokens = 12};

Written generated(const Speaker& speaker, const Lines& input, const OfflineOptions& options = {},
                  const TextRequest& defaults = kDefaults) {
  Engine engine(speaker.built.model, speaker.options());
  Written written;
  std::size_t read = 0;
  const OfflineCalls calls{.next = [&]() -> std::optional<OfflinePrompt> {
                             EXPECT_LE(std::ssize(input) == 0 ? 0 : std::int64_t(read) - std::ssize(written.lines),
                                       options.lines_ahead);
                             if (read == input.size()) return std::nullopt;
                             ++read;
                             return prompt_of(input[read - 1], static_cast<std::int64_t>(read), defaults);
                           },
                           .write =
                               [&](std::int64_t line, const TextResult& result) {
                                 EXPECT_EQ(line, std::ssize(written.lines));
                                 written.lines.push_back(text_of(line, result));
                               },
                           .progress = [](const OfflineCounts&) {}};
  written.counts = generate_offline(engine, speaker.text, options, calls);
  EXPECT_TRUE(engine.is_idle());
  for (const PageCounts& pages : engine.counts().pages) EXPECT_EQ(pages.held, 0);
  return written;
}

std::string words(test::Random& random, std::int64_t most) {
  std::string text;
  for (std::int64_t left = random.integer(0, most); left > 0; --left) {
    text += random.flip() ? "ab" : random.flip() ? " ab" : std::string(1, static_cast<char>(random.integer('a', 'z')));
    if (random.integer(0, 9) == 0) text += "\xc3\xa9";
  }
  return text;
}

Json random_line(test::Random& random) {
  Json line;
  const auto kind = random.integer(0, 3);
  if (kind == 0) {
    line["tokens"] = random.tokens(static_cast<std::size_t>(random.integer(1, 40)), kVocab);
  } else if (kind == 1) {
    line["messages"] = {{{"role", "user"}, {"content", words(random, 12)}}};
  } else {
    line["prompt"] = (random.flip() ? std::string("abab ab of many ab") : std::string()) + words(random, 20);
  }
  const auto maybe = [&](const char* name, const Json& value) {
    if (random.integer(0, 4) == 0) line[name] = value;
  };
  maybe("max_new_tokens", random.integer(1, 30));
  maybe("temperature", random.integer(0, 3) * 0.5);
  maybe("top_k", random.integer(1, 50));
  maybe("top_p", 0.9);
  maybe("min_p", 0.05);
  maybe("repetition_penalty", 1.3);
  maybe("presence_penalty", 0.7);
  maybe("frequency_penalty", -0.4);
  maybe("logit_bias", {{std::to_string(random.integer(0, 255)), 4.5}});
  maybe("seed", random.integer(0, 1 << 30));
  maybe("n", random.integer(1, 4));
  maybe("stop", random.flip() ? Json("e") : Json{"ab", "z", "no such text"});
  maybe("ignore_eos", true);
  maybe("logprobs", random.integer(0, 3));
  maybe("prompt_logprobs", random.integer(0, 2));
  return line;
}

// One that is no line, one that asks for nonsense, and one that the model's context refuses.
std::string bad_line(test::Random& random) {
  const Lines bad = {"{\"prompt\": \"a\"",
                     "",
                     "[1]",
                     R"({"prompt": "a", "temperature": -1})",
                     R"({"tokens": [270]})",
                     R"({"prompt": ")" + std::string(kContext, 'x') + "\"}"};
  return bad[static_cast<std::size_t>(random.integer(0, std::ssize(bad) - 1))];
}

TEST(OfflineGeneration, AThousandMixedPromptsGiveWhatEachGivesAlone) {
  test::Random random;
  const int count = test::repetitions(1000, 100, "prompts");
  for (const char* map : {"sandwich-top:2", "yoco"}) {
    const Speaker speaker(map, random);
    Lines input;
    for (int i = 0; i < count / 2; ++i) {
      input.push_back(random.integer(0, 19) == 0 ? bad_line(random) : random_line(random).dump());
    }
    const Written all = generated(speaker, input, {.lines_ahead = 64, .texts_ahead = 48});
    ASSERT_EQ(all.lines.size(), input.size());
    EXPECT_EQ(all.counts.lines, std::ssize(input));
    std::int64_t bad = 0;
    for (std::size_t i = 0; i < input.size(); ++i) {
      Json got = Json::parse(all.lines[i]);
      EXPECT_EQ(got["index"], i);
      Json alone = Json::parse(generated(speaker, {input[i]}).lines.front());
      alone["index"] = i;
      // Of the tokens that were computed: beginnings that were found took none.
      alone.erase("passes_per_token");
      got.erase("passes_per_token");
      if (alone.contains("message")) {
        ++bad;
        EXPECT_EQ(alone["finish_reason"], "error");
        EXPECT_THAT(got["message"].get<std::string>(), StartsWith(fmt::format("line {}", i + 1)));
        alone["message"] = got["message"];
      }
      ASSERT_EQ(got, alone) << map << ": " << input[i];
    }
    EXPECT_EQ(all.counts.bad_lines, bad);
  }
}

TEST(OfflineGeneration, LinesAreReadNoFurtherAheadThanAllowedThoughTheFirstIsLast) {
  test::Random random;
  const Speaker speaker("none", random);
  Lines input = {R"({"prompt": "ab", "max_new_tokens": 80, "ignore_eos": true})"};
  for (int i = 0; i < 40; ++i) input.emplace_back(R"({"prompt": "b", "max_new_tokens": 1, "ignore_eos": true})");
  const Written written = generated(speaker, input, {.lines_ahead = 5, .texts_ahead = 100});
  EXPECT_EQ(written.counts.new_tokens, 80 + 40);
  EXPECT_EQ(written.counts.prompt_tokens, 41);
}

TEST(OfflineGeneration, AStrictRunWritesWhatStandsBeforeTheBadLineAndNamesIt) {
  test::Random random;
  const Speaker speaker("none", random);
  const std::string good = R"({"prompt": "ab", "max_new_tokens": 3})";
  const Lines input = {good, good, R"({"prompt": "ab", "n": 0})", good};
  Engine engine(speaker.built.model, speaker.options());
  std::size_t read = 0;
  std::vector<std::int64_t> written;
  const OfflineCalls calls{.next = [&]() -> std::optional<OfflinePrompt> {
                             ++read;
                             return prompt_of(input.at(read - 1), static_cast<std::int64_t>(read), kDefaults);
                           },
                           .write = [&](std::int64_t line, const TextResult&) { written.push_back(line); },
                           .progress = [](const OfflineCounts&) {}};
  const std::string message =
      test::message_of([&] { generate_offline(engine, speaker.text, {.bad_lines = BadLines::kStop}, calls); });
  EXPECT_THAT(message, StartsWith("input: line 3: "));
  EXPECT_THAT(message, HasSubstr("'n'"));
  EXPECT_THAT(written, ElementsAre(0, 1));
  EXPECT_EQ(read, 3U) << "nothing is read behind it";
}

// Writes `input`'s results to a file, as `generate` does, and ends as if killed once so many lines wait for the first.
OfflineCounts generated_to(const std::filesystem::path& path, const Speaker& speaker, const Lines& input,
                           AnswerStart start, std::int64_t killed_at) {
  Engine engine(speaker.built.model, speaker.options());
  KeyedOutput output(path, start, "options");
  std::size_t read = 0;
  const auto next_line = [&]() -> std::optional<InputLine> {
    if (read == input.size()) return std::nullopt;
    return InputLine{.text = input[read++]};
  };
  const std::int64_t first = output.skip_known(next_line);
  std::int64_t written = first;
  const OfflineCalls calls{.next = [&]() -> std::optional<OfflinePrompt> {
                             const std::optional<InputLine> line = next_line();
                             if (!line.has_value()) return std::nullopt;
                             output.expect(*line);
                             OfflinePrompt prompt = prompt_of(line->text, static_cast<std::int64_t>(read), kDefaults);
                             prompt.known = output.waiting(static_cast<std::int64_t>(read) - 1);
                             return prompt;
                           },
                           .write =
                               [&](std::int64_t line, const TextResult& result) {
                                 ++written;
                                 output.add(Json::parse(text_of(line, result)));
                               },
                           .write_known =
                               [&](const std::string& known) {
                                 ++written;
                                 output.add_waiting(known);
                               },
                           .ended_early =
                               [&](std::int64_t line, const TextResult& result) {
                                 output.keep_waiting(static_cast<std::size_t>(line - written),
                                                     Json::parse(text_of(line, result)));
                                 if (--killed_at == 0) fail("killed");
                               },
                           .progress = [](const OfflineCounts&) {}};
  const OfflineCounts counts = generate_offline(engine, speaker.text, {.first = first}, calls);
  output.finish();
  return counts;
}

TEST(OfflineGeneration, LinesThatWaitForAnEarlierOneOutlastAKill) {
  test::Random random;
  const TemporaryFolder folder;
  const Speaker speaker("sandwich-middle:2", random);
  // The first line and one in the middle take long; equal lines are told apart by their numbers.
  Lines input;
  for (int i = 0; i < 24; ++i) {
    input.push_back(fmt::format(R"({{"prompt": "ab {}", "max_new_tokens": {}, "ignore_eos": true, "seed": 3}})", i % 5,
                                i == 0 || i == 13 ? 60 : 2));
  }
  const OfflineCounts whole = generated_to(folder / "whole.jsonl", speaker, input, AnswerStart::kFresh, 0);
  const auto waiting = folder / "out.jsonl.waiting";
  const std::int64_t finished = random.integer(3, 15);
  const auto start = [&](AnswerStart how, std::int64_t killed_at) {
    return generated_to(folder / "out.jsonl", speaker, input, how, killed_at);
  };
  EXPECT_EQ(test::message_of([&] { start(AnswerStart::kFresh, finished); }), "run: killed");
  EXPECT_EQ(test::content_of(folder / "out.jsonl"), "");
  // As a kill within a write would leave it.
  std::ofstream(waiting, std::ios::app) << "{\"index\":20,\"te";
  const OfflineCounts rest = start(AnswerStart::kResume, 0);
  EXPECT_EQ(rest.lines, 24);
  EXPECT_EQ(rest.new_tokens, whole.new_tokens - 2 * finished) << "what had ended was not computed again";
  EXPECT_EQ(test::content_of(folder / "out.jsonl"), test::content_of(folder / "whole.jsonl"));
  EXPECT_FALSE(std::filesystem::exists(waiting));
  // What another run left is not taken for a fresh one's, nor another prompt's for this one.
  EXPECT_EQ(test::message_of([&] { generated_to(folder / "other.jsonl", speaker, input, AnswerStart::kFresh, 5); }),
            "run: killed");
  input[3] = R"({"prompt": "ab 3", "max_new_tokens": 3, "ignore_eos": true, "seed": 3})";
  generated_to(folder / "other.jsonl", speaker, input, AnswerStart::kResume, 0);
  generated_to(folder / "changed.jsonl", speaker, input, AnswerStart::kFresh, 0);
  EXPECT_EQ(test::content_of(folder / "other.jsonl"), test::content_of(folder / "changed.jsonl"));
}

// What a run's updates say together.
struct Streamed {
  std::string text;
  std::vector<std::int32_t> tokens;
  FinishReason finish = FinishReason::kNone;
  std::int64_t new_tokens = 0;
};

Streamed streamed(const Speaker& speaker, const TextRequest& request) {
  Engine engine(speaker.built.model, speaker.options());
  TextRun run(speaker.text, request);
  engine.submit(run.take_request());
  Streamed all;
  while (run.under_way() > 0) {
    for (Event& event : engine.step()) {
      const TextUpdate update = run.push(event, engine);
      EXPECT_TRUE(is_well_formed(update.text)) << "a character was split";
      all.text += update.text;
      for (const TokenScore& token : update.tokens) all.tokens.push_back(token.token);
      all.finish = update.finish;
    }
  }
  EXPECT_TRUE(engine.is_idle()) << "what a stop text ended goes on";
  all.new_tokens = run.new_tokens(0);
  return all;
}

TEST(Generation, AStopTextEndsTheTextBeforeItAndItsTokensDoNotLeave) {
  test::Random random;
  const Speaker speaker("sandwich-top:2", random);
  int stopped = 0;
  for (int round = 0; round < 40; ++round) {
    TextRequest request{.prompt = words(random, 20), .max_new_tokens = 40, .ends = EndIds::kIgnore};
    request.sampling = {.temperature = 1, .seed = random.seed() + static_cast<std::uint64_t>(round)};
    const Streamed whole = streamed(speaker, request);
    EXPECT_EQ(whole.finish, FinishReason::kLength);
    EXPECT_EQ(whole.tokens.size(), 40U);
    if (whole.text.size() < 12) continue;
    const auto at = static_cast<std::size_t>(random.integer(1, std::ssize(whole.text) - 6));
    const std::string stop = whole.text.substr(at, static_cast<std::size_t>(random.integer(1, 5)));
    if (!is_well_formed(stop)) continue;
    request.stops = {"never to be found", stop};
    const Streamed ended = streamed(speaker, request);
    ++stopped;
    EXPECT_EQ(ended.text, whole.text.substr(0, whole.text.find(stop)));
    EXPECT_EQ(ended.finish, FinishReason::kStop);
    EXPECT_LE(ended.tokens.size(), static_cast<std::size_t>(ended.new_tokens));
    EXPECT_TRUE(std::ranges::equal(ended.tokens, std::span(whole.tokens).first(ended.tokens.size())));
  }
  EXPECT_GT(stopped, 5);
}

TEST(Generation, TheTokenizersSeparatorItsTurnsEndAndIdsBeyondItEndATextUnlessIgnored) {
  test::Random random;
  const Speaker speaker("none", random);
  for (const std::int32_t end : {258, 260, 261, static_cast<std::int32_t>(kVocab) - 1}) {
    const Conversation conversation{.messages = {{.role = "user", .content = "ab"}}};
    for (const TextPrompt& prompt : {TextPrompt("ab"), TextPrompt(conversation)}) {
      TextRequest request{.prompt = prompt, .max_new_tokens = 4};
      request.sampling = {.temperature = 0, .logit_bias = {{end, 100.0F}}};
      const bool ends = end != 260 || std::holds_alternative<Conversation>(prompt);
      EXPECT_EQ(streamed(speaker, request).new_tokens, ends ? 0 : 4) << end;
      request.ends = EndIds::kIgnore;
      const Streamed on = streamed(speaker, request);
      EXPECT_EQ(on.new_tokens, 4);
      EXPECT_EQ(on.finish, FinishReason::kLength);
      EXPECT_EQ(on.text, "") << "control ids have no text";
    }
  }
}

TEST(Generation, EveryTextOfALateRequestEndsAsAnError) {
  test::Random random;
  const Speaker speaker("none", random);
  Engine engine(speaker.built.model, speaker.options());
  TextRun run(speaker.text, {.prompt = "ab", .n = 3, .deadline = 1});
  engine.submit(run.take_request());
  TextResult result;
  for (Event& event : engine.step(2)) add_update(run.push(event, engine), run, result);
  EXPECT_EQ(run.under_way(), 0);
  ASSERT_EQ(result.choices.size(), 3U);
  for (const TextAnswer& answer : result.choices) {
    EXPECT_EQ(name_of(answer.finish), "error");
    EXPECT_THAT(answer.message, HasSubstr("time"));
  }
}

TEST(Generation, TheFirstTokenOfAPromptHasNoScoreAndTheOthersHaveTheirs) {
  test::Random random;
  const Speaker speaker("yoco", random);
  const Written written =
      generated(speaker, {R"({"tokens": [7, 8, 9], "max_new_tokens": 0, "prompt_logprobs": 2, "logprobs": 1})"});
  const Json line = Json::parse(written.lines.front());
  ASSERT_EQ(line["prompt_logprobs"].size(), 3U);
  EXPECT_EQ(line["prompt_logprobs"][0]["token"], 7);
  EXPECT_TRUE(line["prompt_logprobs"][0]["logprob"].is_null());
  EXPECT_EQ(line["prompt_logprobs"][2]["token"], 9);
  EXPECT_LT(line["prompt_logprobs"][2]["logprob"], 0.0);
  EXPECT_EQ(line["prompt_logprobs"][2]["top"].size(), 2U);
  EXPECT_EQ(line["tokens"].size(), 0U);
  EXPECT_EQ(line["finish_reason"], "length");
}

Lines lines_of(LineReader& reader) {
  Lines lines;
  while (const std::optional<InputLine> line = reader.next()) {
    lines.push_back(line->text + (line->end == LineEnd::kNewline ? "" : line->end == LineEnd::kTooLong ? "+" : "|"));
  }
  return lines;
}

TEST(LineReader, GivesLinesHoweverLongTheyAreAndWhereverTheyEnd) {
  const TemporaryFolder folder;
  const std::string longer(200000, 'x');
  folder.write("lines", "a\n\n" + longer + "\nb");
  LineReader reader(folder / "lines", 300000);
  EXPECT_THAT(lines_of(reader), ElementsAre("a", "", longer, "b|"));
  EXPECT_EQ(reader.offset(), 200005U);
  EXPECT_EQ(count_lines(folder / "lines"), 4);
  LineReader shorter(folder / "lines", 100);
  EXPECT_THAT(lines_of(shorter), ElementsAre("a", "", longer.substr(0, 101) + "+", "b|"));
  folder.write("empty", "");
  LineReader empty(folder / "empty", 100);
  EXPECT_THAT(lines_of(empty), ElementsAre());
  EXPECT_EQ(count_lines(folder / "empty"), 0);
  EXPECT_EQ(count_lines("-"), std::nullopt);
  EXPECT_THAT(test::message_of([&] { LineReader(folder / "none", 1); }), StartsWith("input: "));
  EXPECT_THAT(test::message_of([&] { LineReader(folder.path(), 1); }), HasSubstr("folder"));
}

TEST(AnswerFile, GoesOnBehindTheLastWholeLineThatWasRead) {
  const TemporaryFolder folder;
  const auto path = folder / "out.jsonl";
  {
    AnswerFile fresh(path, AnswerStart::kFresh);
    fresh.add("one");
    fresh.add("two");
    fresh.finish();
  }
  EXPECT_EQ(test::content_of(path), "one\ntwo\n");
  EXPECT_THAT(test::message_of([&] { AnswerFile(path, AnswerStart::kFresh); }), HasSubstr("--resume auto"));
  folder.write("out.jsonl", "one\ntwo\nthr");
  {
    AnswerFile file(path, AnswerStart::kResume);
    EXPECT_EQ(file.next_known(), "one");
    EXPECT_EQ(file.next_known(), "two");
    EXPECT_EQ(file.next_known(), std::nullopt);
    EXPECT_EQ(test::content_of(path), "one\ntwo\nthr") << "nothing is cut before something is written";
    file.add("3");
    EXPECT_EQ(test::content_of(path), "one\ntwo\n3\n") << "a line is there at once";
  }
  folder.write("out.jsonl", "thr");
  AnswerFile half(path, AnswerStart::kResume);
  EXPECT_EQ(half.next_known(), std::nullopt);
  half.finish();
  EXPECT_EQ(test::content_of(path), "");
}

TEST(AnswerFile, HasOneWriterAtATime) {
  const TemporaryFolder folder;
  const auto path = folder / "out.jsonl";
  auto first = std::make_unique<AnswerFile>(path, AnswerStart::kFresh);
  EXPECT_THAT(test::message_of([&] { AnswerFile(path, AnswerStart::kResume); }), HasSubstr("another process"));
  first->add("kept");
  first.reset();
  EXPECT_EQ(AnswerFile(path, AnswerStart::kResume).next_known(), "kept");
}

}  // namespace
}  // namespace kvloom
