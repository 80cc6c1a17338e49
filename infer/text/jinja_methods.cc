#include "infer/text/jinja_methods.h"

#include <algorithm>
#include <array>

namespace kvloom::jinja {
namespace {

Value items(Runtime& runtime, const Value& self, const Arguments& arguments) {
  bind("items", arguments, {});
  List pairs;
  for (const auto& [key, value] : self.dict().entries()) {
    pairs.push_back(runtime.list({key, value}, SequenceKind::kTuple));
  }
  return runtime.list(std::move(pairs), SequenceKind::kItems);
}

Value keys(Runtime& runtime, const Value& self, const Arguments& arguments) {
  bind("keys", arguments, {});
  List all;
  for (const auto& [key, value] : self.dict().entries()) all.push_back(key);
  return runtime.list(std::move(all), SequenceKind::kKeys);
}

Value values(Runtime& runtime, const Value& self, const Arguments& arguments) {
  bind("values", arguments, {});
  List all;
  for (const auto& [key, value] : self.dict().entries()) all.push_back(value);
  return runtime.list(std::move(all), SequenceKind::kValues);
}

Value get(Runtime&, const Value& self, const Arguments& arguments) {
  const Bound given = bind("get", arguments, {"key", "default"}, 1);
  if (const Value* found = self.dict().find(*given[0])) return *found;
  if (given[1].has_value()) return *given[1];
  return {};
}

Value copy(Runtime&, const Value& self, const Arguments& arguments) {
  bind("copy", arguments, {});
  return self;
}

Value count_items(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Value item = *bind("count", arguments, {"value"}, 1)[0];
  return std::ranges::count_if(self.sequence().items, [&](const Value& other) { return equal(runtime, other, item); });
}

Value index_of_item(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Value item = *bind("index", arguments, {"value"}, 1)[0];
  const List& all = self.sequence().items;
  const auto found = std::ranges::find_if(all, [&](const Value& other) { return equal(runtime, other, item); });
  if (found == all.end()) fault("{} is not in list", represented(runtime, item));
  return found - all.begin();
}

constexpr std::array kOfDicts =
    std::to_array<NamedMethod>({{"items", items}, {"keys", keys}, {"values", values}, {"get", get}, {"copy", copy}});

constexpr std::array kOfLists = std::to_array<NamedMethod>({{"count", count_items}, {"index", index_of_item}});

Builtin named(std::span<const NamedMethod> table, std::string_view name) {
  const auto found = std::ranges::find(table, name, &NamedMethod::first);
  return found == table.end() ? nullptr : found->second;
}

}  // namespace

Builtin find_method(const Value& self, std::string_view name) {
  if (self.is_text()) return named(text_methods(), name);
  if (self.is_dict()) return named(kOfDicts, name);
  const bool is_list = self.is_sequence() && self.sequence().kind <= SequenceKind::kRange;
  return is_list ? named(kOfLists, name) : nullptr;
}

}  // namespace kvloom::jinja
