// --attention of the verbs that compute on a GPU.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "core/device_choice.h"

namespace kvloom {

void add_attention(CLI::App& verb, std::string& attention);

// With what is chosen said on standard error.
AttentionSetting attention_setting(const std::string& attention);

}  // namespace kvloom
