#include <algorithm>
#include <array>
#include <charconv>

#include "infer/text/jinja_filters.h"
#include "infer/unicode.h"

namespace kvloom::jinja {
namespace {

// An item's part by a path: "function.name", or "0" of a list.
Value part_of(Runtime& runtime, Value item, const Value& path, const std::optional<Value>& otherwise) {
  if (path.is_whole()) return item_of(runtime, item, path);
  std::string_view rest = text_argument("attribute", path);
  while (true) {
    const std::string_view name = rest.substr(0, rest.find('.'));
    std::int64_t place = 0;
    const bool is_place = !name.empty() && std::from_chars(name.data(), name.data() + name.size(), place).ptr ==
                                               name.data() + name.size();
    item = item_of(runtime, item, is_place ? Value(place) : Value(name));
    if (item.is_undefined() && otherwise.has_value()) item = *otherwise;
    if (name.size() == rest.size()) return item;
    rest.remove_prefix(name.size() + 1);
  }
}

Value length(Runtime& runtime, const Value& self, const Arguments& arguments) {
  bind("length", arguments, {});
  runtime.charge(self.is_text() ? self.text().size() / 8 : 0);
  return length_of(self);
}

Value list(Runtime& runtime, const Value& self, const Arguments& arguments) {
  bind("list", arguments, {});
  return runtime.list(items_of(runtime, self)->items);
}

Value first(Runtime& runtime, const Value& self, const Arguments& arguments) {
  bind("first", arguments, {});
  const auto items = items_of(runtime, self);
  return items->items.empty() ? undefined("No first item, sequence was empty.") : items->items.front();
}

Value last(Runtime& runtime, const Value& self, const Arguments& arguments) {
  bind("last", arguments, {});
  if (self.is_sequence() && self.sequence().kind == SequenceKind::kGenerator) {
    fault("'generator' object is not reversible");
  }
  const auto items = items_of(runtime, self);
  return items->items.empty() ? undefined("No last item, sequence was empty.") : items->items.back();
}

Value reverse(Runtime& runtime, const Value& self, const Arguments& arguments) {
  bind("reverse", arguments, {});
  List items = items_of(runtime, self)->items;
  std::ranges::reverse(items);
  if (!self.is_text()) return runtime.list(std::move(items), SequenceKind::kGenerator);
  std::string text;
  for (const Value& item : items) text += item.text();
  return runtime.text(std::move(text));
}

Value join(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("join", arguments, {"d", "attribute"});
  const std::string between = given[0].has_value() ? shown(runtime, *given[0]) : "";
  std::string all;
  bool is_first = true;
  const auto all_items = items_of(runtime, self);
  for (const Value& item : all_items->items) {
    const bool by_part = given[1].has_value() && !given[1]->is_none();
    if (!std::exchange(is_first, false)) all += between;
    all += shown(runtime, by_part ? part_of(runtime, item, *given[1], {}) : item);
    runtime.check_bytes(all.size());
    runtime.charge(1);
  }
  return runtime.text(std::move(all));
}

Value items(Runtime& runtime, const Value& self, const Arguments& arguments) {
  bind("items", arguments, {});
  if (self.is_undefined()) return runtime.list({}, SequenceKind::kGenerator);
  if (!self.is_dict()) fault("Can only get item pairs from a mapping.");
  List pairs;
  for (const auto& [key, value] : self.dict().entries()) {
    pairs.push_back(runtime.list({key, value}, SequenceKind::kTuple));
  }
  return runtime.list(std::move(pairs), SequenceKind::kGenerator);
}

Value folded(const Value& value) { return value.is_text() ? Value(lowercased(value.text())) : value; }

// How filters that compare look at an item: by a part of it, and texts without their case.
struct Look {
  std::optional<Value> path;
  bool folds = true;

  Look(std::optional<Value> given, const std::optional<Value>& case_sensitive)
      : path(std::move(given)), folds(!truth_argument(case_sensitive, false)) {
    if (path.has_value() && path->is_none()) path.reset();
  }
  Value at(Runtime& runtime, const Value& item) const {
    const Value part = path.has_value() ? part_of(runtime, item, *path, {}) : item;
    return folds ? folded(part) : part;
  }
};

void sort_by(Runtime& runtime, std::vector<std::pair<Value, Value>>& keyed, bool descending) {
  std::ranges::stable_sort(keyed, [&](const auto& a, const auto& b) {
    return compare(runtime, "<", descending ? b.first : a.first, descending ? a.first : b.first);
  });
}

Value sort(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  const Look look(given[2], given[1]);
  std::vector<std::pair<Value, Value>> keyed;
  const auto all_items = items_of(runtime, self);
  for (const Value& item : all_items->items) keyed.emplace_back(look.at(runtime, item), item);
  sort_by(runtime, keyed, truth_argument(given[0], false));
  List sorted;
  for (auto& [key, item] : keyed) sorted.push_back(std::move(item));
  return runtime.list(std::move(sorted));
}

Value sort_dict(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  const std::string by = optional_text("dictsort", given[1]).value_or("key");
  if (by != "key" && by != "value") fault("You can only sort by either \"key\" or \"value\"");
  if (!self.is_dict()) fault("'{}' object has no attribute 'items'", type_name(self));
  const Look look(std::nullopt, given[0]);
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : self.dict().entries()) {
    keyed.emplace_back(look.at(runtime, by == "key" ? key : value), runtime.list({key, value}, SequenceKind::kTuple));
  }
  sort_by(runtime, keyed, truth_argument(given[2], false));
  List sorted;
  for (auto& [key, pair] : keyed) sorted.push_back(std::move(pair));
  return runtime.list(std::move(sorted));
}

Value unique(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("unique", arguments, {"case_sensitive", "attribute"});
  const Look look(given[1], given[0]);
  Dict seen;
  List kept;
  const auto all_items = items_of(runtime, self);
  for (const Value& item : all_items->items) {
    const Value key = look.at(runtime, item);
    if (seen.find(key) != nullptr) continue;
    seen.set(key, Value());
    kept.push_back(item);
  }
  return runtime.list(std::move(kept), SequenceKind::kGenerator);
}

template <bool kLargest>
Value extreme(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("the filter", arguments, {"case_sensitive", "attribute"});
  const Look look(given[1], given[0]);
  const auto all = items_of(runtime, self);
  if (all->items.empty()) return undefined("No aggregated item, sequence was empty.");
  Value best = all->items.front();
  for (const Value& item : all->items) {
    if (compare(runtime, kLargest ? ">" : "<", look.at(runtime, item), look.at(runtime, best))) best = item;
  }
  return best;
}

Value sum(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("sum", arguments, {"attribute", "start"});
  const Look look(given[0], Value(true));
  Value total = given[1].value_or(Value(0));
  if (total.is_text()) fault("sum() can't sum strings [use ''.join(seq) instead]");
  const auto all_items = items_of(runtime, self);
  for (const Value& item : all_items->items) {
    total = binary(runtime, "+", total, look.at(runtime, item));
  }
  return total;
}

Value batch(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Bound given = bind("batch", arguments, {"linecount", "fill_with"}, 1);
  const std::int64_t wanted = integer_argument("batch", given[0]);
  if (wanted < 1 || wanted > 100'000) fault("batch() wants 1 to 100000 items a line, not {}", wanted);
  const auto count = static_cast<std::size_t>(wanted);
  List lines, line;
  const auto all_items = items_of(runtime, self);
  for (const Value& item : all_items->items) {
    if (line.size() == count) lines.push_back(runtime.list(std::exchange(line, {})));
    line.push_back(item);
  }
  const bool fills = given[1].has_value() && !given[1]->is_none();
  while (fills && !line.empty() && line.size() < count) line.push_back(*given[1]);
  if (!line.empty()) lines.push_back(runtime.list(std::move(line)));
  return runtime.list(std::move(lines), SequenceKind::kGenerator);
}

// A copy of the arguments without the first `count` positional ones.
Arguments rest_of(const Arguments& arguments, std::size_t count) {
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin(), rest.positional.begin() + static_cast<std::ptrdiff_t>(count));
  return rest;
}

// As in jinja2, what counts as false has no items, none too.
std::shared_ptr<const Sequence> items_if_true(Runtime& runtime, const Value& value) {
  return truth(value) ? items_of(runtime, value) : std::make_shared<const Sequence>();
}

Value map(Runtime& runtime, const Value& self, const Arguments& arguments) {
  List mapped;
  const auto all = items_if_true(runtime, self);
  if (arguments.positional.empty()) {
    const Bound given = bind("map", arguments, {"attribute", "default"});
    if (!given[0].has_value()) fault("map requires a filter argument");
    for (const Value& item : all->items) mapped.push_back(part_of(runtime, item, *given[0], given[1]));
    return runtime.list(std::move(mapped), SequenceKind::kGenerator);
  }
  const std::string name = text_argument("map", arguments.positional.front());
  const Builtin filter = find_filter(name);
  if (filter == nullptr) fault("No filter named '{}'.", name);
  const Arguments rest = rest_of(arguments, 1);
  for (const Value& item : all->items) {
    runtime.charge(1);
    mapped.push_back(filter(runtime, item, rest));
  }
  return runtime.list(std::move(mapped), SequenceKind::kGenerator);
}

enum class By { kItem, kAttribute };

template <By kBy, bool kKept>
Value chosen(Runtime& runtime, const Value& self, const Arguments& arguments) {
  constexpr std::size_t kTest = kBy == By::kAttribute ? 1 : 0;  // where its name stands
  if (arguments.positional.size() < kTest) fault("Missing parameter for attribute name");
  const bool has_test = arguments.positional.size() > kTest;
  const std::string name = has_test ? text_argument("the test", arguments.positional[kTest]) : "";
  const Builtin test = has_test ? find_test(name) : nullptr;
  if (has_test && test == nullptr) fault("No test named '{}'.", name);
  const Arguments rest = has_test ? rest_of(arguments, kTest + 1) : Arguments();
  List kept;
  const auto all_items = items_if_true(runtime, self);
  for (const Value& item : all_items->items) {
    runtime.charge(1);
    const Value part = kBy == By::kAttribute ? part_of(runtime, item, arguments.positional[0], {}) : item;
    const bool fits = has_test ? truth(test(runtime, part, rest)) : truth(part);
    if (fits == kKept) kept.push_back(item);
  }
  return runtime.list(std::move(kept), SequenceKind::kGenerator);
}

constexpr std::array kFilters = std::to_array<NamedFilter>({
    {"batch", batch},
    {"count", length},
    {"dictsort", sort_dict},
    {"first", first},
    {"items", items},
    {"join", join},
    {"last", last},
    {"length", length},
    {"list", list},
    {"map", map},
    {"max", extreme<true>},
    {"min", extreme<false>},
    {"reject", chosen<By::kItem, false>},
    {"rejectattr", chosen<By::kAttribute, false>},
    {"reverse", reverse},
    {"select", chosen<By::kItem, true>},
    {"selectattr", chosen<By::kAttribute, true>},
    {"sort", sort},
    {"sum", sum},
    {"unique", unique},
});

}  // namespace

std::span<const NamedFilter> list_filters() { return kFilters; }

}  // namespace kvloom::jinja
