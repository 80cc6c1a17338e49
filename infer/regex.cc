#include "infer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "infer/unicode.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::size_t kLongestPattern = 16384;
constexpr std::uint32_t kHeapLimit = 256 * 1024;  // KiB that a match without JIT may take

template <auto kFree>
struct Deleter {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Code = std::unique_ptr<pcre2_code, Deleter<pcre2_code_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, Deleter<pcre2_compile_context_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Deleter<pcre2_match_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Deleter<pcre2_match_data_free>>;

PCRE2_SPTR units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

std::string error_text(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

Code compile(std::string_view pattern, std::string_view original, const std::string& where) {
  const CompileContext context(pcre2_compile_context_create(nullptr));
  if (context == nullptr) fail("regular expression: no memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  Code code(pcre2_compile(units(pattern), pattern.size(), PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset,
                          context.get()));
  if (code == nullptr) {
    reject_input("{}: regular expression '{}': {}", where, original.substr(0, 200), error_text(error));
  }
  return code;
}

}  // namespace

struct Regex::Compiled {
  Code code;
  MatchContext limits;
  bool fast = false;

  // The match at or behind `from`, into `data`; PCRE2's answer.
  int match(std::string_view text, std::size_t from, pcre2_match_data* data) const {
    const int found = fast ? pcre2_jit_match(code.get(), units(text), text.size(), from, 0, data, limits.get())
                           : PCRE2_ERROR_JIT_STACKLIMIT;
    if (found != PCRE2_ERROR_JIT_STACKLIMIT) return found;
    // Without JIT the stack is on the heap.
    return pcre2_match(code.get(), units(text), text.size(), from, PCRE2_NO_JIT | PCRE2_NO_UTF_CHECK, data,
                       limits.get());
  }
};

Regex::Regex(std::string_view pattern, const std::string& where) : where_(where) {
  if (pattern.size() > kLongestPattern) {
    reject_input("{}: a regular expression of {} bytes; right is {} at most", where, pattern.size(), kLongestPattern);
  }
  auto compiled = std::make_unique<Compiled>();
  compiled->code = compile(pcre2_pattern(pattern, where), pattern, where);
  compiled->limits.reset(pcre2_match_context_create(nullptr));
  if (compiled->limits == nullptr) fail("regular expression: no memory");
  pcre2_set_heap_limit(compiled->limits.get(), kHeapLimit);
  // Where the processor has no JIT, matching goes on without.
  compiled->fast = pcre2_jit_compile(compiled->code.get(), PCRE2_JIT_COMPLETE) == 0;
  compiled_ = std::move(compiled);
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;

void Regex::find_all(std::string_view text, std::vector<Span>& matches) const {
  const MatchData data(pcre2_match_data_create(1, nullptr));
  if (data == nullptr) fail("regular expression: no memory");
  const PCRE2_SIZE* found = pcre2_get_ovector_pointer(data.get());
  std::size_t last = std::string_view::npos;
  for (std::size_t at = 0; at <= text.size();) {
    const int answer = compiled_->match(text, at, data.get());
    if (answer == PCRE2_ERROR_NOMATCH) return;
    if (answer < 0) fail("{}: a regular expression cannot be matched at byte {}: {}", where_, at, error_text(answer));
    const Span match{found[0], found[1]};
    if (match.begin > match.end || match.begin < at) fail("{}: a regular expression matches backwards", where_);
    if (match.empty() && match.begin == last) {
      at += at < text.size() ? first_character(text.substr(at)).bytes : 1;
      continue;
    }
    matches.push_back(match);
    at = last = match.end;
  }
}

}  // namespace kvloom
