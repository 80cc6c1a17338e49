#include "core/version.h"

namespace kvloom {

std::string program_and_version() { return "kvloom " KVLOOM_VERSION; }

}  // namespace kvloom
