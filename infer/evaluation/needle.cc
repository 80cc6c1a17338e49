#include "infer/evaluation/needle.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <string_view>

#include "infer/evaluation/requests.h"
#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kChoices = 4;
constexpr std::array kColours = {"amber",   "black",  "blue",   "bronze", "copper", "crimson", "golden",
                                 "green",   "grey",   "indigo", "ivory",  "orange", "purple",  "red",
                                 "scarlet", "silver", "violet", "white",  "yellow"};
constexpr std::array kThings = {"anchor", "basket",   "bridge", "candle", "castle", "engine", "falcon",
                                "forest", "garden",   "harbor", "island", "kettle", "ladder", "lantern",
                                "mirror", "mountain", "river",  "saddle", "tower",  "window"};

// What the needle says and what is asked.
struct Fact {
  std::string subject;               // "the amber falcon"
  std::vector<std::string> numbers;  // the right one first, all different

  std::string needle() const { return "The secret number of " + subject + " is " + numbers.front() + "."; }
  std::string question() const { return "\n\nThe secret number of " + subject + " is"; }
};

// Draws that are the same everywhere: the standard's distributions are not.
class Draws {
 public:
  explicit Draws(std::uint64_t seed) : engine_(seed) {}
  std::size_t below(std::size_t count) { return static_cast<std::size_t>(engine_() % count); }

 private:
  std::mt19937_64 engine_;
};

Fact draw_fact(Draws& draws) {
  Fact fact;
  fact.subject =
      std::string("the ") + kColours[draws.below(kColours.size())] + " " + kThings[draws.below(kThings.size())];
  while (fact.numbers.size() < kChoices) {
    std::string number = std::to_string(10000 + draws.below(90000));
    if (std::ranges::find(fact.numbers, number) == fact.numbers.end()) fact.numbers.push_back(std::move(number));
  }
  return fact;
}

// The haystack by words, each with the white space behind it.
class Words {
 public:
  explicit Words(std::string_view text) {
    while (!text.empty()) {
      const std::size_t space = text.find_first_of(" \n\t\r");
      const std::size_t end = space == std::string_view::npos
                                  ? text.size()
                                  : std::min(text.find_first_not_of(" \n\t\r", space), text.size());
      words_.push_back(text.substr(0, end));
      text.remove_prefix(end);
    }
    std::erase_if(words_, [](std::string_view word) { return word.find_first_not_of(" \n\t\r") == word.npos; });
    if (words_.empty()) reject_input("needle: the text has no words");
  }

  std::size_t count() const { return words_.size(); }

  // Words [begin, end), counted on from the text's end at its beginning; none runs into the next.
  std::string text(std::size_t begin, std::size_t end) const {
    std::string text;
    for (std::size_t i = begin; i < end; ++i) {
      const std::string_view word = words_[i % words_.size()];
      text += word;
      if (word.find_first_of(" \n\t\r") == word.npos) text += ' ';
    }
    return text;
  }

  bool ends_sentence(std::size_t index) const {
    const std::string_view word = words_[index % words_.size()];
    const std::size_t last = word.find_last_not_of(" \n\t\r\"')");
    return last != word.npos && std::string_view(".!?").find(word[last]) != std::string_view::npos;
  }

 private:
  std::vector<std::string_view> words_;
};

// How many of `count` words from `begin` on stand before the needle: the end of a sentence near the depth, else the
// depth itself.
std::size_t words_before(const Words& words, std::size_t begin, std::size_t count, double depth) {
  const auto wanted = static_cast<std::size_t>(std::lround(depth * static_cast<double>(count)));
  if (wanted == 0 || wanted == count) return wanted;
  for (std::size_t away = 0; away <= count / 20; ++away) {
    for (const std::size_t before : {wanted - std::min(away, wanted), wanted + away}) {
      if (before > 0 && before < count && words.ends_sentence(begin + before - 1)) return before;
    }
  }
  return wanted;
}

std::string context_of(const Words& words, std::size_t begin, std::size_t count, double depth, const Fact& fact) {
  const std::size_t before = words_before(words, begin, count, depth);
  return words.text(begin, begin + before) + fact.needle() + " " + words.text(begin + before, begin + count) +
         fact.question();
}

class Generator {
 public:
  Generator(const std::string& text, const Tokenizer& tokenizer, const NeedleOptions& options)
      : words_(text), encoder_(tokenizer, 0), options_(options), draws_(options.seed) {}

  Json item(std::int64_t length, double depth) {
    const Fact fact = draw_fact(draws_);
    const std::size_t begin = draws_.below(words_.count());
    const std::size_t count = most_words(length, begin, depth, fact);
    const std::string context = context_of(words_, begin, count, depth, fact);
    Json item = {{"context", context}};
    if (options_.form == NeedleForm::kGreedy) {
      item["target"] = " " + fact.numbers.front();
    } else {
      const std::size_t place = draws_.below(kChoices);
      std::vector<std::string> choices = fact.numbers;
      std::swap(choices[0], choices[place]);
      item["choices"] = choices;
      item["answer"] = place;
    }
    item["length"] = length;
    item["depth"] = depth;
    item["tokens"] = tokens(context, fact);
    return item;
  }

 private:
  // Of the longest request.
  std::int64_t tokens(const std::string& context, const Fact& fact) const {
    std::size_t most = 0;
    for (const std::string& number : fact.numbers) {
      most = std::max(most, encoder_.encode(context + " " + number).size());
    }
    return static_cast<std::int64_t>(most);
  }

  // Tokens grow with words, so the most that fit are found by halving.
  std::size_t most_words(std::int64_t length, std::size_t begin, double depth, const Fact& fact) const {
    const auto fits = [&](std::size_t count) {
      return tokens(context_of(words_, begin, count, depth, fact), fact) <= length;
    };
    if (!fits(0)) {
      reject_input("needle: a length of {} tokens; needle, question and answer take {} without any text", length,
                   tokens(context_of(words_, begin, 0, depth, fact), fact));
    }
    std::size_t low = 0;
    std::size_t high = 1;
    while (fits(high)) high *= 2;
    while (high - low > 1) {
      const std::size_t middle = low + (high - low) / 2;
      (fits(middle) ? low : high) = middle;
    }
    return low;
  }

  Words words_;
  RequestEncoder encoder_;
  const NeedleOptions& options_;
  Draws draws_;
};

void check(const std::string& text, const NeedleOptions& options) {
  if (!is_well_formed(text)) reject_input("needle: the text is no UTF-8");
  if (options.lengths.empty() || options.depths.empty()) reject_input("needle: wants a length and a depth");
  for (const double depth : options.depths) {
    if (!(depth >= 0 && depth <= 1)) reject_input("needle: a depth of {}; right is 0 to 1", depth);
  }
}

}  // namespace

std::string make_needle_task(const std::string& text, const Tokenizer& tokenizer, const NeedleOptions& options) {
  check(text, options);
  Generator generator(text, tokenizer, options);
  std::string lines =
      Json{{"task", "needle"}, {"metrics", {"acc"}}, {"grid", {{"rows", "length"}, {"columns", "depth"}}}}.dump() +
      "\n";
  for (const std::int64_t length : options.lengths) {
    for (const double depth : options.depths) {
      for (std::int64_t i = 0; i < options.items; ++i) lines += generator.item(length, depth).dump() + "\n";
    }
  }
  return lines;
}

}  // namespace kvloom
