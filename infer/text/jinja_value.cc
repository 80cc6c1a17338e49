#include "infer/text/jinja_value.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "infer/unicode.h"

namespace kvloom::jinja {
namespace {

constexpr int kDeepest = 100;

int nested(int depth) {
  if (depth >= kDeepest) fault("values are nested more than {} deep", kDeepest);
  return depth + 1;
}

// Equal keys give equal text, as 1, 1.0 and true are equal.
std::string place_of(const Value& key) {
  if (key.is_text()) return "s" + key.text();
  if (key.is_none()) return "0";
  if (key.is_whole()) return fmt::format("n{}", key.integer());
  if (key.is_float() && key.number() == std::floor(key.number()) && std::abs(key.number()) < 1e18) {
    return fmt::format("n{}", static_cast<std::int64_t>(key.number()));
  }
  if (key.is_float()) return fmt::format("f{}", key.number());
  fault("unhashable type: '{}'", type_name(key));
}

}  // namespace

Value undefined(std::string why) { return Undefined{std::make_shared<const std::string>(std::move(why))}; }

int depth_of(const Value& value) {
  if (value.is_sequence()) return value.sequence().depth;
  return value.is_dict() ? value.dict().depth() : 0;
}

Value make_sequence(List items, SequenceKind kind) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, depth_of(item));
  return std::make_shared<const Sequence>(Sequence{std::move(items), kind, nested(depth)});
}

void Dict::set(const Value& key, Value value) {
  depth_ = std::max(depth_, nested(depth_of(value)));
  const auto [place, is_new] = places_.try_emplace(place_of(key), entries_.size());
  if (is_new) {
    entries_.emplace_back(key, std::move(value));
  } else {
    entries_[place->second].second = std::move(value);
  }
}

const Value* Dict::find(const Value& key) const {
  const auto place = places_.find(place_of(key));
  return place == places_.end() ? nullptr : &entries_[place->second].second;
}

const Value* Dict::find(std::string_view key) const {
  const auto place = places_.find("s" + std::string(key));
  return place == places_.end() ? nullptr : &entries_[place->second].second;
}

Value make_dict(Dict dict) { return std::make_shared<const Dict>(std::move(dict)); }

Value Object::call(const Arguments&) { fault("'{}' object is not callable", type()); }

std::string type_name(const Value& value) {
  if (value.is_none()) return "NoneType";
  if (value.is_undefined()) return "Undefined";
  if (value.is_bool()) return "bool";
  if (value.is_integer()) return "int";
  if (value.is_float()) return "float";
  if (value.is_text()) return "str";
  if (value.is_dict()) return "dict";
  if (value.is_object()) return value.object()->type();
  constexpr std::array kSequences = {"list", "tuple", "range", "dict_keys", "dict_values", "dict_items", "generator"};
  return kSequences.at(static_cast<std::size_t>(value.sequence().kind));
}

Value value_of(const nlohmann::ordered_json& json) {
  switch (json.type()) {
    case nlohmann::json::value_t::boolean:
      return json.get<bool>();
    case nlohmann::json::value_t::number_integer:
      return json.get<std::int64_t>();
    case nlohmann::json::value_t::number_unsigned:
      if (json.get<std::uint64_t>() > INT64_MAX) fault("the number {} is too large", json.get<std::uint64_t>());
      return json.get<std::int64_t>();
    case nlohmann::json::value_t::number_float:
      return json.get<double>();
    case nlohmann::json::value_t::string:
      if (!is_well_formed(json.get_ref<const std::string&>())) fault("a text is no UTF-8");
      return json.get<std::string>();
    case nlohmann::json::value_t::array: {
      List items;
      for (const auto& item : json) items.push_back(value_of(item));
      return make_sequence(std::move(items));
    }
    case nlohmann::json::value_t::object: {
      Dict dict;
      for (const auto& [name, value] : json.items()) dict.set(name, value_of(value));
      return make_dict(std::move(dict));
    }
    default:
      return {};
  }
}

}  // namespace kvloom::jinja
