// `kvloom serve` as a user runs it, in the background.
#pragma once

#include <csignal>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/http_client.h"
#include "tests/support/process.h"

namespace kvloom::test {

class ServerProcess {
 public:
  // Started in `folder`, at a free port, by `launcher` if there is one. Waits until it answers.
  ServerProcess(const std::filesystem::path& folder, std::vector<std::string> words,
                const std::vector<std::string>& launcher = {})
      : folder_(folder) {
    words.insert(words.begin(), {KVLOOM_BINARY, "serve"});
    words.insert(words.begin(), launcher.begin(), launcher.end());
    words.insert(words.end(), {"--port", "0"});
    process_ = start(std::move(words));
    for (int tries = 0; tries < 6000 && port_ == 0 && is_running(); ++tries) {
      std::this_thread::sleep_for(Milliseconds(10));
      const std::string text = output();
      const std::string mark = "http://127.0.0.1:";
      const std::size_t at = text.find(mark);
      if (at != std::string::npos && text.find('\n', at) != std::string::npos) {
        port_ = static_cast<std::uint16_t>(std::atoi(text.c_str() + at + mark.size()));
      }
    }
    EXPECT_NE(port_, 0) << error();
  }
  ~ServerProcess() {
    if (is_running()) signal(SIGKILL);
    wait();
  }
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  std::uint16_t port() const { return port_; }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  std::string output() const { return content_of(folder_ / "serve.out"); }
  std::string error() const { return content_of(folder_ / "serve.err"); }
  pid_t process() const { return process_; }
  void signal(int number) const { ::kill(process_, number); }
  bool is_running() {
    if (!status_) {
      int status = 0;
      if (::waitpid(process_, &status, WNOHANG) == process_) status_ = status;
    }
    return !status_;
  }
  // Its exit status; -signal when one ended it. It is ended where it does not end by itself.
  int wait(Milliseconds limit = Milliseconds(60000)) {
    const auto end = std::chrono::steady_clock::now() + limit;
    while (is_running() && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(Milliseconds(5));
    if (is_running()) {
      ADD_FAILURE() << "it does not end";
      signal(SIGKILL);
      while (is_running()) std::this_thread::sleep_for(Milliseconds(5));
    }
    return WIFEXITED(*status_) ? WEXITSTATUS(*status_) : -WTERMSIG(*status_);
  }

 private:
  pid_t start(std::vector<std::string> words) const {
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    const std::string out = folder_ / "serve.out";
    const std::string err = folder_ / "serve.err";
    const pid_t child = ::fork();
    if (child != 0) return child;
    ::dup2(::open(out.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644), STDOUT_FILENO);
    ::dup2(::open(err.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644), STDERR_FILENO);
    if (::chdir(folder_.c_str()) == 0) ::execvp(arguments[0], arguments.data());
    ::_exit(127);
  }

  std::filesystem::path folder_;
  pid_t process_;
  std::optional<int> status_;
  std::uint16_t port_ = 0;
};

}  // namespace kvloom::test
