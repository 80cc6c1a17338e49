// The chat formats that are built in.
#pragma once

#include <span>
#include <string>

#include "infer/text/chat_template.h"

namespace kvloom {

// The prompt of a conversation in a built-in format. Throws InputError when the format cannot say it: roles that do not
// alternate, a system message where it has none, a message without text, tools.
std::string format_chat(ChatFormat format, const Conversation& conversation, const std::string& begin,
                        const std::string& end);

}  // namespace kvloom
