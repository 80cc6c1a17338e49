#include "launch/serving_mesh_options.h"

#include "launch/at_least.h"

namespace kvloom {

void ServingMeshOptions::add_to(CLI::App& verb) {
  constexpr const char* kGroup = "Ranks";
  verb.add_option("--tp", tensor, "Tensor-parallel ranks: they share heads and matrices")
      ->check(at_least(1))
      ->capture_default_str()
      ->group(kGroup);
  verb.add_option("--pp", pipeline, "Pipeline ranks: they hold layers one above the other")
      ->check(at_least(1))
      ->capture_default_str()
      ->group(kGroup);
  CLI::Option* placing =
      verb.add_option("--placement", placement,
                      "auto: stages that decode fastest by prediction; even: equal numbers of layers")
          ->check(CLI::IsMember({"auto", "even"}))
          ->capture_default_str()
          ->group(kGroup);
  verb.add_option("--boundaries", boundaries, "First layer of each stage after the first: 6,12,18")
      ->excludes(placing)
      ->group(kGroup);
  verb.add_option("--patience", patience_seconds, "Seconds that a stage waits for another before all end")
      ->capture_default_str()
      ->group(kGroup);
}

}  // namespace kvloom
