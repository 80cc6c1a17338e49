// Programs run with the rights of any user, to see files that nobody may touch refused: root passes every permission
// unless it gives that up.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/process.h"

namespace kvloom::test {

inline ProcessResult run_with_plain_rights(std::vector<std::string> command, const ProcessOptions& options) {
  const std::string given_up = "-dac_override,-dac_read_search";
  const std::vector<std::string> plain = {"setpriv", "--bounding-set=" + given_up, "--inh-caps=" + given_up};
  if (::geteuid() == 0) command.insert(command.begin(), plain.begin(), plain.end());
  return run_process(std::move(command), options);
}

// Whether that can be had here.
inline bool has_plain_rights(const std::filesystem::path& folder) {
  return run_with_plain_rights({"true"}, {.folder = folder}).status == 0;
}

}  // namespace kvloom::test
