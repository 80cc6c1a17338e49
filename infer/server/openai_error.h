// Errors as OpenAI's API has them.
#pragma once

#include <string>
#include <utility>

#include "infer/server/http_types.h"
#include "kernels/error.h"

namespace kvloom {

// A request that cannot be answered: status, and the fields of {"error": {...}}. Empty `param` and `code` are null.
class ApiError : public InputError {
 public:
  ApiError(int status, std::string message, std::string param = {}, std::string code = {})
      : InputError(std::move(message)), status_(status), param_(std::move(param)), code_(std::move(code)) {}

  int status() const { return status_; }
  const std::string& param() const { return param_; }
  const std::string& code() const { return code_; }

 private:
  int status_;
  std::string param_;
  std::string code_;
};

// {"error": {"message", "type", "param", "code"}}, on one line. Bytes that are no UTF-8 become U+FFFD.
std::string error_json(const ApiError& error);
// With Retry-After where it is worth trying again.
HttpResponse error_response(const ApiError& error);

}  // namespace kvloom
