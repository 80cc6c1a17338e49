// Protocol Buffers text format as users write it: errors name the place, and what would have been right.
#pragma once

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <optional>
#include <string>

namespace kvloom {

// message = `text`. `name` is the file for messages. Throws InputError with file, line and column.
void parse_message_text(const std::string& name, const std::string& text, google::protobuf::Message& message);
// Fields of `text` on top of what `message` has. Returns what was wrong, or nothing.
std::optional<std::string> merge_message_text(const std::string& text, google::protobuf::Message& message);

// "; did you mean 'kv_map'?", or nothing.
std::string meant_field(const google::protobuf::Descriptor& message, const std::string& name);

// "a, b, c"
std::string field_names(const google::protobuf::Descriptor& message);
std::string value_names(const google::protobuf::EnumDescriptor& values);

}  // namespace kvloom
