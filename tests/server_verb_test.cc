// `kvloom serve` as a user runs it: start, signals, README's examples, and clients that others wrote.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "tests/support/huggingface_folder.h"
#include "tests/support/server_process.h"
#include "tests/support/small_tokenizer.h"

namespace kvloom {
namespace {

using test::HttpClient;
using test::HttpReply;
using test::ServerProcess;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::ordered_json;

const std::string kConfig =
    R"({"model_type": "llama", "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "eos_token_id": 258})";

class ServeVerb : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    ::setenv("OMP_NUM_THREADS", "1", 1);
    folder_ = new TemporaryFolder();
    test::Random random;
    test::write_huggingface_folder(*folder_, "out", kConfig, DType::kF32, random);
    nlohmann::json tokenizer = test::byte_level_tokenizer();
    tokenizer["added_tokens"].push_back(test::added_token(259, "<|im_start|>"));
    tokenizer["added_tokens"].push_back(test::added_token(260, "<|im_end|>"));
    folder_->write("out/tokenizer.json", tokenizer.dump());
    folder_->write("out/tokenizer_config.json", R"({"eos_token": "<|endoftext|>"})");
  }
  static void TearDownTestSuite() { delete folder_; }

  static std::vector<std::string> words(std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"--checkpoint", "out", "--chat-template", "chatml"});
    return more;
  }
  static test::ProcessResult run(std::vector<std::string> command) {
    test::ProcessOptions options;
    options.folder = folder_->path();
    return test::run_process(std::move(command), options);
  }
  static std::string long_stream() {
    return HttpClient::request_text(
        "POST", "/v1/completions",
        R"({"prompt": "the secret prompt", "max_tokens": 2000, "n": 16, "ignore_eos": true, "stream": true})");
  }

  static TemporaryFolder* folder_;
};

TemporaryFolder* ServeVerb::folder_ = nullptr;

TEST_F(ServeVerb, SaysWhatItServesAndLogsIdsButNoPrompts) {
  ServerProcess server(folder_->path(), words());
  for (const char* row : {"model          out (", "kv map         0_1_2_3", "K/V a token", "K/V pool",
                          "largest batch  256", "mesh           1 rank", "address        http://127.0.0.1:"}) {
    EXPECT_THAT(server.output(), HasSubstr(row));
  }
  const HttpReply reply =
      HttpClient(server.port()).ask("POST", "/v1/completions", R"({"prompt": "the secret prompt", "max_tokens": 3})");
  EXPECT_EQ(reply.status, 200);
  EXPECT_THAT(reply.body, Not(HasSubstr(folder_->path().string()))) << "a path of the machine";
  server.signal(SIGUSR1);
  for (int tries = 0; tries < 500 && server.error().find("state: pages") == std::string::npos; ++tries) {
    std::this_thread::sleep_for(test::Milliseconds(10));
  }
  const std::string log = server.error();
  EXPECT_THAT(log, HasSubstr("state: pages of group 0: "));
  EXPECT_THAT(log, HasSubstr("/v1/completions 200 "));
  EXPECT_THAT(log, HasSubstr(reply.json()["id"].get<std::string>().substr(5))) << "the answer's id";
  EXPECT_THAT(log, Not(HasSubstr("secret")));
  server.signal(SIGTERM);
  EXPECT_EQ(server.wait(), 0);
}

TEST_F(ServeVerb, EndsWithinTheGraceAndTellsItsClients) {
  ServerProcess server(folder_->path(), words({"--grace", "0.3"}));
  HttpClient client(server.port());
  client.send(long_stream());
  HttpReply reply;
  ASSERT_TRUE(client.receive_head(reply));
  ASSERT_TRUE(client.receive_chunk(reply.body));
  const auto start = std::chrono::steady_clock::now();
  server.signal(SIGTERM);
  while (client.receive_chunk(reply.body)) {
  }
  EXPECT_EQ(server.wait(), 0);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  const std::string last = reply.events().back();
  EXPECT_TRUE(last == "[DONE]" || Json::parse(last).contains("error")) << last;
}

TEST_F(ServeVerb, ThatIsKilledClosesItsConnections) {
  ServerProcess server(folder_->path(), words());
  HttpClient client(server.port());
  client.send(long_stream());
  HttpReply reply;
  ASSERT_TRUE(client.receive_head(reply));
  server.signal(SIGKILL);
  const auto start = std::chrono::steady_clock::now();
  while (client.receive_chunk(reply.body)) {
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  EXPECT_EQ(server.wait(), -SIGKILL);
}

TEST_F(ServeVerb, RefusesInOneLineWhatCannotBe) {
  folder_->write("empty.txt", "\n");
  ServerProcess other(folder_->path(), words());
  const auto refused = [&](const std::vector<std::string>& more, const std::string& reason) {
    std::vector<std::string> command = {KVLOOM_BINARY, "serve"};
    for (const std::string& word : words(more)) command.push_back(word);
    test::ProcessOptions options;
    const TemporaryFolder elsewhere;
    options.folder = elsewhere.path();
    command[3] = (*folder_ / "out").string();
    const test::ProcessResult result = test::run_process(command, options);
    EXPECT_EQ(result.status, 2) << result.error;
    EXPECT_EQ(result.error_lines(), 1) << result.error;
    EXPECT_THAT(result.error, HasSubstr(reason));
  };
  refused({"--port", std::to_string(other.port())}, "--port");
  refused({"--host", "no.such.host.invalid"}, "--host");
  refused({"--api-key-file", (*folder_ / "empty.txt").string()}, "--api-key-file");
  refused({"--api-key-file", "nowhere"}, "nowhere");
  refused({"--device", "cuda"}, "--device");
  refused({"--max-body", "much"}, "--max-body");
  refused({"--timeout", "-1"}, "--timeout");
}

TEST_F(ServeVerb, TakesItsKeyFromAFile) {
  folder_->write("key.txt", "a key of mine\n");
  ServerProcess server(folder_->path(), words({"--api-key-file", "key.txt"}));
  EXPECT_EQ(HttpClient(server.port()).ask("GET", "/v1/models").status, 401);
  EXPECT_EQ(HttpClient(server.port()).ask("GET", "/v1/models", "", {{"Authorization", "Bearer a key of mine"}}).status,
            200);
  EXPECT_THAT(server.error() + server.output(), Not(HasSubstr("a key of mine")));
}

// The blocks of README's section that hold curl.
std::vector<std::string> curl_examples() {
  const std::string text = test::content_of(std::string(KVLOOM_SOURCE_DIR) + "/README.md");
  std::vector<std::string> examples;
  std::istringstream lines(text.substr(std::min(text.find("## Serving"), text.size())));
  bool in_block = false;
  for (std::string line; std::getline(lines, line) && !(line.starts_with("## ") && !examples.empty());) {
    if (line.starts_with("```")) in_block = line == "```" && !in_block;
    if (!in_block) continue;
    if (line.starts_with("curl ")) {
      examples.push_back(line);
    } else if (line.starts_with("  -d ") && !examples.empty()) {
      examples.back() += "\n" + line;
    }
  }
  return examples;
}

TEST_F(ServeVerb, ReadmesCurlExamplesAreAnswered) {
  if (std::system("command -v curl >/dev/null") != 0) {
    GTEST_SKIP() << "curl is not installed";
  }
  const std::vector<std::string> examples = curl_examples();
  ASSERT_GE(examples.size(), 4U);
  ServerProcess server(folder_->path(), words());
  for (std::string example : examples) {
    for (std::size_t at = 0; (at = example.find("localhost:8000", at)) != std::string::npos;) {
      example.replace(at, 14, "127.0.0.1:" + std::to_string(server.port()));
    }
    const test::ProcessResult result = run({"bash", "-c", "set -o pipefail; " + example});
    EXPECT_EQ(result.status, 0) << example << "\n" << result.error;
    EXPECT_GT(result.output.size(), 10U) << example;
    EXPECT_THAT(result.output, Not(HasSubstr("\"error\""))) << example;
  }
}

// Programs that others wrote, in a virtual environment of the test's own: KVLOOM_CLIENT_TESTS=1, since installing takes
// longer than all other tests; KVLOOM_CLIENT_VENV names an environment to keep.
class ServeClients : public ServeVerb {
 protected:
  // Python with the packages; empty where there is none, and then why_not_ says why.
  std::string python(const std::string& packages) {
    why_not_ = "clients from PyPI: set KVLOOM_CLIENT_TESTS=1";
    if (std::getenv("KVLOOM_CLIENT_TESTS") == nullptr) return "";
    why_not_ = "clients from PyPI: " + packages + " cannot be installed; is PyPI in reach?";
    const char* kept = std::getenv("KVLOOM_CLIENT_VENV");
    const std::string venv = kept != nullptr ? kept : (*folder_ / "venv").string();
    const std::string make = "(test -x " + venv + "/bin/python || python3 -m venv " + venv + ") && " + venv +
                             "/bin/pip install -q --disable-pip-version-check " + packages + " >/dev/null 2>&1";
    return std::system(make.c_str()) == 0 ? venv + "/bin/python" : "";
  }
  static test::ProcessResult run_patiently(std::vector<std::string> command) {
    test::ProcessOptions options;
    options.folder = folder_->path();
    options.time_limit = test::Milliseconds(500000);
    return test::run_process(std::move(command), options);
  }

  std::string why_not_;
};

TEST_F(ServeClients, OfOpenAIFindWhatTheyExpect) {
  const std::string program = python("'openai>=1.50'");
  if (program.empty()) GTEST_SKIP() << why_not_;
  ServerProcess server(folder_->path(), words({"--api-key", "key"}));
  const test::ProcessResult result = run_patiently(
      {program, std::string(KVLOOM_SOURCE_DIR) + "/tests/fixtures/server/openai_client.py", server.url()});
  EXPECT_EQ(result.status, 0) << result.error;
  std::printf("%s", result.output.c_str());
}

// Log-likelihoods over the server are those of the harness's own model, which `kvloom eval` gives, too.
TEST_F(ServeClients, OfTheHarnessScoreAsItsOwnModel) {
  const std::string program = python("'lm-eval[api]==0.4.13' transformers");
  if (program.empty()) GTEST_SKIP() << why_not_;
  const std::filesystem::path fixtures = std::string(KVLOOM_SOURCE_DIR) + "/tests/fixtures";
  const TemporaryFolder folder;
  std::filesystem::copy(fixtures / "evaluation/model", folder / "out");
  std::filesystem::copy(fixtures / "tokenizers/gpt2/tokenizer.json", folder / "out/tokenizer.json");
  folder.write("out/tokenizer_config.json", R"({"eos_token": "<|endoftext|>"})");
  ServerProcess server(folder.path(), {"--checkpoint", "out"});
  const test::ProcessResult result = run_patiently(
      {program, (fixtures / "server/lm_eval_client.py").string(), server.url(), (fixtures / "evaluation").string()});
  EXPECT_EQ(result.status, 0) << result.error;
  std::printf("%s", result.output.c_str());
}

}  // namespace
}  // namespace kvloom
