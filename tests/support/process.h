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

using Milliseconds = std::chrono::milliseconds;

struct ProcessResult {
  int status = -1;  // exit status; -signal when a signal ended it
  std::string output;
  std::string error;
  Milliseconds after_signal{0};  // from ProcessOptions::signal to the end

  // Lines of standard error.
  std::int64_t error_lines() const { return std::count(error.begin(), error.end(), '\n'); }
};

struct ProcessOptions {
  std::filesystem::path folder;                              // where it runs
  std::optional<std::pair<int, Milliseconds>> signal;        // sent after a time, if it still runs
  std::function<bool()> signal_after = [] { return true; };  // what must hold before that time begins
  // Whom the signal goes to: the process itself, given, or one that it has started.
  std::function<pid_t(pid_t)> signal_to = [](pid_t process) { return process; };
  std::optional<rlim_t> largest_file;   // writes beyond fail, as on a full disk
  std::optional<rlim_t> address_space;  // bytes; memory beyond is refused. Never with a sanitizer, which takes it all
  Milliseconds time_limit{120000};      // then it is ended, first with SIGTERM: a hang fails instead of lasting
};

inline std::string content_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void limit_resource(decltype(RLIMIT_AS) resource, rlim_t most) {
  const rlimit limit{most, most};
  setrlimit(resource, &limit);
}

// Becomes this program once more, started in the same words and with the environment as it now is. Where a dynamic
// loader was told to start it (launch/bundle_start), the file of the process is the loader, and so are the first words,
// which `main` does not hear. Returns when that is not possible.
inline void start_again() {
  std::string words = content_of("/proc/self/cmdline");  // each ends with a zero
  std::vector<char*> arguments;
  for (std::size_t at = 0; at < words.size(); at = words.find('\0', at) + 1) arguments.push_back(words.data() + at);
  arguments.push_back(nullptr);
  execv("/proc/self/exe", arguments.data());
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
      limit_resource(RLIMIT_FSIZE, *options.largest_file);
      std::signal(SIGXFSZ, SIG_IGN);
    }
    if (options.address_space.has_value()) limit_resource(RLIMIT_AS, *options.address_space);
    dup2(open(out.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644), STDOUT_FILENO);
    dup2(open(err.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644), STDERR_FILENO);
    if (chdir(options.folder.c_str()) == 0) execvp(arguments[0], arguments.data());
    _exit(127);
  }
  ProcessResult result;
  int status = 0;
  bool ended = false;
  const auto start = std::chrono::steady_clock::now();
  const auto has_passed = [](std::chrono::steady_clock::time_point since, Milliseconds time) {
    return std::chrono::steady_clock::now() >= since + time;
  };
  // Until it ends, something holds or its time is up.
  const auto wait_until = [&](const auto& holds, Milliseconds limit) {
    while (!ended && !holds() && !has_passed(start, limit)) {
      ended = waitpid(child, &status, WNOHANG) != 0;
      if (!ended) std::this_thread::sleep_for(Milliseconds(1));
    }
  };
  const auto never = [] { return false; };
  if (options.signal.has_value()) {
    wait_until(options.signal_after, options.time_limit);
    const auto held = std::chrono::steady_clock::now();
    wait_until([&] { return has_passed(held, options.signal->second); }, options.time_limit);
    const pid_t target = ended ? -1 : options.signal_to(child);
    if (target > 0) kill(target, options.signal->first);
  }
  const auto signalled = std::chrono::steady_clock::now();
  wait_until(never, options.time_limit);
  if (!ended) kill(child, SIGTERM);
  wait_until(never, options.time_limit + Milliseconds(10000));
  if (!ended) {
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
  }
  result.after_signal = std::chrono::duration_cast<Milliseconds>(std::chrono::steady_clock::now() - signalled);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  result.output = content_of(out);
  result.error = content_of(err);
  return result;
}

}  // namespace kvloom::test
