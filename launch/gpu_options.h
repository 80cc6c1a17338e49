// How a GPU computes, as the verbs that may use one take it: --attention, --matmul-precision, --cuda-graphs.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "core/device_choice.h"

namespace kvloom {

struct GpuOptions {
  std::string attention = "auto";
  std::string matmul_precision = "f32";

  void add_to(CLI::App& verb);
  // With what is chosen said on standard error: by rank 0 alone, and once however many allocators are made as chosen.
  GpuSetting setting(int rank = 0) const;
  // The first of these flags that asks for something else than its default; empty: none does.
  std::string unusual() const;
};

// --cuda-graphs on|off, of verbs that decode.
void add_cuda_graphs_option(CLI::App& verb, std::string& cuda_graphs);

}  // namespace kvloom
