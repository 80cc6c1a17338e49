#include "core/device_choice.h"

#include <charconv>

#include "core/cuda_allocator.h"
#include "kernels/error.h"

namespace kvloom {

Device parse_device(const std::string& text) {
  if (text == "cpu") return {};
  if (text == "cuda") return {Device::Kind::kCuda, 0};
  const std::string prefix = "cuda:";
  int index = -1;
  if (text.starts_with(prefix)) {
    const char* end = text.data() + text.size();
    const auto [stop, code] = std::from_chars(text.data() + prefix.size(), end, index);
    if (code != std::errc() || stop != end) index = -1;
  }
  if (index < 0) reject_input("device: '{}'; right is cpu, cuda, or cuda:0, cuda:1, ...", text);
  return {Device::Kind::kCuda, index};
}

AttentionChoice parse_attention(const std::string& text) {
  if (text == "auto") return AttentionChoice::kAuto;
  if (text == "cudnn") return AttentionChoice::kCudnn;
  if (text == "kvloom") return AttentionChoice::kKvloom;
  reject_input("attention: '{}'; right is auto, cudnn or kvloom", text);
}

MatmulPrecision parse_matmul_precision(const std::string& text) {
  if (text == "f32") return MatmulPrecision::kF32;
  if (text == "tf32") return MatmulPrecision::kTf32;
  reject_input("matmul precision: '{}'; right is f32 or tf32", text);
}

void require_fit(const Device& device, const GpuTraits& gpu) {
  constexpr std::size_t kLeast = std::size_t{160} << 10;  // SampleTokens and attention's backward take up to 140
  if (gpu.block_shared_bytes >= kLeast) return;
  reject_input(
      "device: {}: {} has {} KiB of shared memory a block; right is one with 163 KiB or more (A100, H100, B200)",
      name_of(device), gpu.name, gpu.block_shared_bytes >> 10);
}

std::unique_ptr<Allocator> make_allocator(const Device& device, const GpuSetting& gpu) {
  const auto log = gpu.log ? gpu.log : [](const std::string&) {};
  if (device.kind == Device::Kind::kCpu) {
    if (gpu.attention == AttentionChoice::kCudnn) {
      reject_input("--attention cudnn: the run is on the CPU; right is --device cuda");
    }
    if (gpu.matmul == MatmulPrecision::kTf32) {
      log("--matmul-precision tf32: the run is on the CPU, whose f32 products stay f32");
    }
    return std::make_unique<CachingCpuAllocator>();
  }
  const CudaPresence presence = cuda_presence();
  if (presence.devices == 0) reject_input("device: {}: {}", name_of(device), presence.reason);
  if (device.index >= presence.devices) {
    reject_input("device: {}: this machine has {}, counted from 0", name_of(device), presence.devices);
  }
  require_fit(device, gpu_traits(device.index));
  auto allocator = std::make_unique<CachingCudaAllocator>(device.index);
  cuda::choose_attention(*allocator->device().queue, gpu.attention, log);
  cuda::choose_matmul_precision(*allocator->device().queue, gpu.matmul);
  if (gpu.matmul == MatmulPrecision::kTf32) log("matrix products: f32 operands as tf32, on tensor cores");
  return allocator;
}

}  // namespace kvloom
