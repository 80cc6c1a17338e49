#include "launch/tokenize_sources.h"

#include <fnmatch.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>

#include "core/file.h"
#include "kernels/error.h"
#include "launch/same_file.h"

namespace kvloom {
namespace {

namespace fs = std::filesystem;

bool matches(const std::vector<std::string>& globs, const fs::path& path) {
  return globs.empty() || std::ranges::any_of(globs, [&](const std::string& glob) {
           return fnmatch(glob.c_str(), path.filename().c_str(), 0) == 0;
         });
}

// Written, or left by a killed run that was writing it.
bool is_output_or_part(const TokenizeRequest& request, const fs::path& path) {
  if (is_output(request, path)) return true;
  const std::string name = path.filename().string();
  for (const fs::path& output : {request.output, request.save_model}) {
    const std::string parts = "." + output.filename().string() + ".";
    if (output.empty() || !name.starts_with(parts)) continue;
    if (is_same_file(path.parent_path() / output.filename(), output)) return true;
  }
  return false;
}

// Files of a folder and of all below it that match and are no output. Links to folders are not followed, so that there
// are no circles; links that lead nowhere are no files.
void find_files(const TokenizeRequest& request, const fs::path& folder, std::vector<fs::path>& found) {
  std::error_code error;
  fs::directory_iterator entries(folder, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const fs::path& path = entries->path();
    std::error_code unknown;
    const fs::file_status own = entries->symlink_status(unknown);
    if (fs::is_directory(own)) {
      find_files(request, path, found);
      continue;
    }
    const fs::file_status status = entries->status(unknown);
    if (!fs::status_known(status)) {
      reject_input("--input: '{}' cannot be read: {}", path.string(), unknown.message());
    }
    if (!fs::is_regular_file(status) || !matches(request.globs, path)) continue;
    if (!is_output_or_part(request, path)) found.push_back(path);
  }
  if (error) reject_input("--input: '{}' cannot be read: {}", folder.string(), error.message());
}

}  // namespace

bool is_output(const TokenizeRequest& request, const fs::path& path) {
  return is_same_file(path, request.output) || (!request.save_model.empty() && is_same_file(path, request.save_model));
}

void Sources::add(const fs::path& path) {
  struct ::stat status {};
  if (::stat(path.c_str(), &status) != 0) reject_input("'{}': cannot be read: {}", path.string(), reason_of(errno));
  if (!seen_.emplace(status.st_dev, status.st_ino).second) {
    ++repeated_;
    return;
  }
  std::error_code error;
  const std::uintmax_t bytes = fs::file_size(path, error);
  if (error) reject_input("'{}': cannot be read: {}", path.string(), error.message());
  all_.push_back({path, bytes});
}

Sources find_sources(const TokenizeRequest& request) {
  Sources sources;
  std::error_code error;
  for (const std::string& input : request.inputs) {
    const fs::file_status status = fs::status(input, error);
    if (!fs::exists(status)) reject_input("--input: there is no '{}'", input);
    if (!fs::is_directory(status)) {
      if (is_output(request, input)) reject_input("--input: '{}' is also an output", input);
      sources.add(input);
      continue;
    }
    std::vector<fs::path> found;
    find_files(request, input, found);
    std::ranges::sort(found);
    for (const fs::path& path : found) sources.add(path);
  }
  if (sources.all().empty()) {
    reject_input("--input: no files found{}", request.globs.empty() ? "" : " that match --glob");
  }
  return sources;
}

}  // namespace kvloom
