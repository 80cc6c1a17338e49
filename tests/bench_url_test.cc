// `bench serve --url`: a server under load as a client sees it.
#include "infer/load/server_load.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "infer/load/event_stream.h"
#include "kernels/error.h"
#include "tests/support/server_fixture.h"
#include "tests/support/thrown.h"

namespace kvloom::test {
namespace {

ServerLoad load_of(std::uint16_t port) {
  return {.server = {.host = "127.0.0.1", .port = std::to_string(port), .path = ""},
          .vocab = 256,
          .patience_s = 60,
          .load = {.per_second = 200, .requests = 24, .shape = {.prompt_tokens = 40, .new_tokens = 9}}};
}

TEST(EventStream, GivesTheSameEventsHoweverItsBytesAreCut) {
  const std::string bytes =
      ": a comment\r\ndata: {\"a\": 1}\r\n\r\nevent: message\ndata:{\"b\": 2}\n\ndata: [DONE]\n\ndata: late\n\n";
  for (std::size_t piece = 1; piece <= bytes.size(); ++piece) {
    std::vector<std::string> events;
    EventStream stream([&](std::string_view data) { events.emplace_back(data); });
    for (std::size_t at = 0; at < bytes.size(); at += piece) stream.add(std::string_view(bytes).substr(at, piece));
    EXPECT_EQ(events, (std::vector<std::string>{R"({"a": 1})", R"({"b": 2})"})) << piece;
    EXPECT_TRUE(stream.is_done());
  }
}

TEST(ServerUrl, TakesWhatClientsWrite) {
  const auto text = [](const std::string& url) {
    const ServerAddress address = parse_server_url(url);
    return address.host + "|" + address.port + "|" + address.path;
  };
  EXPECT_EQ(text("http://127.0.0.1:8000"), "127.0.0.1|8000|");
  EXPECT_EQ(text("http://localhost/v1/"), "localhost|80|");
  EXPECT_EQ(text("http://[::1]:8000/models/a/v1"), "::1|8000|/models/a");
  EXPECT_EQ(text("http://[::1]"), "::1|80|");
  for (const char* wrong : {"localhost:8000", "https://host", "http://", "http://:80", "http://host:", "http://host:x",
                            "http://me@host", "ftp://host"}) {
    EXPECT_THROW(parse_server_url(wrong), InputError) << wrong;
  }
}

TEST(ServerLoad, EveryRequestIsServedInFullAndTimed) {
  TestServer server(7);
  const ServerLoadResult result = measure_server(load_of(server.port()));
  EXPECT_EQ(result.model, "small");
  EXPECT_EQ(result.failed, 0) << result.first_failure;
  EXPECT_EQ(result.tokens, 24 * 9);
  EXPECT_EQ(server.metric("kvloom_generated_tokens_total"), 24 * 9);
  EXPECT_GT(result.times.first_token.p50, 0);
  EXPECT_GT(result.times.between_tokens.p99, 0);
  EXPECT_LT(result.times.first_token.p50, result.times.whole.p50);
  EXPECT_LE(result.times.whole.p99, result.times.seconds);
  EXPECT_GE(result.times.most_running, 1);
  EXPECT_LE(result.times.most_running, 24);
}

TEST(ServerLoad, WhatTheServerRefusesIsCountedAndSaid) {
  TestServer server(7);
  ServerLoad load = load_of(server.port());
  load.load.requests = 3;
  load.load.shape.prompt_tokens = kServerContext + 1;
  const ServerLoadResult result = measure_server(load);
  EXPECT_EQ(result.failed, 3);
  EXPECT_EQ(result.tokens, 0);
  EXPECT_NE(result.first_failure.find("HTTP 400: "), std::string::npos) << result.first_failure;
  EXPECT_NE(result.first_failure.find(std::to_string(kServerContext)), std::string::npos) << result.first_failure;
}

TEST(ServerLoad, KeysAreShown) {
  TestServerOptions options;
  options.server.api_key = "open sesame";
  TestServer server(7, options);
  ServerLoad load = load_of(server.port());
  load.load.requests = 2;
  EXPECT_NE(message_of([&] { measure_server(load); }).find("HTTP 401"), std::string::npos);
  load.api_key = "open sesame";
  EXPECT_EQ(measure_server(load).failed, 0);
}

TEST(ServerLoad, AServerThatIsNotThereIsNamed) {
  std::uint16_t port = 0;
  {
    TestServer server(7);
    port = server.port();
  }
  const std::string message = message_of([&] { measure_server(load_of(port)); });
  EXPECT_NE(message.find("127.0.0.1:" + std::to_string(port)), std::string::npos) << message;
}

}  // namespace
}  // namespace kvloom::test
