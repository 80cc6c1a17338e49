// Which program made a file.
#pragma once

#include <string>

namespace kvloom {

// "kvloom 1.2.3": the version of CMake's project.
std::string program_and_version();

}  // namespace kvloom
