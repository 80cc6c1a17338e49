// A server over a small model of random weights, in this process, and the same model for what it should answer.
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "infer/server/server.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/http_client.h"
#include "tests/support/small_tokenizer.h"

namespace kvloom::test {

using Json = nlohmann::ordered_json;

inline constexpr std::int64_t kServerContext = 512;

// The 256 bytes, "ab" and " ab", and the special tokens of ChatML.
inline std::unique_ptr<Tokenizer> server_tokenizer() {
  nlohmann::json json = byte_level_tokenizer();
  json["added_tokens"].push_back(added_token(259, "<|im_start|>"));
  json["added_tokens"].push_back(added_token(260, "<|im_end|>"));
  return tokenizer_from(json, R"({"eos_token": "<|endoftext|>"})");
}

inline proto::ModelConfig server_model(const std::string& map) {
  proto::ModelConfig config = small_model(4, map, 8);
  config.set_vocab(264);  // three ids pad it
  config.set_context(kServerContext);
  return config;
}

struct TestServerOptions {
  std::string map = "sandwich-top:3";
  ServerOptions server;
  EngineOptions engine;
  bool broken = false;  // its weights are no numbers
};

class TestServer {
 public:
  explicit TestServer(std::uint64_t seed, TestServerOptions options = {})
      : random_(seed), built_(server_model(options.map), random_), tokenizer_(server_tokenizer()) {
    if (options.broken) break_weights();
    if (options.engine.grid == 512) options.engine.grid = 64;
    if (options.engine.page_size == 32) options.engine.page_size = 16;
    options.engine.tolerance = 0;  // so that pages which decoding filled have the bits of those of a prompt
    options.server.port = 0;
    options.server.model_name = "small";
    engine_ = std::make_unique<Engine>(built_.model, options.engine);
    server_ = std::make_unique<Server>(*engine_, texts(), options.server);
    thread_ = std::thread([this] { server_->run(); });
  }
  ~TestServer() { stop(); }

  void stop(double grace = 0) {
    server_->drain(grace);
    if (thread_.joinable()) thread_.join();
  }
  void drain(double grace) { server_->drain(grace); }
  void join() { thread_.join(); }

  std::uint16_t port() const { return server_->port(); }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // What the model's tensors take, those that wait to be used again too.
  double tensors_mib() const {
    const AllocatorStatistics statistics = built_.allocator.statistics();
    return static_cast<double>(statistics.held_bytes + statistics.cached_bytes) / (1 << 20);
  }

  HttpReply ask(const std::string& method, const std::string& path, const std::string& body = {},
                const HttpClient::Headers& headers = {}) const {
    return HttpClient(port()).ask(method, path, body, headers);
  }
  HttpReply post(const std::string& path, const Json& body) const {
    return ask("POST", path, body.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  Json answer(const std::string& path, const Json& body) const {
    const HttpReply reply = post(path, body);
    EXPECT_EQ(reply.status, 200) << reply.body;
    return reply.json();
  }
  // The chunks of a stream that ends as it should.
  std::vector<Json> stream(const std::string& path, Json body) const {
    body["stream"] = true;
    const HttpReply reply = post(path, body);
    EXPECT_EQ(reply.status, 200) << reply.body;
    EXPECT_TRUE(reply.whole);
    std::vector<std::string> events = reply.events();
    EXPECT_FALSE(events.empty());
    if (events.empty()) return {};
    EXPECT_EQ(events.back(), "[DONE]");
    events.pop_back();
    std::vector<Json> chunks;
    for (const std::string& event : events) chunks.push_back(Json::parse(event));
    return chunks;
  }

  // A number of /metrics.
  double metric(const std::string& name) const {
    const std::string text = ask("GET", "/metrics").body;
    const std::size_t at = text.find("\n" + name + " ");
    EXPECT_NE(at, std::string::npos) << name << " is not in\n" << text;
    return at == std::string::npos ? -1 : std::strtod(text.c_str() + at + name.size() + 2, nullptr);
  }
  // Waits until it holds; false after a while.
  static bool eventually(const std::function<bool()>& holds) {
    for (int tries = 0; tries < 2000; ++tries) {
      if (holds()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }
  bool is_idle() const { return metric("kvloom_texts") == 0; }
  double held_pages() const { return metric("kvloom_pages{group=\"0\",state=\"held\"}"); }

 private:
  void break_weights() {
    for (const Parameter& parameter : built_.model.layout().all()) {
      if (parameter.shape.size() != 1) continue;
      const std::vector<float> nothing(static_cast<std::size_t>(parameter.shape[0]),
                                       std::numeric_limits<float>::quiet_NaN());
      built_.model.put(parameter, 0, Tensor::of<float>(built_.allocator, parameter.shape, nothing));
    }
  }

  ModelTexts texts() const {
    ModelTexts texts;
    texts.tokenizer = tokenizer_.get();
    texts.chat = chat_template_of(*tokenizer_, "chatml", "the model");
    return texts;
  }

  Random random_;
  EngineModel built_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Server> server_;
  std::thread thread_;
};

// What the engine says to a request, with nothing between.
class OfflineModel {
 public:
  explicit OfflineModel(std::uint64_t seed, const std::string& map = "sandwich-top:3")
      : random_(seed), built_(server_model(map), random_), tokenizer_(server_tokenizer()) {
    EngineOptions options;
    options.grid = 64;
    options.page_size = 16;
    options.tolerance = 0;
    engine_ = std::make_unique<Engine>(built_.model, options);
  }

  std::vector<Answer> answers(Request request) {
    if (request.ends.empty()) request.ends = {258, 261, 262, 263};
    const RequestId id = engine_->submit(request);
    Answers all = run_to_end(*engine_);
    std::vector<Answer> answers;
    for (int k = 0; k < request.n; ++k) answers.push_back(all[{id, k}]);
    return answers;
  }
  Answer answer(const Request& request) { return answers(request).front(); }
  std::string text(const std::vector<std::int32_t>& tokens) const {
    TextStream stream(*tokenizer_, {.place = Place::kMiddle});
    std::string text;
    for (const std::int32_t token : tokens) text += stream.push(token).text;
    return text + stream.finish().text;
  }
  std::vector<std::int32_t> encode(const std::string& text) const { return tokenizer_->encode(text); }
  const Tokenizer& tokenizer() const { return *tokenizer_; }

 private:
  Random random_;
  EngineModel built_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace kvloom::test
