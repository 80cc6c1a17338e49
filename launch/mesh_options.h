// Flags for fields of `mesh`, the same for every verb that takes a run config.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace kvloom {

class MeshOptions {
 public:
  // The flags write into this, which outlives the verb.
  void add_to(CLI::App& verb);

  // `overrides`, and after them, so that it counts, what was given: mesh.pipeline=4.
  std::vector<std::string> after(std::vector<std::string> overrides) const;

 private:
  template <typename T>
  CLI::Option* add(CLI::App& verb, const std::string& flag, const std::string& field, const std::string& description);
  void add_flag(CLI::App& verb, const std::string& flag, const std::string& field, const std::string& description);
  void add_pipeline(CLI::App& verb);
  void add_devices(CLI::App& verb);

  std::vector<std::string> overrides_;
};

// How ranks are started, on one machine and on many: the end of a verb's help.
extern const char* const kStartingRanks;

}  // namespace kvloom
