// Runs programs as a user would, and sees what they print and how they end.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace kvloom::test {

struct ProcessResult {
  int status = -1;  // exit status; -signal when a signal ended it
  std::string output;
  std::string error;

  // Lines of standard error.
  std::int64_t error_lines() const { return std::count(error.begin(), error.end(), '\n'); }
};

struct ProcessOptions {
  std::filesystem::path folder;                                     // where it runs
  std::optional<std::pair<int, std::chrono::milliseconds>> signal;  // sent after a time, if it still runs
  std::function<bool()> signal_after = [] { return true; };         // what must hold before that time begins
  std::optional<rlim_t> largest_file;                               // writes beyond fail, as on a full disk
};

inline std::string content_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline ProcessResult run_process(std::vector<std::string> command, const ProcessOptions& options) {
  const std::filesystem::path out = options.folder / "stdout.txt";
  const std::filesystem::path err = options.folder / "stderr.txt";
  std::vector<char*> arguments;
  for (std::string& word : command) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    if (options.largest_file.has_value()) {
      const rlimit limit{*options.largest_file, *options.largest_file};
      setrlimit(RLIMIT_FSIZE, &limit);
      std::signal(SIGXFSZ, SIG_IGN);
    }
    dup2(open(out.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644), STDOUT_FILENO);
    dup2(open(err.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644), STDERR_FILENO);
    if (chdir(options.folder.c_str()) == 0) execvp(arguments[0], arguments.data());
    _exit(127);
  }
  int status = 0;
  bool ended = false;
  if (options.signal.has_value()) {
    const auto runs_while = [&](const auto& holds) {
      while (holds()) {
        if (waitpid(child, &status, WNOHANG) != 0) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      return true;
    };
    ended = !runs_while([&] { return !options.signal_after(); });
    const auto deadline = std::chrono::steady_clock::now() + options.signal->second;
    ended = ended || !runs_while([&] { return std::chrono::steady_clock::now() < deadline; });
    if (!ended) kill(child, options.signal->first);
  }
  if (!ended) waitpid(child, &status, 0);
  ProcessResult result;
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  result.output = content_of(out);
  result.error = content_of(err);
  return result;
}

}  // namespace kvloom::test
