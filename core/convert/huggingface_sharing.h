// How Llama-shaped families say in config.json which layer reads whose keys and values, each in its own words.
#pragma once

#include "core/convert/json_fields.h"
#include "proto/model.pb.h"

namespace kvloom {

// Takes what a config says of sharing into model.kv_map, whose windows stay; nothing where it says nothing:
//   kv_source_layers       the source of each layer
//   num_kv_shared_layers   so many of the top layers read the last layer below them that is of their own type in
//                          layer_types: "sliding_attention", seen through sliding_window, or "full_attention"
//   use_cla, cla_share_factor   groups of so many layers read their first one
//   kv_reuse_group         lists of layers that read the first one of their list
// Throws InputError, naming file and field, for a form that is not whole, or two of them.
void read_kv_sharing(JsonFields& fields, const nlohmann::ordered_json& config, proto::ModelConfig& model);

}  // namespace kvloom
