// Task files made of published data sets, held against the requests that lm-evaluation-harness makes of the same
// records (tests/fixtures/evaluation/make_prompts.py), and needles in haystacks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include "infer/evaluation/datasets.h"
#include "infer/evaluation/needle.h"
#include "infer/evaluation/records.h"
#include "infer/evaluation/requests.h"
#include "infer/evaluation/task.h"
#include "kernels/error.h"
#include "tests/support/random.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tiny_run.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const fs::path kFixtures = fs::path(KVLOOM_SOURCE_DIR) / "tests/fixtures/evaluation";

struct Published {
  std::string dataset;
  std::string records;
  std::string labels;
};

TEST(Datasets, OfEveryPublishedFormAskWhatTheHarnessAsks) {
  const json prompts = json::parse(read_bytes(kFixtures / "prompts.json"));
  for (const auto& [name, records, labels] : {Published{"hellaswag", "hellaswag.jsonl", ""},
                                              {"openbookqa", "openbookqa.jsonl", ""},
                                              {"openbookqa", "openbookqa.tsv", ""},
                                              {"winogrande", "winogrande.jsonl", ""},
                                              {"winogrande", "winogrande-unlabelled.jsonl", "winogrande-labels.lst"},
                                              {"arc_easy", "arc.jsonl", ""},
                                              {"arc_challenge", "arc.csv", ""},
                                              {"boolq", "boolq.jsonl", ""},
                                              {"boolq", "boolq-superglue.jsonl", ""},
                                              {"piqa", "piqa.jsonl", "piqa-labels.lst"},
                                              {"piqa", "piqa.csv", ""},
                                              {"lambada", "lambada.jsonl", ""}}) {
    const fs::path folder = kFixtures / "datasets";
    const Task task = parse_task(
        make_dataset_task(name, {folder / records, labels.empty() ? fs::path() : folder / labels}), "made.jsonl");
    const json& expected = prompts[name];
    EXPECT_EQ(task.name, name);
    EXPECT_EQ(json(task.metrics), expected["metrics"]) << records;
    ASSERT_EQ(task.items.size(), expected["items"].size()) << records;
    for (std::size_t i = 0; i < task.items.size(); ++i) {
      json requests = json::array();
      for (const Query& query : task.items[i].queries) requests.push_back({query.context, query.continuation});
      EXPECT_EQ(requests, expected["items"][i]["requests"]) << records << " record " << i;
      if (!expected["items"][i]["answer"].is_null()) {
        EXPECT_THAT(task.items[i].answers, ElementsAre(expected["items"][i]["answer"].get<int>())) << records;
      }
    }
  }
}

TEST(Datasets, InTheirHuggingFaceFormAreReadToo) {
  const TemporaryFolder folder;
  const std::string record =
      R"({"question_stem": "Q", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": " B"})";
  const fs::path file = folder.write("x.jsonl", record);
  const Task task = parse_task(make_dataset_task("openbookqa", {file, {}}), "t");
  EXPECT_THAT(task.items.at(0).choices, ElementsAre("one", "two"));
  EXPECT_THAT(task.items.at(0).answers, ElementsAre(1));
  folder.write("x.jsonl", "[" + record + "]");
  EXPECT_EQ(parse_task(make_dataset_task("openbookqa", {file, {}}), "t").items.size(), 1);
}

TEST(Datasets, BadRecordsAreRefusedWithFileLineAndField) {
  const TemporaryFolder folder;
  const auto reason = [&](const std::string& dataset, const std::string& name, const std::string& text,
                          const std::string& labels = "") -> std::string {
    const fs::path file = folder.write(name, text);
    const fs::path beside = labels.empty() ? fs::path() : folder.write("labels.lst", labels);
    try {
      make_dataset_task(dataset, {file, beside});
    } catch (const InputError& error) {
      return error.what();
    }
    return "nothing was rejected";
  };
  const std::string good = R"({"goal": "g", "sol1": "a", "sol2": "b", "label": 0})"
                           "\n";
  EXPECT_THAT(reason("piqa", "a.jsonl", good + "{\"goal\": \"g\"}\n"), HasSubstr("a.jsonl, line 2: has no field"));
  EXPECT_THAT(reason("piqa", "a.jsonl", good + "{\"goal\"\n"), HasSubstr("a.jsonl, line 2: is no JSON object"));
  EXPECT_THAT(reason("piqa", "a.jsonl", good + R"({"goal": "g", "sol1": "a", "sol2": "b", "label": 2})"),
              HasSubstr("line 2: 'label' is '2'; right are 0 to 1"));
  EXPECT_THAT(reason("piqa", "a.jsonl", good + R"({"goal": "g", "sol1": "a", "sol2": "b", "label": -1})"),
              AllOf(HasSubstr("line 2: 'label' holds no answer"), HasSubstr("--labels")));
  EXPECT_THAT(reason("piqa", "a.jsonl", R"({"goal": "g", "sol1": "a", "sol2": "b"})"),
              AllOf(HasSubstr("a.jsonl, line 1: 'label' is missing"), HasSubstr("give that with --labels")));
  EXPECT_THAT(reason("piqa", "a.jsonl", good, "0\n1\n"), HasSubstr("has 2 labels"));
  EXPECT_THAT(reason("piqa", "a.jsonl", ""), HasSubstr("holds no records"));
  EXPECT_THAT(reason("chess", "a.jsonl", good), HasSubstr("data set 'chess'; right are hellaswag, "));
  EXPECT_THAT(reason("winogrande", "a.jsonl", R"({"sentence": "s", "option1": "a", "option2": "b", "answer": "1"})"),
              HasSubstr("'sentence' has no blank"));
  EXPECT_THAT(reason("arc_easy", "a.jsonl", R"({"question": "q", "answerKey": "A"})"), HasSubstr("has no choices (A)"));
  EXPECT_THAT(reason("arc_easy", "a.jsonl", R"({"question": "q (A) x (B) y", "answerKey": "C"})"),
              HasSubstr("'answerKey' is 'C'; right are A, B"));
  EXPECT_THAT(reason("piqa", "a.csv", "goal,sol1,sol2,label\ng,a,b\n"), HasSubstr("a.csv, line 2: 3 fields"));
  EXPECT_THAT(reason("piqa", "a.csv", "goal,sol1,sol2,label\n\"g\n\n,a,b,0\n"),
              HasSubstr("a.csv, line 2: a quoted field does not end"));
  EXPECT_THAT(reason("piqa", "a.jsonl", "\xff"), HasSubstr("is no UTF-8"));
}

TEST(Records, OfCommaSeparatedValuesComeBackAsTheyWereWritten) {
  test::Random random;
  const std::string characters = "ab ,\"\n\r\t'";
  for (int round = 0; round < 200; ++round) {
    const auto columns = static_cast<std::size_t>(random.integer(2, 4));
    std::vector<std::vector<std::string>> written;
    std::string text;
    for (auto rows = random.integer(1, 5); rows > 0; --rows) {
      std::vector<std::string>& row = written.emplace_back(columns);
      for (std::size_t i = 0; i < columns; ++i) {
        for (auto length = random.integer(0, 5); length > 0; --length) {
          row[i] +=
              characters[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(characters.size()) - 1))];
        }
        std::string cell = row[i];
        if (cell.find_first_of(",\"\n\r") != std::string::npos || random.flip()) {
          for (std::size_t at = cell.find('"'); at != std::string::npos; at = cell.find('"', at + 2)) {
            cell.insert(at, 1, '"');
          }
          cell = '"' + cell + '"';
        }
        text += (i == 0 ? "" : ",") + cell;
      }
      text += rows == 1 && random.flip() ? "" : random.flip() ? "\n" : "\r\n";
    }
    std::vector<std::vector<std::string>> read;
    for (const SeparatedRow& row : parse_comma_separated(text, "t")) read.push_back(row.cells);
    EXPECT_EQ(read, written) << text;
  }
}

// Needles

std::string haystack(test::Random& random) {
  std::string text;
  for (int sentence = 0; sentence < 60; ++sentence) {
    for (auto words = random.integer(2, 9); words > 0; --words) {
      for (auto letters = random.integer(1, 6); letters > 0; --letters) {
        text += static_cast<char>('a' + random.integer(0, 25));
      }
      text += words > 1 ? " " : random.flip() ? ". " : ".\n";
    }
  }
  return text;
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
}

// Where the needle stands in an item's context, in words of the haystack.
struct NeedlePlace {
  std::string needle;  // without its full stop
  std::string before;
  std::string after;

  explicit NeedlePlace(const std::string& context) {
    const std::size_t begin = context.find("The secret number of");
    const std::size_t end = context.find('.', begin);
    needle = context.substr(begin, end - begin);
    before = context.substr(0, begin);
    after = context.substr(end + 1, context.rfind("\n\n") - end - 1);
  }
};

// It stands at its depth, counted in words, or, where a sentence ends within a twentieth of the words, at such an end.
void expect_depth(const NeedlePlace& place, double depth) {
  const std::vector<std::string> before = words_of(place.before);
  std::vector<std::string> all = before;
  for (std::string& word : words_of(place.after)) all.push_back(std::move(word));
  const auto count = static_cast<double>(all.size());
  const auto wanted = std::lround(depth * count);
  const auto away = std::labs(std::ssize(before) - wanted);
  const auto near = static_cast<long>(all.size() / 20);
  const auto ends_sentence = [&](long words) { return all[static_cast<std::size_t>(words) - 1].ends_with('.'); };
  if (wanted == 0 || wanted == std::ssize(all)) {
    EXPECT_EQ(away, 0) << place.before << "|" << place.after;
    return;
  }
  EXPECT_LE(away, near) << place.before << "|" << place.after;
  long nearest = near + 1;
  for (long words = 1; words < std::ssize(all); ++words) {
    if (ends_sentence(words)) nearest = std::min(nearest, std::labs(words - wanted));
  }
  EXPECT_EQ(away, nearest <= near ? nearest : 0) << place.before << "|" << place.after;
}

// Every word before and behind the needle is one of the haystack's, and they follow one another there.
void expect_whole_words(const NeedlePlace& place, const std::string& text) {
  const std::vector<std::string> hay = words_of(text);
  std::vector<std::string> words = words_of(place.before);
  for (std::string& word : words_of(place.after)) words.push_back(std::move(word));
  bool found = words.empty();
  for (std::size_t begin = 0; begin < hay.size() && !found; ++begin) {
    found = true;
    for (std::size_t i = 0; i < words.size() && found; ++i) found = words[i] == hay[(begin + i) % hay.size()];
  }
  EXPECT_TRUE(found) << place.before << "|" << place.after;
  EXPECT_TRUE(place.before.empty() || std::isspace(static_cast<unsigned char>(place.before.back())) != 0);
  EXPECT_TRUE(place.after.empty() || std::isspace(static_cast<unsigned char>(place.after.front())) != 0);
}

TEST(Needle, StandsOnceAtItsDepthInATextOfTheLengthAskedFor) {
  test::Random random;
  const auto bytes = make_byte_tokenizer();
  const std::string text = haystack(random);
  for (const NeedleForm form : {NeedleForm::kChoice, NeedleForm::kGreedy}) {
    const NeedleOptions options{.lengths = {300, 900, 4000},  // the last longer than the text
                                .depths = {0, 0.3, 1},
                                .items = 3,
                                .seed = static_cast<std::uint64_t>(random.integer(1, 1000)),
                                .form = form};
    const std::string made = make_needle_task(text, *bytes, options);
    EXPECT_EQ(made, make_needle_task(text, *bytes, options));
    const Task task = parse_task(made, "needle.jsonl");
    ASSERT_TRUE(task.grid.has_value());
    EXPECT_EQ(task.items.size(), 27);
    for (const TaskItem& item : task.items) {
      const std::string& context = item.queries.front().context;
      const Query& right = item.queries[item.answers.empty() ? 0 : static_cast<std::size_t>(item.answers.front())];
      const auto length = item.content["length"].get<std::int64_t>();
      const auto depth = item.content["depth"].get<double>();
      const auto tokens = static_cast<std::int64_t>(bytes->encode(context + right.continuation).size());
      EXPECT_EQ(tokens, item.content["tokens"]);
      EXPECT_LE(tokens, length);
      EXPECT_GE(tokens, length - 8) << "a word more would have fitted";
      const NeedlePlace place(context);
      EXPECT_TRUE(place.needle.ends_with(right.continuation)) << place.needle << right.continuation;
      EXPECT_EQ(count_of(context, right.continuation + "."), 1);
      EXPECT_TRUE(context.ends_with(place.needle.substr(0, place.needle.size() - right.continuation.size())));
      expect_depth(place, depth);
      expect_whole_words(place, text);
    }
  }
}

TEST(Needle, RefusesWhatCannotBe) {
  const auto bytes = make_byte_tokenizer();
  const auto reason = [&](const std::string& text, const NeedleOptions& options) -> std::string {
    try {
      make_needle_task(text, *bytes, options);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(reason("a b", {.lengths = {20}, .depths = {0}}), HasSubstr("a length of 20 tokens; needle, question"));
  EXPECT_THAT(reason("a b", {.lengths = {200}, .depths = {1.5}}), HasSubstr("a depth of 1.5; right is 0 to 1"));
  EXPECT_THAT(reason(" \n ", {.lengths = {200}, .depths = {1}}), HasSubstr("the text has no words"));
}

TEST(EvalPrepare, MakesTaskFilesThatEvalAnswersAndANeedlesTable) {
  const test::TinyRun run;
  ASSERT_EQ(run.train({"--set", "train.steps=1", "--set", "model.context=256"}).status, 0);
  const auto piqa = run.kvloom({"eval", "prepare", "piqa", (kFixtures / "datasets/piqa.jsonl").string(), "piqa.jsonl",
                                "--labels", (kFixtures / "datasets/piqa-labels.lst").string()});
  EXPECT_EQ(piqa.status, 0) << piqa.error;
  EXPECT_EQ(piqa.output, "wrote piqa.jsonl: 2 items\n");
  const auto needle = run.kvloom({"eval", "needle", "text.txt", "needle.jsonl", "--checkpoint", "out", "--lengths",
                                  "150", "250", "--depths", "0", "0.5", "1", "--items", "2"});
  EXPECT_EQ(needle.status, 0) << needle.error;
  const auto results = run.kvloom({"eval", "--checkpoint", "out", "--tasks", "piqa.jsonl", "needle.jsonl"});
  EXPECT_EQ(results.status, 0) << results.error;
  EXPECT_THAT(results.output, AllOf(HasSubstr("piqa"), HasSubstr("needle: acc by length and depth\n"),
                                    HasSubstr("length / depth"), HasSubstr("\n150 "), HasSubstr("\n250 ")));
  const auto wrong = run.kvloom({"eval", "prepare", "piqa", "text.txt", "x.jsonl"});
  EXPECT_EQ(wrong.status, 2);
  EXPECT_THAT(wrong.error, HasSubstr("text.txt, line 1: is no JSON object"));
  EXPECT_FALSE(fs::exists(run / "x.jsonl"));
  const auto too_long =
      run.kvloom({"eval", "needle", "text.txt", "long.jsonl", "--checkpoint", "out", "--lengths", "150", "258"});
  EXPECT_EQ(too_long.status, 2);
  EXPECT_EQ(too_long.error_lines(), 1);
  EXPECT_THAT(too_long.error,
              HasSubstr("--lengths: 258 tokens; right for 'out', whose context is 256, is 257 at most"));
  EXPECT_FALSE(fs::exists(run / "long.jsonl"));
  for (const auto& [length, warnings] : {std::pair("257", 0), std::pair("400", 1)}) {
    ASSERT_EQ(run.kvloom({"eval", "needle", "text.txt", "long.jsonl", "--tokenizer", "bytes", "--lengths", length,
                          "--depths", "0.5", "--items", "2"})
                  .status,
              0);
    const auto cut = run.kvloom({"eval", "--checkpoint", "out", "--tasks", "long.jsonl"});
    EXPECT_EQ(cut.status, 0) << cut.error;
    EXPECT_EQ(cut.error_lines(), warnings) << cut.error;
    if (warnings == 0) continue;
    EXPECT_THAT(cut.error, HasSubstr("long.jsonl: 2 of 2 items are longer than the model's context"));
  }
  const auto onto = run.kvloom({"eval", "needle", "text.txt", "./text.txt", "--checkpoint", "out", "--lengths", "150"});
  EXPECT_EQ(onto.status, 2);
  EXPECT_THAT(onto.error, HasSubstr("'./text.txt' is what the task file is made from"));
}

}  // namespace
}  // namespace kvloom
