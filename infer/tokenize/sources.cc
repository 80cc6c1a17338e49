#include "infer/tokenize/sources.h"

#include <fnmatch.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>

#include "core/file.h"
#include "core/same_file.h"
#include "kernels/error.h"

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

// Where a link leads to no file: nothing, a circle, or a folder, which is not entered.
bool leads_to_no_file(const fs::directory_entry& entry) {
  std::error_code error;
  const fs::file_status status = entry.status(error);
  return status.type() == fs::file_type::not_found || error == std::errc::too_many_symbolic_link_levels ||
         fs::is_directory(status);
}

}  // namespace

bool is_output(const TokenizeRequest& request, const fs::path& path) {
  return is_same_file(path, request.output) || (!request.save_model.empty() && is_same_file(path, request.save_model));
}

Sources::Sources(const TokenizeRequest& request)
    : request_(request), bytes_(request.tokenizer == "bytes" ? BytesRule::kAnyBytes : BytesRule::kText) {
  std::error_code error;
  for (const std::string& input : request.inputs) {
    if (SpooledInput::is_needed(input)) {
      spooled_.push_back(std::make_unique<SpooledInput>(input, request.output, spooled_.size()));
      add(spooled_.back()->path(), input == "-" ? "standard input" : input);
      continue;
    }
    const fs::file_status status = fs::status(input, error);
    if (!fs::exists(status)) reject_input("--input: there is no '{}'", input);
    if (!fs::is_directory(status)) {
      if (is_output(request, input)) reject_input("--input: '{}' is also an output", input);
      add(input, input);
      continue;
    }
    std::vector<fs::path> found;
    find(input, found);
    std::ranges::sort(found);
    for (const fs::path& path : found) add(path, path.string());
  }
  if (!all_.empty()) return;
  reject_input("--input: no files found{}{}", request.globs.empty() ? "" : " that match --glob",
               hidden_ == 0 ? "" : fmt::format("; {} hidden ones were left out (--hidden takes them)", hidden_));
}

void Sources::add(const fs::path& path, const std::string& name) {
  struct ::stat status {};
  if (::stat(path.c_str(), &status) != 0) reject_input("'{}': cannot be read: {}", name, reason_of(errno));
  if (!seen_.emplace(status.st_dev, status.st_ino).second) {
    ++repeated_;
    return;
  }
  all_.push_back({look_at(path, request_.form, bytes_), name});
}

void Sources::find(const fs::path& folder, std::vector<fs::path>& found) {
  std::error_code error;
  fs::directory_iterator entries(folder, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const fs::path& path = entries->path();
    if (is_output_or_part(request_, path)) continue;
    if (request_.hidden == HiddenFiles::kSkip && path.filename().string()[0] == '.') {
      ++hidden_;
      continue;
    }
    std::error_code unknown;
    if (fs::is_directory(entries->symlink_status(unknown))) {
      find(path, found);
    } else if (is_taken(*entries)) {
      found.push_back(path);
    }
  }
  if (error) reject_input("--input: '{}' cannot be read: {}", folder.string(), error.message());
}

bool Sources::is_taken(const fs::directory_entry& entry) {
  if (!matches(request_.globs, entry.path())) return false;
  std::error_code error;
  if (entry.is_symlink(error) && leads_to_no_file(entry)) {
    ++skipped_links_;
    return false;
  }
  const fs::file_status status = entry.status(error);
  if (!fs::status_known(status)) {
    reject_input("--input: '{}' cannot be read: {}", entry.path().string(), error.message());
  }
  return fs::is_regular_file(status);
}

}  // namespace kvloom
