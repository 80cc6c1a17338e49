#include "launch/rank_device.h"

namespace kvloom {

void RankDeviceOptions::add_to(CLI::App& verb) {
  verb.add_option("--device", name,
                  "cpu, cuda or cuda:<index>: where to compute; of several ranks with cuda each takes the GPU of its "
                  "number on its machine")
      ->capture_default_str();
  gpu.add_to(verb);
  verb.add_flag("--share-gpus", share,
                "Let ranks that outnumber their machine's GPUs share them, slowly: to try several ranks out");
}

}  // namespace kvloom
