// Many clients at one time: those that vanish, that are slow, that wait in the queue, and a server that stops.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "infer/unicode.h"
#include "tests/support/mutate.h"
#include "tests/support/sanitized.h"
#include "tests/support/server_fixture.h"

namespace kvloom {
namespace {

using test::HttpClient;
using test::HttpReply;
using test::Json;
using test::TestServer;
using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

const std::string kCompletions = "/v1/completions";

std::string post_text(const Json& body) { return HttpClient::request_text("POST", kCompletions, body.dump()); }

// Long enough that it runs while a test looks.
Json long_request(int seed = 1) {
  return {{"prompt", "go on"}, {"max_tokens", 480}, {"n", 8}, {"ignore_eos", true}, {"seed", seed}, {"stream", true}};
}

std::string text_of(const HttpReply& reply) {
  std::string text;
  for (const std::string& event : reply.events()) {
    if (event == "[DONE]") continue;
    const Json parsed = Json::parse(event);
    for (const Json& choice : parsed.at("choices")) text += choice.at("text").get<std::string>();
  }
  return text;
}

bool done(const HttpReply& reply) { return reply.whole && reply.body.ends_with("data: [DONE]\n\n"); }

double resident_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) return std::strtod(line.c_str() + 6, nullptr) / 1024;
  }
  return 0;
}

class ServerLoad : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { ::setenv("OMP_NUM_THREADS", "1", 1); }
  const std::uint64_t seed_ = test::Random().seed();
};

// l#24496, l#13262, s#36552, v#53936
TEST_F(ServerLoad, AClientThatGoesFreesItsPagesAndNobodyElses) {
  test::OfflineModel offline(seed_);
  TestServer server(seed_);
  Request request;
  request.prompt = offline.encode("stay with me");
  request.max_new_tokens = 300;
  request.sampling = {.temperature = 1, .seed = 9};
  request.ends = {261, 262, 263};
  const std::string wanted = offline.text(offline.answer(request).tokens);
  HttpClient stays(server.port());
  const Json stay = {
      {"prompt", "stay with me"}, {"max_tokens", 300}, {"seed", 9}, {"stream", true}, {"ignore_eos", true}};
  HttpClient goes(server.port());
  goes.send(post_text(long_request()));
  stays.send(post_text(stay));
  HttpReply reply;
  ASSERT_TRUE(goes.receive_head(reply));
  ASSERT_TRUE(goes.receive_chunk(reply.body));
  goes.reset();
  const HttpReply whole = stays.receive();
  EXPECT_TRUE(done(whole)) << whole.head << whole.body;
  EXPECT_EQ(text_of(whole), wanted);
  EXPECT_TRUE(TestServer::eventually([&] { return server.is_idle(); }));
  EXPECT_EQ(server.held_pages(), 0);
  EXPECT_GE(server.metric("kvloom_cancellations_total"), 1);
}

TEST_F(ServerLoad, AClientThatGoesWhileItsRequestIsQueuedNeverRuns) {
  test::TestServerOptions options;
  options.engine.max_sequences = 1;
  TestServer server(seed_, options);
  HttpClient runs(server.port());
  runs.send(post_text(long_request()));
  HttpReply reply;
  ASSERT_TRUE(runs.receive_head(reply));
  const double before = server.metric("kvloom_texts");
  HttpClient waits(server.port());
  waits.send(post_text(long_request(2)));
  ASSERT_TRUE(TestServer::eventually([&] { return server.metric("kvloom_texts") > before; }));
  waits.close();
  EXPECT_TRUE(TestServer::eventually([&] { return server.metric("kvloom_texts") <= before; }));
  // Whole answers, too, whose clients are noticed only because a read is pending.
  HttpClient whole(server.port());
  Json body = long_request(3);
  body["stream"] = false;
  whole.send(post_text(body));
  ASSERT_TRUE(TestServer::eventually([&] { return server.metric("kvloom_texts") > before; }));
  whole.close();
  EXPECT_TRUE(TestServer::eventually([&] { return server.metric("kvloom_texts") <= before; }));
  runs.close();
  EXPECT_TRUE(TestServer::eventually([&] { return server.is_idle(); }));
  EXPECT_EQ(server.held_pages(), 0);
}

TEST_F(ServerLoad, MoreThanTheServerHoldsIs429WithRetryAfter) {
  test::TestServerOptions options;
  options.server.most_texts = 8;
  TestServer server(seed_, options);
  HttpClient runs(server.port());
  runs.send(post_text(long_request()));
  HttpReply head;
  ASSERT_TRUE(runs.receive_head(head));
  const HttpReply refused = server.post(kCompletions, {{"prompt", "x"}});
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.header("Retry-After"), "1");
  EXPECT_EQ(refused.json()["error"]["code"], "rate_limit_exceeded");
  runs.close();
  EXPECT_TRUE(TestServer::eventually([&] { return server.post(kCompletions, {{"prompt", "x"}}).status == 200; }));
}

TEST_F(ServerLoad, ARequestThatTakesTooLongEndsWithAnError) {
  test::TestServerOptions options;
  options.server.request_seconds = 0.05;
  TestServer server(seed_, options);
  Json body = long_request();
  const HttpReply streamed = server.post(kCompletions, body);
  EXPECT_EQ(streamed.status, 200);
  EXPECT_TRUE(streamed.whole);
  EXPECT_EQ(Json::parse(streamed.events().back())["error"]["type"], "timeout_error");
  body["stream"] = false;
  const HttpReply whole = server.post(kCompletions, body);
  EXPECT_EQ(whole.status, 408);
  EXPECT_EQ(whole.json()["error"]["type"], "timeout_error");
  EXPECT_TRUE(TestServer::eventually([&] { return server.is_idle(); }));
  EXPECT_EQ(server.held_pages(), 0);
}

// l#20799
TEST_F(ServerLoad, HealthIsNeverBehindWorkers) {
  TestServer server(seed_);
  std::string text;
  while (text.size() < (std::size_t{2} << 20)) text += "word and word ";
  const std::string body = Json({{"prompt", text}}).dump();
  std::vector<std::unique_ptr<HttpClient>> busy;
  for (int i = 0; i < 4; ++i) {
    busy.push_back(std::make_unique<HttpClient>(server.port()));
    busy.back()->send(HttpClient::request_text("POST", "/tokenize", body));
  }
  const auto start = Clock::now();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(server.ask("GET", "/health").status, 200);
  const double health = std::chrono::duration<double>(Clock::now() - start).count();
  for (const auto& client : busy) EXPECT_EQ(client->receive().status, 200);
  const double all = std::chrono::duration<double>(Clock::now() - start).count();
  std::printf("20 times /health took %.3f s beside four texts of 2 MiB that took %.3f s\n", health, all);
  EXPECT_LT(health, std::max(1.0, 0.7 * all));
}

TEST_F(ServerLoad, DrainingLetsStreamsEndWithinTheGrace) {
  TestServer server(seed_);
  HttpClient client(server.port());
  client.send(post_text({{"prompt", "a"}, {"max_tokens", 200}, {"seed", 1}, {"stream", true}}));
  HttpReply reply;
  ASSERT_TRUE(client.receive_head(reply));
  server.drain(30);
  EXPECT_TRUE(TestServer::eventually([&] { return !HttpClient(server.port()).connected(); }));
  while (client.receive_chunk(reply.body)) {
  }
  EXPECT_TRUE(reply.body.ends_with("data: [DONE]\n\n"));
  server.join();
}

TEST_F(ServerLoad, AfterTheGraceAStreamEndsWithAnErrorEvent) {
  test::TestServerOptions options;
  options.engine.max_sequences = 1;
  TestServer server(seed_, options);
  HttpClient client(server.port());
  client.send(post_text(long_request()));
  HttpClient queued(server.port());
  Json body = long_request(2);
  body["stream"] = false;
  queued.send(post_text(body));
  HttpReply reply;
  ASSERT_TRUE(client.receive_head(reply));
  ASSERT_TRUE(TestServer::eventually([&] { return server.metric("kvloom_texts") > 8; }));
  server.drain(0);
  while (client.receive_chunk(reply.body)) {
  }
  ASSERT_FALSE(reply.events().empty());
  EXPECT_EQ(Json::parse(reply.events().back())["error"]["type"], "service_unavailable_error");
  const HttpReply late = queued.receive();
  EXPECT_EQ(late.status, 503);
  EXPECT_EQ(late.header("Retry-After"), "5");
  server.join();
}

TEST_F(ServerLoad, AModelWithoutNumbersIsAnErrorAndNotTheEndOfTheServer) {
  test::TestServerOptions options;
  options.broken = true;
  TestServer server(seed_, options);
  const HttpReply whole = server.post(kCompletions, {{"prompt", "x"}, {"n", 2}});
  EXPECT_EQ(whole.status, 500);
  EXPECT_EQ(whole.json()["error"]["type"], "server_error");
  const HttpReply streamed = server.post(kCompletions, {{"prompt", "x"}, {"stream", true}});
  EXPECT_TRUE(Json::parse(streamed.events().back()).contains("error"));
  EXPECT_EQ(server.ask("GET", "/health").status, 200);
  EXPECT_TRUE(TestServer::eventually([&] { return server.is_idle(); }));
}

// One of the questions of the soak, and all of its answer.
struct Question {
  Json body;
  std::string wanted;
};

std::vector<Question> questions_for(test::OfflineModel& offline, test::Random& random) {
  std::vector<Question> questions;
  for (int i = 0; i < 16; ++i) {
    const std::string prompt =
        std::string(static_cast<std::size_t>(random.integer(1, 100)), 'p') + std::to_string(i % 4);
    Request request;
    request.prompt = offline.encode(prompt);
    request.max_new_tokens = random.integer(20, 120);
    request.sampling = {.temperature = 1.0F, .seed = static_cast<std::uint64_t>(i)};
    const std::string text = offline.text(offline.answer(request).tokens);
    Json body = {
        {"prompt", prompt}, {"max_tokens", request.max_new_tokens}, {"seed", i}, {"temperature", 1}, {"stream", true}};
    std::string wanted = text;
    if (i % 3 == 0) {
      for (std::size_t at = text.size() / 2; at + 2 < text.size(); ++at) {
        if (!is_well_formed(text.substr(at, 2)) || !is_well_formed(text.substr(0, at))) continue;
        body["stop"] = text.substr(at, 2);
        wanted = text.substr(0, text.find(text.substr(at, 2)));
        break;
      }
    }
    questions.push_back({body, wanted});
  }
  return questions;
}

struct Tally {
  std::atomic<int> whole = 0;
  std::atomic<int> vanished = 0;
  std::atomic<int> slow = 0;
  std::atomic<int> wrong = 0;
};

void one_client(const TestServer& server, const Question& question, int kind, std::uint64_t seed, Tally& tally) {
  std::mt19937_64 draw(seed);
  HttpClient client(server.port(), kind == 2 ? 2048 : 0);
  client.send(post_text(question.body));
  if (kind == 0) {  // vanishes at some moment, now and then at once
    HttpReply reply;
    if (draw() % 4 != 0 && client.receive_head(reply)) {
      for (auto chunks = draw() % 30; chunks > 0 && client.receive_chunk(reply.body); --chunks) {
      }
    }
    draw() % 2 == 0 ? client.reset() : client.close();
    ++tally.vanished;
    return;
  }
  HttpReply reply;
  if (client.receive_head(reply)) {
    while (client.receive_chunk(reply.body)) {
      if (kind == 2) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    reply.whole = true;
  }
  if (kind == 2) ++tally.slow;
  if (!done(reply) || text_of(reply) != question.wanted) {
    ++tally.wrong;
    return;
  }
  ++tally.whole;
}

// 200 streams at one time; KVLOOM_SOAK_SECONDS makes it last.
TEST_F(ServerLoad, ManyStreamsSomeVanishingSomeSlowLeakNothingAndAnswerAsOffline) {
  test::Random random(seed_);
  test::OfflineModel offline(seed_);
  const std::vector<Question> questions = questions_for(offline, random);
  test::TestServerOptions options;
  options.engine.max_sequences = 64;
  options.engine.kv_bytes = 1 << 18;  // so that some have to give way
  TestServer server(seed_, options);
  const char* seconds = std::getenv("KVLOOM_SOAK_SECONDS");
  const auto end = Clock::now() + std::chrono::duration<double>(seconds != nullptr ? std::atof(seconds) : 0);
  const int streams = test::repetitions(200, 60, "streams");
  Tally tally;
  int rounds = 0;
  double first_mib = 0;
  double first_tensors = 0;
  do {
    std::vector<std::thread> clients;
    for (int i = 0; i < streams; ++i) {
      const auto& question = questions[static_cast<std::size_t>(random.integer(0, std::ssize(questions) - 1))];
      clients.emplace_back([&, i, draw = random.integer(0, 1 << 30)] {
        one_client(server, question, i % 3 == 0 ? 0 : i % 10 == 1 ? 2 : 1, static_cast<std::uint64_t>(draw), tally);
      });
    }
    for (std::thread& client : clients) client.join();
    if (rounds++ > 0) continue;
    first_mib = resident_mib();
    first_tensors = server.tensors_mib();
  } while (Clock::now() < end);
  EXPECT_TRUE(TestServer::eventually([&] { return server.is_idle(); }));
  EXPECT_EQ(server.held_pages(), 0);
  EXPECT_EQ(tally.wrong, 0);
  EXPECT_GT(tally.whole, 0);
  const double grown = (resident_mib() - server.tensors_mib()) - (first_mib - first_tensors);
  EXPECT_LT(grown, test::kSanitized ? 1000 : 40) << "MiB of the server's own";
  std::printf(
      "%d rounds of %d streams: %d whole, of which %d slow; %d vanished; %.0f preemptions, %.0f prefix hits; "
      "resident %.0f MiB after the first round, %.0f at the end, of which tensors %.0f and %.0f\n",
      rounds, streams, tally.whole.load(), tally.slow.load(), tally.vanished.load(),
      server.metric("kvloom_preemptions_total"), server.metric("kvloom_prefix_cache_hits_total"), first_mib,
      resident_mib(), first_tensors, server.tensors_mib());
}

// The counters of /metrics, by their names with labels.
std::map<std::string, double> counters(const TestServer& server) {
  std::map<std::string, double> counters;
  std::istringstream lines(server.ask("GET", "/metrics").body);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t space = line.rfind(' ');
    const std::string name = line.substr(0, std::min(line.find_first_of(" {"), line.size()));
    const bool counts = name.ends_with("_total") || name.ends_with("_count") || name.ends_with("_bucket");
    if (!line.starts_with("#") && counts) counters[line.substr(0, space)] = std::strtod(line.c_str() + space, nullptr);
  }
  return counters;
}

// v#25787
TEST_F(ServerLoad, CountersOnlyGrow) {
  test::TestServerOptions options;
  options.engine.max_sequences = 16;
  options.engine.kv_bytes = 1 << 17;
  TestServer server(seed_, options);
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int i = 0; i < 12; ++i) {
    clients.push_back(std::make_unique<HttpClient>(server.port()));
    clients.back()->send(post_text({{"prompt", std::string(100, 'a')},
                                    {"max_tokens", 300},
                                    {"n", 2},
                                    {"seed", i},
                                    {"stream", true},
                                    {"ignore_eos", true}}));
  }
  EXPECT_TRUE(TestServer::eventually([&] { return !server.is_idle(); }));
  std::map<std::string, double> before;
  while (!server.is_idle()) {
    std::map<std::string, double> now = counters(server);
    for (const auto& [name, value] : before) EXPECT_GE(now[name], value) << name;
    EXPECT_LE(now["kvloom_prefix_cache_hits_total"], now["kvloom_prefix_cache_queries_total"]);
    before = std::move(now);
  }
  for (const auto& client : clients) EXPECT_TRUE(done(client->receive()));
  std::printf("%.0f preemptions, %.0f of %.0f prompt tokens found\n", before["kvloom_preemptions_total"],
              before["kvloom_prefix_cache_hits_total"], before["kvloom_prefix_cache_queries_total"]);
}

TEST_F(ServerLoad, DamagedBodiesAre4xxOrAnAnswerAndTheEngineLivesOn) {
  TestServer server(seed_);
  test::Random random(seed_);
  const std::vector<std::string> seeds = {
      R"({"prompt": [1, 2, 3], "n": 2, "max_tokens": 3, "logprobs": 2, "echo": true, "stop": ["ab", "x"], "seed": 7})",
      R"({"prompt": ["text", "other"], "temperature": 0.5, "logit_bias": {"65": 3.5}, "stream": true, "stream_options": {"include_usage": true}, "max_tokens": 2})"};
  const int count = test::repetitions(1500, 300, "damaged bodies");
  HttpClient client(server.port());
  int answered = 0;
  for (int i = 0; i < count; ++i) {
    const std::string body = test::mutated(seeds[static_cast<std::size_t>(random.integer(0, 1))], random);
    const HttpReply reply = client.ask("POST", kCompletions, body);
    ASSERT_TRUE(reply.status == 200 || (reply.status >= 400 && reply.status < 500)) << reply.status << ": " << body;
    answered += reply.status == 200 ? 1 : 0;
    if (reply.status != 200) {
      EXPECT_TRUE(Json::accept(reply.body)) << reply.body;
    }
  }
  std::printf("%d damaged bodies, of which %d were still requests\n", count, answered);
  EXPECT_TRUE(TestServer::eventually([&] { return server.is_idle(); }));
}

}  // namespace
}  // namespace kvloom
