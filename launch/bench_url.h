// `kvloom bench serve --url`: any OpenAI-compatible server under arrivals at random moments.
#pragma once

#include <ostream>

#include "infer/load/server_load.h"
#include "launch/bench_form.h"

namespace kvloom {

// Throws Error when the server cannot be reached or all requests failed; and when some failed, after the rest has been
// printed.
void bench_url(const ServerLoad& load, BenchForm form, std::ostream& out);

}  // namespace kvloom
