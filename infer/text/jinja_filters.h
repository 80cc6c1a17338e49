// The tables of filters: of texts and numbers, and of lists.
#pragma once

#include <span>
#include <string_view>
#include <utility>

#include "infer/text/jinja_runtime.h"

namespace kvloom::jinja {

using NamedFilter = std::pair<std::string_view, Builtin>;

std::span<const NamedFilter> text_filters();
std::span<const NamedFilter> list_filters();

}  // namespace kvloom::jinja
