#include "infer/tokenize/spooled_input.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <vector>

#include "core/file.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

void copy_all(int from, const std::string& name, OutputFile& to) {
  std::vector<std::byte> buffer(std::size_t{1} << 20);
  while (true) {
    const ssize_t count = ::read(from, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) reject_input("--input: '{}' cannot be read: {}", name, reason_of(errno));
    if (count == 0) return;
    to.write(std::span(buffer).first(static_cast<std::size_t>(count)));
  }
}

}  // namespace

bool SpooledInput::is_needed(const std::string& input) {
  if (input == "-") return true;
  std::error_code error;
  const fs::file_status status = fs::status(input, error);
  return fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status);
}

SpooledInput::SpooledInput(const std::string& input, const fs::path& output, std::size_t number)
    : path_(hidden_sibling(writable_target(output), fmt::format(".input-{}-{}", ::getpid(), number))) {
  const int from = input == "-" ? STDIN_FILENO : ::open(input.c_str(), O_RDONLY | O_CLOEXEC);
  if (from < 0) reject_input("--input: '{}' cannot be opened: {}", input, reason_of(errno));
  try {
    OutputFile file(path_);
    copy_all(from, input, file);
  } catch (...) {
    ::unlink(path_.c_str());
    if (from != STDIN_FILENO) ::close(from);
    throw;
  }
  if (from != STDIN_FILENO) ::close(from);
}

SpooledInput::~SpooledInput() { ::unlink(path_.c_str()); }

}  // namespace kvloom
