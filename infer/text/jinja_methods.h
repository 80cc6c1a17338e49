// The methods of texts, lists and dicts that change nothing in place.
#pragma once

#include <span>
#include <string_view>
#include <utility>

#include "infer/text/jinja_runtime.h"

namespace kvloom::jinja {

using NamedMethod = std::pair<std::string_view, Builtin>;

std::span<const NamedMethod> text_methods();

}  // namespace kvloom::jinja
