// The flags of verbs that run the inference engine on many ranks.
#pragma once

#include <CLI/CLI.hpp>

#include "infer/ranks/serving_ranks.h"
#include "launch/terminal.h"

namespace kvloom {

struct ServingMeshOptions : ServingMesh {
  ServingMeshOptions() { warn = print_warning; }

  void add_to(CLI::App& verb);
};

}  // namespace kvloom
