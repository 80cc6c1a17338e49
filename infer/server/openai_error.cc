#include "infer/server/openai_error.h"

#include <nlohmann/json.hpp>

namespace kvloom {
namespace {

const char* type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 408:
      return "timeout_error";
    case 429:
      return "rate_limit_error";
    case 500:
      return "server_error";
    case 503:
      return "service_unavailable_error";
    default:
      return "invalid_request_error";
  }
}

nlohmann::json text_or_null(const std::string& text) { return text.empty() ? nlohmann::json() : nlohmann::json(text); }

}  // namespace

std::string error_json(const ApiError& error) {
  const nlohmann::ordered_json body = {{"message", error.what()},
                                       {"type", type_of(error.status())},
                                       {"param", text_or_null(error.param())},
                                       {"code", text_or_null(error.code())}};
  return nlohmann::ordered_json{{"error", body}}.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

HttpResponse error_response(const ApiError& error) {
  HttpResponse response{.status = error.status(), .body = error_json(error), .headers = {}};
  if (error.status() == 429) response.headers.emplace_back("Retry-After", "1");
  if (error.status() == 503) response.headers.emplace_back("Retry-After", "5");
  if (error.status() == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

}  // namespace kvloom
