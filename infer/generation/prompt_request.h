// Between lines of JSON and what is asked of an engine.
#pragma once

#include <cstdint>

#include "infer/generation/generation.h"
#include "infer/text/prompt_line.h"

namespace kvloom {

// What the line asks for; where it is silent, what `defaults` say.
TextRequest request_of(PromptLine line, TextRequest defaults);

// The line out for what came of a request, which must not have been refused.
ResultLine result_of(std::int64_t index, const TextResult& result);

}  // namespace kvloom
