// The page at `/`: infer/server/page.html, put into the program when it is built.
#pragma once

#include <string_view>

namespace kvloom {

extern const std::string_view kServerPage;

}  // namespace kvloom
