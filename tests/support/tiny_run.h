// A run of the smallest useful model on a small text, through the command line.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"

namespace kvloom::test {

class TinyRun {
 public:
  TinyRun() {
    std::string text;
    for (int line = 0; line < 400; ++line) text += "line " + std::to_string(line * line % 97) + " of a small text\n";
    folder_.write("text.txt", text);
    std::ofstream(folder_ / "run.pbtxt")
        << "model { layers: 4 hidden: 32 ffn: 48 heads: 4 kv_heads: 2 vocab: 257 context: 32\n"
           "        kv_map: \"sandwich-top:3\" }\n"
           "passes { without_gradient: 2 with_gradient: 2 }\n"
           "data { tokens: \"tokens.h5\" }\n"
           "train { steps: 20 global_batch: 4 micro_batch: 2 learning_rate: 3e-3 warmup_steps: 1 seed: 3\n"
           "        evaluate_every: 10 evaluation_sequences: 4 }\n"
           "output { directory: \"out\" checkpoint_every: 2 keep: 2 }\n";
    tokenized = kvloom({"tokenize", "--input", "text.txt", "--tokenizer", "bytes", "--valid-fraction", "0.1",
                        "--output", "tokens.h5"});
  }

  std::filesystem::path operator/(const std::string& name) const { return folder_ / name; }
  const std::filesystem::path path() const { return folder_.path(); }

  ProcessResult kvloom(std::vector<std::string> arguments, ProcessOptions options = {}) const {
    arguments.insert(arguments.begin(), KVLOOM_BINARY);
    options.folder = folder_.path();
    return run_process(std::move(arguments), options);
  }

  ProcessResult train(std::vector<std::string> more = {}, ProcessOptions options = {}) const {
    std::vector<std::string> arguments = {"train", "--config", "run.pbtxt"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return kvloom(std::move(arguments), std::move(options));
  }

  std::vector<std::string> metrics(const std::string& directory) const {
    std::vector<std::string> lines;
    std::ifstream file(folder_ / directory / "metrics.jsonl");
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }

  // The `"step":..,"loss":..` part of each step's line of metrics, as written.
  std::vector<std::string> losses(const std::string& directory) const {
    std::vector<std::string> losses;
    for (const std::string& line : metrics(directory)) {
      if (line.find("\"loss\":") != std::string::npos) losses.push_back(line.substr(0, line.find(",\"learning_rate")));
    }
    return losses;
  }

  // The `"step":..` and `"validation_loss":..` of each line of metrics that holds one, as written.
  std::vector<std::string> validation_losses(const std::string& directory) const {
    std::vector<std::string> losses;
    for (const std::string& line : metrics(directory)) {
      const std::size_t at = line.find("\"validation_loss\":");
      if (at == std::string::npos) continue;
      losses.push_back(line.substr(0, line.find(',')) + line.substr(at, line.find(',', at) - at));
    }
    return losses;
  }

  ProcessResult tokenized;

 private:
  TemporaryFolder folder_;
};

// A finished training, for tests that only read it. This process and those that it starts compute with one thread: so
// small a model gains nothing by more.
inline std::unique_ptr<TinyRun> trained_tiny_run() {
  ::setenv("OMP_NUM_THREADS", "1", 1);
  auto run = std::make_unique<TinyRun>();
  const ProcessResult trained = run->train();
  EXPECT_EQ(trained.status, 0) << trained.error;
  return run;
}

}  // namespace kvloom::test
