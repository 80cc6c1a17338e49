// `kvloom bench serve --url`: any OpenAI-compatible server under arrivals at random moments.
#pragma once

#include <ostream>

#include "infer/load/server_load.h"
#include "launch/bench_form.h"

namespace kvloom {

// Throws Error when the server cannot be reached, or when a request failed, after all has been printed.
void bench_url(const ServerLoad& load, BenchForm form, std::ostream& out);

}  // namespace kvloom
