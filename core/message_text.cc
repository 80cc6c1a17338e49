#include "core/message_text.h"

#include <fmt/ranges.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <string_view>
#include <vector>

#include "core/nearest_name.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace pb = google::protobuf;

constexpr int kDeepestNesting = 32;
constexpr int kDeepestEnum = 4;  // messages in which a field is looked for

// Keeps the first error: what follows is mostly its echo.
class FirstError final : public pb::io::ErrorCollector {
 public:
  void AddError(int line, pb::io::ColumnNumber column, const std::string& message) override {
    if (!message_.empty()) return;
    message_ = message;
    place_ = fmt::format("{}:{}", line + 1, column + 1);
  }
  void AddWarning(int, pb::io::ColumnNumber, const std::string&) override {}
  const std::string& message() const { return message_; }
  const std::string& place() const { return place_; }

 private:
  std::string message_;
  std::string place_;  // line:column, from 1
};

const pb::EnumDescriptor* enum_of_field(const pb::Descriptor& message, const std::string& name, int depth = 0) {
  for (int i = 0; i < message.field_count(); ++i) {
    const pb::FieldDescriptor& field = *message.field(i);
    if (field.name() == name && field.enum_type() != nullptr) return field.enum_type();
    if (field.message_type() == nullptr || depth == kDeepestEnum) continue;
    if (const pb::EnumDescriptor* found = enum_of_field(*field.message_type(), name, depth + 1)) return found;
  }
  return nullptr;
}

// The text between the quotes that follow `before`, or nothing.
std::string quoted_after(const std::string& text, std::string_view before) {
  const std::size_t found = text.find(before);
  if (found == std::string::npos) return "";
  const std::size_t begin = found + before.size();
  return text.substr(begin, text.find('"', begin) - begin);
}

// What would have been right, told from the parser's words: they name the message or the field, not its choices.
std::string choices(const std::string& error, const pb::Descriptor& root) {
  const std::string type = quoted_after(error, "Message type \"");
  if (const auto* message = pb::DescriptorPool::generated_pool()->FindMessageTypeByName(type)) {
    return meant_field(*message, quoted_after(error, "has no field named \"")) + "; it has " + field_names(*message);
  }
  if (error.find("Unknown enumeration value") == std::string::npos) return "";
  const auto* values = enum_of_field(root, quoted_after(error, "for field \""));
  return values == nullptr ? "" : "; right are " + value_names(*values);
}

}  // namespace

void parse_message_text(const std::string& name, const std::string& text, pb::Message& message) {
  FirstError error;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  parser.SetRecursionLimit(kDeepestNesting);
  if (parser.ParseFromString(text, &message)) return;
  reject_input("{}:{}: {}{}", name, error.place(), error.message(), choices(error.message(), *message.GetDescriptor()));
}

std::optional<std::string> merge_message_text(const std::string& text, pb::Message& message) {
  FirstError error;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  if (parser.MergeFromString(text, &message)) return std::nullopt;
  return error.message() + choices(error.message(), *message.GetDescriptor());
}

std::string meant_field(const pb::Descriptor& message, const std::string& name) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return did_you_mean(name, names);
}

std::string field_names(const pb::Descriptor& message) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string value_names(const pb::EnumDescriptor& values) {
  std::vector<std::string> names;
  for (int i = 0; i < values.value_count(); ++i) names.push_back(values.value(i)->name());
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace kvloom
