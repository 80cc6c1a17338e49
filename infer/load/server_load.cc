#include "infer/load/server_load.h"

#include <algorithm>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <nlohmann/json.hpp>
#include <string_view>

#include "infer/load/event_stream.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using Json = nlohmann::json;
using Tcp = asio::ip::tcp;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kMostOfFailure = 400;  // characters of an answer that are shown

Clock::duration duration_of(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// What a server says of its error, in OpenAI's form where it has that.
std::string failure_text(int status, const std::string& body) {
  const Json json = Json::parse(body, nullptr, false);
  std::string text = body;
  if (json.is_object() && json.contains("error")) {
    const Json& error = json["error"];
    if (error.is_object() && error.contains("message") && error["message"].is_string()) text = error["message"];
  }
  return fmt::format("HTTP {}: {}", status, text.substr(0, kMostOfFailure));
}

// Talks to one server.
class ServerClient {
 public:
  explicit ServerClient(const ServerLoad& load) : load_(load) {}

  asio::awaitable<void> resolve() {
    Tcp::resolver resolver(co_await asio::this_coro::executor);
    boost::system::error_code error;
    endpoints_ = co_await resolver.async_resolve(load_.server.host, load_.server.port,
                                                 asio::redirect_error(asio::use_awaitable, error));
    if (error) fail("{}:{}: {}", load_.server.host, load_.server.port, error.message());
  }

  // Hands the body's bytes over as they come. Throws Error for any status but 200 and for silence.
  asio::awaitable<void> ask(http::verb method, const std::string& path, std::string body,
                            const std::function<void(std::string_view)>& take) {
    beast::tcp_stream stream(co_await asio::this_coro::executor);
    stream.expires_after(duration_of(load_.patience_s));
    try {
      co_await stream.async_connect(endpoints_, asio::use_awaitable);
      http::request<http::string_body> request = request_to(method, path, std::move(body));
      co_await http::async_write(stream, request, asio::use_awaitable);
      co_await receive(stream, take);
    } catch (const boost::system::system_error& error) {
      const bool silent = error.code() == beast::error::timeout;
      fail("{}:{}: {}", load_.server.host, load_.server.port,
           silent ? fmt::format("nothing came for {:.0f} s", load_.patience_s) : error.code().message());
    }
  }

 private:
  http::request<http::string_body> request_to(http::verb method, const std::string& path, std::string body) const {
    http::request<http::string_body> request(method, load_.server.path + path, 11);
    const bool is_ipv6 = load_.server.host.find(':') != std::string::npos;
    const std::string host = is_ipv6 ? "[" + load_.server.host + "]" : load_.server.host;
    request.set(http::field::host, host + ":" + load_.server.port);
    request.set(http::field::user_agent, "kvloom bench");
    request.set(http::field::connection, "close");
    if (!load_.api_key.empty()) request.set(http::field::authorization, "Bearer " + load_.api_key);
    if (!body.empty()) request.set(http::field::content_type, "application/json");
    request.body() = std::move(body);
    request.prepare_payload();
    return request;
  }

  asio::awaitable<void> receive(beast::tcp_stream& stream, const std::function<void(std::string_view)>& take) const {
    beast::flat_buffer buffer;
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(boost::none);
    co_await http::async_read_header(stream, buffer, parser, asio::use_awaitable);
    const auto status = static_cast<int>(parser.get().result_int());
    std::string failure;
    std::string bytes(std::size_t{16} << 10, '\0');
    while (!parser.is_done()) {
      parser.get().body().data = bytes.data();
      parser.get().body().size = bytes.size();
      stream.expires_after(duration_of(load_.patience_s));
      boost::system::error_code error;
      co_await http::async_read_some(stream, buffer, parser, asio::redirect_error(asio::use_awaitable, error));
      if (error && error != http::error::need_buffer) throw boost::system::system_error(error);
      const std::string_view came(bytes.data(), bytes.size() - parser.get().body().size);
      if (status == 200) {
        take(came);
      } else if (failure.size() < kMostOfFailure * 4) {
        failure += came;
      }
    }
    if (status != 200) fail("{}", failure_text(status, failure));
  }

  const ServerLoad& load_;
  Tcp::resolver::results_type endpoints_;
};

class LoadRun {
 public:
  explicit LoadRun(const ServerLoad& load) : load_(load), client_(load_), arrivals_(arrival_times(load_.load)) {}

  ServerLoadResult run() {
    asio::co_spawn(context_, prepare(), rethrow);
    context_.run();
    context_.restart();
    start_ = Clock::now();
    for (std::size_t i = 0; i < arrivals_.size(); ++i) asio::co_spawn(context_, one(i), rethrow);
    context_.run();
    result_.times = times_.result(seconds());
    result_.times.tokens_per_second = static_cast<double>(result_.tokens) / seconds();
    result_.times.most_running = most_running_;
    result_.model = load_.model;
    return std::move(result_);
  }

 private:
  static void rethrow(const std::exception_ptr& error) {
    if (error) std::rethrow_exception(error);
  }
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  // Finds the server and what its model is called.
  asio::awaitable<void> prepare() {
    co_await client_.resolve();
    if (!load_.model.empty()) co_return;
    std::string body;
    co_await client_.ask(http::verb::get, "/v1/models", {}, [&](std::string_view bytes) { body += bytes; });
    const Json json = Json::parse(body, nullptr, false);
    const Json::json_pointer name("/data/0/id");
    if (!json.is_object() || !json.contains(name) || !json[name].is_string()) {
      fail("/v1/models names no model; right is --model NAME");
    }
    load_.model = json[name];
  }

  asio::awaitable<void> one(std::size_t index) {
    asio::steady_timer timer(context_, start_ + duration_of(arrivals_[index]));
    co_await timer.async_wait(asio::use_awaitable);
    most_running_ = std::max(most_running_, ++running_);
    try {
      co_await complete(index);
    } catch (const Error& error) {
      if (result_.failed++ == 0) result_.first_failure = error.what();
    }
    --running_;
  }

  asio::awaitable<void> complete(std::size_t index) {
    const LoadShape& shape = load_.load.shape;
    const Json body = {{"model", load_.model},
                       {"prompt", arrival_prompt(load_.load, static_cast<std::int64_t>(index), load_.vocab)},
                       {"max_tokens", shape.new_tokens},
                       {"temperature", 0},
                       {"ignore_eos", true},
                       {"stream", true},
                       {"stream_options", {{"include_usage", true}}}};
    TextTimes text{.arrival = arrivals_[index]};
    std::int64_t events = 0;
    std::int64_t counted = 0;  // by the server
    EventStream stream([&](std::string_view data) {
      const Json event = Json::parse(data, nullptr, false);
      if (!event.is_object()) fail("an event of the stream is no JSON: {}", data.substr(0, kMostOfFailure));
      if (event.contains("error")) fail("{}", failure_text(200, std::string(data)));
      const Json::json_pointer tokens("/usage/completion_tokens");
      if (event.contains(tokens) && event[tokens].is_number_integer()) counted = event[tokens];
      if (!event.contains("choices") || !event["choices"].is_array() || event["choices"].empty()) return;
      ++events;
      times_.add_tokens(text, 1, seconds());
    });
    co_await client_.ask(http::verb::post, "/v1/completions", body.dump(),
                         [&](std::string_view bytes) { stream.add(bytes); });
    if (!stream.is_done()) fail("the stream broke off after {} events", events);
    times_.add_end(text, seconds());
    result_.tokens += counted > 0 ? counted : events;
  }

  ServerLoad load_;
  asio::io_context context_{1};
  ServerClient client_;
  std::vector<double> arrivals_;
  Clock::time_point start_;
  ArrivalTimes times_;
  std::int64_t running_ = 0;
  std::int64_t most_running_ = 0;
  ServerLoadResult result_;
};

}  // namespace

ServerAddress parse_server_url(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  const auto refuse = [&] { reject_input("'{}' is no address of a server; right is http://HOST:PORT", url); };
  if (url.starts_with("https://")) {
    reject_input("'{}': https is not spoken here; right is http://HOST:PORT, of a proxy that ends it", url);
  }
  if (!url.starts_with(kScheme)) refuse();
  std::string rest = url.substr(kScheme.size());
  const std::size_t slash = std::min(rest.find('/'), rest.size());
  ServerAddress address{.path = rest.substr(slash)};
  rest.resize(slash);
  const std::size_t colon = rest.ends_with(']') ? std::string::npos : rest.rfind(':');
  address.host = rest.substr(0, colon);
  address.port = colon == std::string::npos ? "80" : rest.substr(colon + 1);
  if (address.host.starts_with('[') && address.host.ends_with(']')) {
    address.host = address.host.substr(1, address.host.size() - 2);
  }
  const bool is_number = !address.port.empty() && address.port.find_first_not_of("0123456789") == std::string::npos;
  if (address.host.empty() || address.host.find('@') != std::string::npos || !is_number) refuse();
  while (address.path.ends_with('/')) address.path.pop_back();
  if (address.path.ends_with("/v1")) address.path.resize(address.path.size() - 3);
  return address;
}

ServerLoadResult measure_server(const ServerLoad& load) { return LoadRun(load).run(); }

}  // namespace kvloom
