// Connections: limits, time-outs, clients that go, that are slow, or that send what is no HTTP.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "infer/server/http_server.h"
#include "tests/support/http_client.h"
#include "tests/support/mutate.h"
#include "tests/support/sanitized.h"

namespace kvloom {
namespace {

using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

// Answers /echo with what was sent, and keeps /wait for the test to answer.
class HttpServing {
 public:
  explicit HttpServing(HttpLimits limits = {})
      : server_({.host = "127.0.0.1",
                 .port = 0,
                 .limits = limits,
                 .handle = [this](HttpRequest request,
                                  std::shared_ptr<Exchange> answer) { handle(std::move(request), std::move(answer)); },
                 .refuse =
                     [](int status, const std::string& reason) {
                       return HttpResponse{status, "text/plain", reason, {}};
                     },
                 .record =
                     [this](const HttpRecord& record) {
                       const std::lock_guard lock(mutex_);
                       records_.push_back(record);
                     }}),
        thread_([this] { server_.run(); }) {}
  ~HttpServing() {
    server_.stop();
    thread_.join();
  }

  std::uint16_t port() const { return server_.port(); }
  HttpServer& server() { return server_; }
  std::shared_ptr<Exchange> waiting() {
    for (int tries = 0; tries < 2000; ++tries) {
      {
        const std::lock_guard lock(mutex_);
        if (waiting_) return std::exchange(waiting_, nullptr);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    ADD_FAILURE() << "no request came";
    return nullptr;
  }
  std::vector<HttpRecord> records() {
    const std::lock_guard lock(mutex_);
    return records_;
  }
  bool eventually(const std::function<bool()>& holds) {
    for (int tries = 0; tries < 3000 && !holds(); ++tries) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return holds();
  }

 private:
  void handle(HttpRequest request, std::shared_ptr<Exchange> answer) {
    if (request.path == "/wait") {
      const std::lock_guard lock(mutex_);
      waiting_ = std::move(answer);
      return;
    }
    answer->answer(
        {200, "text/plain", request.method + " " + request.path + " " + request.body, {{"X-Bad", "a\r\nb: c"}}});
  }

  std::mutex mutex_;
  std::shared_ptr<Exchange> waiting_;
  std::vector<HttpRecord> records_;
  HttpServer server_;
  std::thread thread_;
};

std::string echo(const std::string& body) { return test::HttpClient::request_text("POST", "/echo?x=1", body); }

TEST(ServerHttp, OneConnectionTakesManyRequestsEvenSentAtOnce) {
  HttpServing serving;
  test::HttpClient client(serving.port());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client.ask("POST", "/echo", "body").body, "POST /echo body");
  client.send(echo("one") + echo("two") + echo(std::string(20000, 'x')));
  EXPECT_EQ(client.receive().body, "POST /echo one");
  EXPECT_EQ(client.receive().body, "POST /echo two");
  EXPECT_EQ(client.receive().body, "POST /echo " + std::string(20000, 'x'));
  const test::HttpReply head = client.ask("HEAD", "/echo");
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(client.ask("GET", "/echo").body, "GET /echo ") << "what HEAD left out would stand here";
  EXPECT_EQ(head.header("X-Bad"), "ab: c") << "a value that ends a line would be a header of its own";
  EXPECT_EQ(head.header("b"), "");
}

TEST(ServerHttp, AStreamIsChunkedAndEndsWhole) {
  HttpServing serving;
  test::HttpClient client(serving.port());
  client.send(test::HttpClient::request_text("GET", "/wait", ""));
  const auto answer = serving.waiting();
  answer->begin({200, "text/event-stream", "first;", {}});
  std::thread writer([&] {
    for (int i = 0; i < 100; ++i) answer->write(std::to_string(i) + ";");
    answer->end();
  });
  const test::HttpReply reply = client.receive();
  writer.join();
  EXPECT_TRUE(reply.whole);
  std::string wanted = "first;";
  for (int i = 0; i < 100; ++i) wanted += std::to_string(i) + ";";
  EXPECT_EQ(reply.body, wanted);
  EXPECT_EQ(client.ask("GET", "/echo").status, 200) << "the connection goes on";
}

TEST(ServerHttp, AnOldClientGetsAStreamThatEndsWithTheConnection) {
  HttpServing serving;
  test::HttpClient client(serving.port());
  client.send("GET /wait HTTP/1.0\r\n\r\n");
  const auto answer = serving.waiting();
  answer->begin({200, "text/plain", "abc", {}});
  answer->write("def");
  answer->end();
  const test::HttpReply reply = client.receive();
  EXPECT_EQ(reply.body, "abcdef");
  EXPECT_EQ(reply.header("Transfer-Encoding"), "");
}

// l#24496: a client that goes is noticed while nothing is written, and while much is.
TEST(ServerHttp, AClientThatGoesIsNoticedAtOnce) {
  HttpServing serving;
  for (const bool streaming : {false, true}) {
    for (const bool abrupt : {false, true}) {
      test::HttpClient client(serving.port());
      client.send(test::HttpClient::request_text("GET", "/wait", ""));
      const auto answer = serving.waiting();
      std::atomic<int> gone = 0;
      answer->when_gone([&] { ++gone; });
      if (streaming) answer->begin({200, "text/plain", "x", {}});
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      EXPECT_EQ(gone, 0);
      const auto start = Clock::now();
      abrupt ? client.reset() : client.close();
      EXPECT_TRUE(serving.eventually([&] { return gone == 1; }));
      EXPECT_LT(Clock::now() - start, std::chrono::seconds(2));
      answer->write("nobody reads this");
      answer->end();
      EXPECT_TRUE(serving.eventually([&] { return serving.server().connections() == 0; }));
      EXPECT_EQ(gone, 1);
    }
  }
  EXPECT_EQ(serving.records().back().outcome, "client went");
}

TEST(ServerHttp, ASlowReaderIsDroppedAndNotBufferedWithoutEnd) {
  HttpServing serving({.unsent_bytes = 256 << 10, .send_buffer_bytes = 16 << 10});
  test::HttpClient client(serving.port(), 4096);
  client.send(test::HttpClient::request_text("GET", "/wait", ""));
  const auto answer = serving.waiting();
  std::atomic<int> gone = 0;
  answer->when_gone([&] { ++gone; });
  answer->begin({200, "text/plain", "x", {}});
  std::size_t written = 0;
  while (gone == 0 && written < (std::size_t{8} << 20)) {
    answer->write(std::string(1000, 'y'));
    written += 1000;
    if (written % 100000 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(gone, 1);
  EXPECT_LT(written, std::size_t{2} << 20);
  EXPECT_TRUE(serving.eventually([&] { return serving.server().connections() == 0; }));
  EXPECT_EQ(serving.records().back().outcome, "client too slow");
}

TEST(ServerHttp, AReaderThatTakesNothingIsDroppedInTime) {
  HttpServing serving(
      {.unsent_bytes = 1 << 30, .send_buffer_bytes = 16 << 10, .write_time = std::chrono::milliseconds(200)});
  test::HttpClient client(serving.port(), 4096);
  client.send(test::HttpClient::request_text("GET", "/wait", ""));
  const auto answer = serving.waiting();
  answer->begin({200, "text/plain", std::string(8 << 20, 'x'), {}});
  EXPECT_TRUE(serving.eventually([&] { return serving.server().connections() == 0; }));
  EXPECT_EQ(serving.records().back().outcome, "client too slow");
}

TEST(ServerHttp, LimitsAnswerWith413And431And408) {
  HttpServing serving({.header_bytes = 4096,
                       .body_bytes = 10000,
                       .header_time = std::chrono::milliseconds(200),
                       .body_time = std::chrono::milliseconds(200)});
  const auto status_of = [&](const std::string& bytes) {
    test::HttpClient client(serving.port());
    client.send(bytes);
    return client.receive().status;
  };
  EXPECT_EQ(status_of(echo(std::string(10000, 'x'))), 200);
  EXPECT_EQ(status_of(echo(std::string(10001, 'x'))), 413);
  EXPECT_EQ(status_of(echo(std::string(3 << 20, 'x'))), 413) << "and the client could read it";
  EXPECT_EQ(status_of("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"), 413);
  EXPECT_EQ(status_of("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\nExpect: 100-continue\r\n\r\n"), 413);
  std::string chunks = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 20; ++i) chunks += "400\r\n" + std::string(1024, 'x') + "\r\n";
  EXPECT_EQ(status_of(chunks + "0\r\n\r\n"), 413);
  EXPECT_EQ(status_of("GET /echo HTTP/1.1\r\nX: " + std::string(5000, 'x') + "\r\n\r\n"), 431);
  EXPECT_EQ(status_of("GET /echo HTTP/1.1\r\nHost: x\r\n"), 408);
  EXPECT_EQ(status_of("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"), 408);
  EXPECT_EQ(status_of("nonsense\r\n\r\n"), 400);
  EXPECT_EQ(status_of("POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), 400);
  EXPECT_EQ(status_of("POST /echo HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), 400);
}

TEST(ServerHttp, ABodyThatIsAnnouncedIsAskedFor) {
  HttpServing serving;
  test::HttpClient client(serving.port());
  client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
  while (client.unread().find("\r\n\r\n") == std::string::npos) ASSERT_TRUE(client.read_more());
  EXPECT_THAT(client.unread(), HasSubstr("100 Continue"));
  client.send("abc");
  EXPECT_EQ(client.receive().body, "POST /echo abc");
}

TEST(ServerHttp, IdleConnectionsAreClosedAndTooManyTurnedAway) {
  HttpServing serving({.connections = 2, .idle_time = std::chrono::milliseconds(200)});
  test::HttpClient one(serving.port());
  test::HttpClient two(serving.port());
  EXPECT_EQ(one.ask("GET", "/echo").status, 200);
  EXPECT_EQ(two.ask("GET", "/echo").status, 200);
  {
    test::HttpClient three(serving.port());
    EXPECT_EQ(three.ask("GET", "/echo").status, 503);
  }
  EXPECT_FALSE(one.read_more()) << "it was idle for too long";
  EXPECT_TRUE(serving.eventually([&] { return serving.server().connections() == 0; }));
  EXPECT_EQ(test::HttpClient(serving.port()).ask("GET", "/echo").status, 200);
}

TEST(ServerHttp, DrainingLetsAnAnswerEndAndStoppingDoesNot) {
  HttpServing serving;
  test::HttpClient idle(serving.port());
  EXPECT_EQ(idle.ask("GET", "/echo").status, 200);
  test::HttpClient client(serving.port());
  client.send(test::HttpClient::request_text("GET", "/wait", ""));
  const auto answer = serving.waiting();
  serving.server().drain();
  EXPECT_FALSE(idle.read_more());
  EXPECT_TRUE(serving.eventually([&] { return !test::HttpClient(serving.port()).connected(); }));
  answer->answer({200, "text/plain", "whole", {}});
  const test::HttpReply reply = client.receive();
  EXPECT_EQ(reply.body, "whole");
  EXPECT_EQ(reply.header("Connection"), "close");
  EXPECT_FALSE(client.read_more());
}

TEST(ServerHttp, DamagedRequestsGet4xxOrAClosedConnectionAndHurtNobody) {
  HttpServing serving({.header_time = std::chrono::milliseconds(300), .body_time = std::chrono::milliseconds(300)});
  test::Random random;
  const std::vector<std::string> seeds = {
      echo("{\"prompt\": \"text\"}"), "GET / HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nCookie: a=b\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"};
  const int count = test::repetitions(2000, 500, "damaged requests");
  for (int i = 0; i < count; ++i) {
    test::HttpClient client(serving.port());
    const std::string bytes =
        i % 3 == 0
            ? test::mutated(seeds[static_cast<std::size_t>(random.integer(0, 2))], random)
            : test::mutated(test::mutated(seeds[static_cast<std::size_t>(random.integer(0, 2))], random), random);
    client.send(bytes);
    ::shutdown(client.descriptor(), SHUT_WR);
    const test::HttpReply reply = client.receive();
    EXPECT_TRUE(reply.status == 0 || reply.status == 200 || (reply.status >= 400 && reply.status < 500))
        << reply.status << ": " << bytes;
    client.close();
    ASSERT_TRUE(serving.eventually([&] { return serving.server().connections() == 0; }))
        << reply.status << ": " << bytes;
  }
  EXPECT_EQ(test::HttpClient(serving.port()).ask("GET", "/echo").status, 200);
  EXPECT_TRUE(serving.eventually([&] { return serving.server().connections() == 0; }));
}

}  // namespace
}  // namespace kvloom
