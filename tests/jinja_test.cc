// The interpreter against jinja2 itself: tests/fixtures/chat has what it says of templates and of single rules.
#include "infer/text/jinja.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "kernels/error.h"
#include "tests/support/mutate.h"
#include "tests/support/random.h"

namespace kvloom::jinja {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;

std::string fixture(const std::string& name) {
  std::ifstream file(std::string(KVLOOM_SOURCE_DIR) + "/tests/fixtures/chat/" + name, std::ios::binary);
  EXPECT_TRUE(file) << name;
  return {std::istreambuf_iterator<char>(file), {}};
}

const Json& expected() {
  static const Json json = Json::parse(fixture("expected.json"));
  return json;
}

// Sunday, 2026-07-05 09:08:07.
std::tm fixed_time() {
  std::tm time{};
  time.tm_year = 126;
  time.tm_mon = 6;
  time.tm_mday = 5;
  time.tm_hour = 9;
  time.tm_min = 8;
  time.tm_sec = 7;
  time.tm_wday = 0;
  time.tm_yday = 185;
  return time;
}

struct Outcome {
  std::string text;
  std::optional<std::string> error;
};

Outcome outcome(const std::string& source, const Json& variables, const Limits& limits = {}) {
  try {
    return {Template(source, "t", limits).render(variables, fixed_time()), std::nullopt};
  } catch (const InputError& error) {
    return {{}, error.what()};
  }
}

// Equal texts; where jinja2 fails, a failure at the same line, and of what the template or jinja2 itself says, the same
// words. Python's own words are its own.
void expect_same(const std::string& source, const Json& variables, const Json& want) {
  const Outcome got = outcome(source, variables);
  if (want.contains("text")) {
    EXPECT_FALSE(got.error.has_value()) << *got.error;
    EXPECT_EQ(got.text, want["text"].get<std::string>());
    return;
  }
  ASSERT_TRUE(got.error.has_value()) << "jinja2: " << want << "; here: " << got.text;
  if (!want["line"].is_null()) {
    EXPECT_THAT(*got.error, HasSubstr(fmt::format("t: line {}: ", want["line"].get<int>())));
  }
  const std::string kind = want["error"];
  if (kind == "raised" || kind == "undefined" || kind == "security") {
    EXPECT_THAT(*got.error, ::testing::EndsWith(one_line(want["message"])));
  }
}

TEST(Jinja, TemplatesSayWhatJinja2Says) {
  int cases = 0;
  for (const auto& [name, outcomes] : expected()["templates"].items()) {
    const std::string source = fixture("templates/" + name + ".jinja");
    for (const auto& [conversation, want] : outcomes.items()) {
      SCOPED_TRACE(name + ": " + conversation);
      expect_same(source, expected()["conversations"][conversation], want);
      ++cases;
    }
  }
  EXPECT_GE(expected()["templates"].size(), 30);
  EXPECT_GE(cases, 500);
}

TEST(Jinja, RulesAreJinja2s) {
  for (const Json& snippet : expected()["snippets"]) {
    std::string source = snippet["template"];
    SCOPED_TRACE(source);
    for (std::size_t at; (at = source.find("↵")) != std::string::npos;) source.replace(at, 3, "\n");
    expect_same(source, expected()["snippet_variables"], snippet);
  }
}

std::string error_of(const std::string& source, const Limits& limits = {}) {
  const Outcome got = outcome(source, {{"x", 1}}, limits);
  EXPECT_TRUE(got.error.has_value()) << got.text.substr(0, 200);
  return got.error.value_or("");
}

TEST(Jinja, WhatATemplateMayDoIsBounded) {
  const std::string many = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
  EXPECT_THAT(error_of(many), HasSubstr("line 1: takes more than 20000000 steps"));
  EXPECT_THAT(
      error_of("{% set n = namespace(t='aaaaaaaa') %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}"),
      HasSubstr("makes a text of more than 16777216 bytes"));
  EXPECT_THAT(error_of("{{ 'a' * 99999999999 }}"), HasSubstr("too often"));
  EXPECT_THAT(error_of("{{ 'a'.ljust(99999999999) }}"), HasSubstr("bytes"));
  EXPECT_THAT(error_of("{{ 'aaaaaaaaaaaaaaaa'.replace('', 'b' * 10000000) }}"), HasSubstr("bytes"));
  EXPECT_THAT(error_of("{{ 'x' | indent(99999999999) }}"), HasSubstr("bytes"));
  EXPECT_THAT(error_of("{{ '%9999999999d' % 1 }}"), HasSubstr("width"));
  EXPECT_THAT(error_of("{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = n.l + n.l %}{% endfor %}"),
              HasSubstr("steps"));
  EXPECT_THAT(error_of("{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ "
                       "n.l | tojson }}"),
              HasSubstr("more than"));
  EXPECT_THAT(error_of("{% set n = namespace(l=[1]) %}{% for i in range(9999) %}{% set n.l = [n.l] %}{% endfor %}"),
              HasSubstr("nested more than 100 deep"));
  EXPECT_THAT(error_of("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), HasSubstr("levels deep"));
  EXPECT_THAT(
      error_of("{% for a in range(999) %}{% for b in range(999) %}abcdefghijklmnopqrst{% endfor %}{% endfor %}"),
      HasSubstr("bytes"));
  EXPECT_THAT(error_of("{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}"), HasSubstr("levels deep"));
  EXPECT_THAT(error_of("a{{ 'b' }}c", {.steps = 3}), HasSubstr("takes more than 3 steps"));
}

std::string repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

TEST(Jinja, DeepTemplatesAreRefused) {
  const int many = 100'000;
  for (const std::string& source :
       {"{{ " + repeated("(", many) + "1", "{{ " + repeated("[", many), "{{ " + repeated("{1:", many),
        "{{ " + repeated("not ", many) + "1 }}", "{{ " + repeated("-", many) + "1 }}",
        "{{ 1" + repeated("+1", many) + " }}", "{{ x" + repeated(".a", many) + " }}",
        "{{ x" + repeated("[0]", many) + " }}", "{{ x" + repeated("|list", many) + " }}",
        "{{ x" + repeated("()", many) + " }}", "{{ x" + repeated(" if x else x", many) + " }}",
        "{{ x" + repeated(" and x", many) + " }}", "{{ x" + repeated(" ** x", many) + " }}",
        repeated("{% if x %}", many), repeated("{% for a in b %}", many), repeated("{% macro a() %}", many),
        "{{ x" + repeated(" is not defined", many) + " }}"}) {
    EXPECT_THAT(error_of(source), HasSubstr("line 1: ")) << source.substr(0, 30);
  }
  // Long is not deep.
  EXPECT_EQ(outcome("{{ [" + repeated("1,", many) + "]|length }}", {}).text, "100000");
  EXPECT_EQ(outcome("{{ 'a'" + repeated(" ~ 'b'", many) + " }}", {}).text.size(), many + 1);
  EXPECT_EQ(outcome("{% if 0 %}" + repeated("{% elif 0 %}", many) + "{% else %}e{% endif %}", {}).text, "e");
}

TEST(Jinja, ObjectsOutliveTheLoopsThatMadeThem) {
  EXPECT_EQ(outcome("{% set n = namespace() %}{% for i in [1, 2] %}{% set n.c = loop.cycle %}{% set n.l = loop %}"
                    "{% set n.n = n %}{% endfor %}{{ n.c('a', 'b', 'c') }}{{ n.l.length }}{{ n.n.l.nextitem }}",
                    {})
                .text,
            "c2");
}

TEST(Jinja, VariablesOfAnyJsonAreTaken) {
  Json deep = 1;
  for (int i = 0; i < 1000; ++i) deep = Json::array({std::move(deep)});
  EXPECT_THAT(*outcome("a", {{"x", deep}}).error, HasSubstr("nested"));
  EXPECT_THAT(*outcome("a", {{"x", "\xff"}}).error, HasSubstr("no UTF-8"));
  EXPECT_THAT(*outcome("\xff", {}).error, HasSubstr("no UTF-8"));
  EXPECT_THAT(*outcome("a", {{"x", UINT64_MAX}}).error, HasSubstr("too large"));
}

// Damaged templates fail in one line or say something; sanitizers see the rest.
TEST(Jinja, DamagedTemplatesFailInOneLine) {
  test::Random random;
  std::vector<std::string> names;
  for (const auto& [name, unused] : expected()["templates"].items()) names.push_back(name);
  const Json& conversations = expected()["conversations"];
  const Limits limits{.steps = 200'000, .bytes = 1 << 20};
  for (int round = 0; round < 1500; ++round) {
    const auto pick = static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(names.size()) - 1));
    const std::string source = test::mutated(fixture("templates/" + names[pick] + ".jinja"), random);
    const Outcome got = outcome(source, conversations["tools"], limits);
    EXPECT_EQ(got.error.value_or("").find('\n'), std::string::npos);
  }
}

}  // namespace
}  // namespace kvloom::jinja
