// One server for a unit's tests, asked as OpenAI's API is, beside what the engine says to the same request.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/support/server_fixture.h"

namespace kvloom::test {

inline const std::string kCompletions = "/v1/completions";
inline const std::string kChat = "/v1/chat/completions";

class ServerApi : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    ::setenv("OMP_NUM_THREADS", "1", 1);
    seed_ = Random().seed();
    server_ = new TestServer(seed_);
    offline_ = new OfflineModel(seed_);
  }
  static void TearDownTestSuite() {
    delete server_;
    delete offline_;
  }

  Json completion(Json body) { return server_->answer(kCompletions, body); }
  Json chat(Json body) {
    if (!body.contains("messages")) body["messages"] = {{{"role", "user"}, {"content", "Hello"}}};
    return server_->answer(kChat, body);
  }
  std::vector<Json> stream(const std::string& path, Json body) {
    if (path == kChat && !body.contains("messages")) body["messages"] = {{{"role", "user"}, {"content", "Hello"}}};
    return server_->stream(path, body);
  }
  void expect_refused(const std::string& path, const Json& body, const std::string& param, const std::string& reason,
                      int status = 400) {
    const HttpReply reply = server_->post(path, body);
    EXPECT_EQ(reply.status, status) << body;
    const Json error = reply.json().at("error");
    EXPECT_EQ(error.at("param"), param.empty() ? Json() : Json(param)) << reply.body;
    EXPECT_THAT(error.at("message").get<std::string>(), ::testing::HasSubstr(reason)) << body;
    EXPECT_TRUE(error.at("type").is_string());
    EXPECT_TRUE(error.contains("code"));
  }

  static Request greedy(const std::string& prompt, std::int64_t count) {
    Request request;
    request.prompt = offline_->encode(prompt);
    request.max_new_tokens = count;
    request.sampling.temperature = 0;
    return request;
  }

  const std::string prompt_ = "Once upon a time";
  inline static std::uint64_t seed_ = 0;
  inline static TestServer* server_ = nullptr;
  inline static OfflineModel* offline_ = nullptr;
};

inline std::string text_of(const std::vector<Json>& chunks, int index = 0) {
  std::string text;
  for (const Json& chunk : chunks) {
    for (const Json& choice : chunk.at("choices")) {
      if (choice.at("index") != index) continue;
      text += choice.contains("text") ? choice["text"].get<std::string>() : choice["delta"].value("content", "");
    }
  }
  return text;
}

}  // namespace kvloom::test
