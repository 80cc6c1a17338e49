#include "infer/server/api.h"

#include <ctime>
#include <nlohmann/json.hpp>
#include <random>

#include "core/version.h"
#include "infer/server/openai_fields.h"
#include "infer/server/page.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

std::string written(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

HttpResponse json_response(const Json& json) { return {.status = 200, .body = written(json), .headers = {}}; }

// Of a page of this server, or of no page at all. Another site's page could otherwise ask through its reader's browser.
bool is_own_origin(const HttpRequest& request) {
  const std::string_view origin = request.header("Origin");
  if (origin.empty()) return true;
  const std::size_t scheme = origin.find("://");
  return scheme != std::string_view::npos && origin.substr(scheme + 3) == request.header("Host");
}

bool is_json(std::string_view type) {
  std::string name(type.substr(0, type.find(';')));
  while (!name.empty() && name.back() == ' ') name.pop_back();
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name == "application/json";
}

std::uint64_t random_seed() {
  thread_local std::mt19937_64 engine{std::random_device{}()};
  return engine();
}

HttpResponse page_response() {
  return {.status = 200,
          .content_type = "text/html; charset=utf-8",
          .body = std::string(kServerPage),
          .headers = {{"Content-Security-Policy",
                       "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
                       "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
                      {"X-Content-Type-Options", "nosniff"},
                      {"Cache-Control", "no-cache"}}};
}

}  // namespace

Api::Api(const ServerOptions& options, const PromptMaker& prompts, const Engine& engine, EngineThread& engine_thread,
         Worker& worker, std::function<std::string()> metrics_text)
    : options_(options),
      prompts_(prompts),
      context_(engine.options().context),
      vocab_(engine.model().config().vocab),
      engine_(engine_thread),
      worker_(worker),
      created_(std::time(nullptr)) {
  const auto open = [](std::function<HttpResponse()> now) { return Route{"GET", false, std::move(now), nullptr}; };
  const auto work = [this](void (Api::*what)(const HttpRequest&, const Answer&) const) {
    return Route{"POST", true, nullptr,
                 [this, what](const HttpRequest& request, const Answer& answer) { (this->*what)(request, answer); }};
  };
  routes_["/"] = open(page_response);
  routes_["/health"] = open([this] { return health(); });
  routes_["/version"] = open([] { return json_response({{"version", program_and_version()}}); });
  routes_["/metrics"] = open([metrics_text = std::move(metrics_text)] {
    return HttpResponse{200, "text/plain; version=0.0.4; charset=utf-8", metrics_text(), {}};
  });
  routes_["/v1/models"] = {"GET", true, [this] { return json_response(models_json()); }, nullptr};
  routes_["/v1/models/"] = {"GET", true, [this] { return json_response(models_json()["data"][0]); }, nullptr};
  routes_["/v1/completions"] = work(&Api::complete);
  routes_["/v1/chat/completions"] = work(&Api::chat);
  routes_["/tokenize"] = work(&Api::tokenize);
  routes_["/detokenize"] = work(&Api::detokenize);
}

void Api::handle(HttpRequest request, Answer answer) {
  try {
    const Route& route = route_of(request);
    check(request, route);
    if (route.now) return answer->answer(route.now());
    answer_by_work(route, std::move(request), std::move(answer));
  } catch (const ApiError& error) {
    HttpResponse response = error_response(error);
    if (error.status() == 405) response.headers.emplace_back("Allow", error.code());
    answer->answer(std::move(response));
  } catch (const std::exception&) {
    answer->answer(error_response({500, "the server has failed"}));
  }
}

const Api::Route& Api::route_of(const HttpRequest& request) const {
  const std::string model_path = "/v1/models/";
  const bool names_model = request.path.starts_with(model_path);
  if (names_model) check_model(request.path.substr(model_path.size()));
  const auto route = routes_.find(names_model ? model_path : request.path);
  if (route == routes_.end()) throw ApiError(404, "there is no " + request.path.substr(0, 200));
  const std::string& right = route->second.method;
  if (request.method != right && !(right == "GET" && request.method == "HEAD")) {
    throw ApiError(405, request.path + ": right is " + right, {}, right);
  }
  return route->second;
}

void Api::check(const HttpRequest& request, const Route& route) const {
  if (!is_own_origin(request)) throw ApiError(403, "pages of other sites may not ask this server");
  if (route.is_protected && !options_.api_key.empty()) {
    const std::string_view given = request.header("Authorization");
    const std::string_view prefix = "Bearer ";
    const bool has_key = given.starts_with(prefix);
    if (!has_key || !equal_in_constant_time(given.substr(prefix.size()), options_.api_key)) {
      throw ApiError(401, has_key ? "this API key is not right" : "an API key is missing: Authorization: Bearer KEY",
                     {}, "invalid_api_key");
    }
  }
  if (route.method == "POST" && !is_json(request.header("Content-Type"))) {
    throw ApiError(415, "right is the header Content-Type: application/json");
  }
}

void Api::answer_by_work(const Route& route, HttpRequest request, Answer answer) {
  if (engine_.is_draining()) throw ApiError(503, "the server is stopping");
  auto work = [&route, request = std::move(request), answer] {
    if (answer->is_gone()) return;
    try {
      route.work(request, answer);
    } catch (const ApiError& error) {
      answer->answer(error_response(error));
    } catch (const InputError& error) {
      answer->answer(error_response({400, error.what()}));
    } catch (const std::exception&) {
      answer->answer(error_response({500, "the server has failed"}));
    }
  };
  if (!worker_.post(std::move(work)))
    throw ApiError(429, "too many requests are under way; try again", {}, "rate_limit_exceeded");
}

void Api::check_model(const std::string& name) const {
  if (name.empty() || name == options_.model_name) return;
  throw ApiError(404, fmt::format("there is no model '{}'; right is '{}'", name.substr(0, 200), options_.model_name),
                 "model", "model_not_found");
}

JobOptions Api::job_of(Endpoint endpoint, const HttpRequest& request, CommonRequest common) const {
  check_model(common.model);
  JobOptions job;
  job.head = {.endpoint = endpoint,
              .id = (endpoint == Endpoint::kChat ? "chatcmpl-" : "cmpl-") + request.id,
              .created = std::time(nullptr),
              .model = options_.model_name};
  common.sampling.seed = common.seed.value_or(random_seed());
  job.ends = prompts_.ends(endpoint, common, vocab_);
  job.deadline = engine_.now() + options_.request_seconds;
  job.request = std::move(common);
  return job;
}

void Api::check_length(const JobOptions& job) const {
  for (const JobPrompt& prompt : job.prompts) {
    const auto given = std::ssize(prompt.ids);
    const std::int64_t wanted = job.max_tokens;
    if (given + wanted <= context_) continue;
    throw ApiError(400,
                   fmt::format("this model's maximum context length is {} tokens; the request asks for {}: {} of the "
                               "{} and {} of the completion",
                               context_, given + wanted, given,
                               job.head.endpoint == Endpoint::kChat ? "messages" : "prompt", wanted),
                   job.head.endpoint == Endpoint::kChat ? "messages" : "prompt", "context_length_exceeded");
  }
}

void Api::complete(const HttpRequest& request, const Answer& answer) const {
  CompletionRequest parsed = parse_completion(parse_body(request.body), options_.sampling, options_.requests);
  JobOptions job = job_of(Endpoint::kCompletions, request, std::move(parsed.common));
  for (const PromptInput& input : parsed.prompts) job.prompts.push_back(prompts_.of_input(input));
  job.max_tokens = job.request.max_tokens.value_or(16);
  job.echo = parsed.echo;
  start(std::move(job), answer);
}

void Api::chat(const HttpRequest& request, const Answer& answer) const {
  const ChatRequest parsed = parse_chat(parse_body(request.body), options_.sampling, options_.requests);
  JobOptions job = job_of(Endpoint::kChat, request, parsed.common);
  job.prompts.push_back(prompts_.of_chat(parsed));
  // Where nobody says, up to what the context holds.
  const std::int64_t room = std::max<std::int64_t>(context_ - std::ssize(job.prompts.front().ids), 1);
  job.max_tokens = job.request.max_tokens.value_or(room);
  start(std::move(job), answer);
}

void Api::start(JobOptions job, const Answer& answer) const {
  check_length(job);
  if (options_.log_prompts) {
    for (const JobPrompt& prompt : job.prompts) options_.log(job.head.id + " prompt " + written(prompt.text));
  }
  std::make_shared<AnswerJob>(std::move(job), prompts_.tokenizer(), engine_, answer)->start();
}

void Api::tokenize(const HttpRequest& request, const Answer& answer) const {
  const Json body = parse_body(request.body);
  const Fields fields(body);
  check_model(fields.text("model").value_or(""));
  std::vector<std::int32_t> ids;
  if (!fields.at("messages").is_null()) {
    ids = prompts_.of_chat(parse_chat(body, options_.sampling, options_.requests)).ids;
  } else if (const auto text = fields.text("prompt"); !text.has_value()) {
    reject_field("prompt", "is not there; right is a text");
  } else if (text->size() > options_.requests.prompt_bytes) {
    reject_field("prompt", "is too long; right is up to {} bytes", options_.requests.prompt_bytes);
  } else {
    ids = fields.flag("add_special_tokens").value_or(true) ? prompts_.of_text(*text).ids
                                                           : prompts_.tokenizer().encode(*text);
  }
  const auto count = ids.size();
  answer->answer(json_response({{"count", count}, {"max_model_len", context_}, {"tokens", std::move(ids)}}));
}

void Api::detokenize(const HttpRequest& request, const Answer& answer) const {
  const Json body = parse_body(request.body);
  const Fields fields(body);
  check_model(fields.text("model").value_or(""));
  const Json& tokens = fields.at("tokens");
  if (!tokens.is_array()) reject_field("tokens", "are not there; right is a list of ids");
  std::vector<std::int32_t> ids;
  for (const Json& token : tokens) {
    if (!token.is_number_integer() || token < 0 || token >= vocab_) {
      reject_field("tokens", "hold {}; right are the ids 0 to {}", token.dump().substr(0, 40), vocab_ - 1);
    }
    ids.push_back(token.get<std::int32_t>());
  }
  answer->answer(json_response({{"prompt", prompts_.of_input(ids).text}}));
}

Json Api::models_json() const {
  const Json model = {{"id", options_.model_name},
                      {"object", "model"},
                      {"created", created_},
                      {"owned_by", "kvloom"},
                      {"max_model_len", context_}};
  return {{"object", "list"}, {"data", Json::array({model})}};
}

HttpResponse Api::health() const {
  if (engine_.is_draining()) return error_response({503, "the server is stopping"});
  return json_response({{"status", "ok"}});
}

}  // namespace kvloom
