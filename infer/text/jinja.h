// Chat templates: an interpreter of the part of Jinja that published ones use, with Jinja set up as transformers sets
// it up (trim_blocks, lstrip_blocks, break and continue, generation blocks, tojson without HTML's escapes,
// raise_exception, strftime_now, values that cannot be changed in place). Held against jinja2 3.1 by
// tests/fixtures/chat.
//
// A template is input that nobody has vouched for. It can do nothing but make text, and it is stopped when it goes
// beyond Limits. What is not there: include, import, extends, block, autoescape, varargs and kwargs of macros, `*` and
// `**` in calls, numbers beyond 64 bits, and the filters escape, filesizeformat, forceescape, groupby, pprint, random,
// slice, striptags, urlencode, urlize, wordcount, wordwrap and xmlattr. Each is refused by name.
#pragma once

#include <ctime>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "infer/text/jinja_runtime.h"
#include "infer/text/jinja_syntax.h"

namespace kvloom::jinja {

class Template {
 public:
  // `name` begins every message. Throws InputError, with the line, for what is no template.
  Template(std::string_view source, std::string name, const Limits& limits = {});

  // The text. `variables` is an object; `now` is the time that strftime_now writes. Throws InputError, with the
  // template's line, where the template raises an exception, where it does what Python would raise one for, and where
  // it goes beyond a limit. Safe to call from several threads.
  std::string render(const nlohmann::ordered_json& variables, const std::tm& now) const;

 private:
  std::string name_;
  Limits limits_;
  std::vector<Statement> statements_;
};

}  // namespace kvloom::jinja
