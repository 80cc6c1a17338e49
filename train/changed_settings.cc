#include "train/changed_settings.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

namespace kvloom {
namespace {

namespace pb = google::protobuf;

constexpr std::array<std::string_view, 3> kElsewhere = {"data.tokens", "train.start_from", "train.seed"};

std::string value_of(const pb::Message& group, const pb::FieldDescriptor& field) {
  if (field.cpp_type() == pb::FieldDescriptor::CPPTYPE_DOUBLE) {
    return fmt::format("{:.10g}", group.GetReflection()->GetDouble(group, &field));  // 0.003 / 10 is 0.0003
  }
  std::string value;
  pb::TextFormat::PrintFieldValueToString(group, &field, -1, &value);
  return value;
}

void add_changes(const std::string& name, const pb::Message& before, const pb::Message& now,
                 std::vector<std::string>& changes) {
  for (int i = 0; i < before.GetDescriptor()->field_count(); ++i) {
    const pb::FieldDescriptor& field = *before.GetDescriptor()->field(i);
    const std::string path = name + "." + field.name();
    if (std::ranges::find(kElsewhere, path) != kElsewhere.end()) continue;
    if (field.has_presence() && !before.GetReflection()->HasField(before, &field)) continue;
    const std::string old_value = value_of(before, field);
    const std::string new_value = value_of(now, field);
    if (old_value != new_value) changes.push_back(fmt::format("{} {} -> {}", path, old_value, new_value));
  }
}

}  // namespace

std::string changed_settings(const proto::RunConfig& before, const proto::RunConfig& now) {
  std::vector<std::string> changes;
  if (before.has_data()) add_changes("data", before.data(), now.data(), changes);
  if (before.has_train()) add_changes("train", before.train(), now.train(), changes);
  if (before.has_passes()) add_changes("passes", before.passes(), now.passes(), changes);
  return fmt::format("{}", fmt::join(changes, ", "));
}

}  // namespace kvloom
