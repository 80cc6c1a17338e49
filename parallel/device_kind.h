// Kinds of devices, and what placement expects of a rank that has one.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/dtype.h"
#include "parallel/step_cost.h"

namespace kvloom {

// GPUs: about two fifths of the vendor's dense bf16 peak and two thirds of the f32 peak outside tensor cores, which is
// what large products with the rest of a layer around them reach; one network card a GPU, since the ranks of a pipeline
// are mostly on several machines; nine tenths of the memory, the rest being the libraries', and eight tenths of its
// rate. CPU: a few cores a rank, and messages within one machine.
struct DeviceKind {
  std::string_view name;
  double f32_flops_per_second;
  double bf16_flops_per_second;
  double link_bytes_per_second;  // one way
  std::int64_t memory_bytes;     // 0: not known
  double memory_bytes_per_second;

  Speeds speeds(DType dtype) const {
    return {dtype == DType::kF32 ? f32_flops_per_second : bf16_flops_per_second, link_bytes_per_second};
  }
};

// In the order of proto::MeshConfig::Devices.
std::span<const DeviceKind> device_kinds();

}  // namespace kvloom
