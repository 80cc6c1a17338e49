#include "parallel/device_kind.h"

#include <array>

namespace kvloom {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;
constexpr double kGbps = 1e9 / 8;

constexpr std::array<DeviceKind, 5> kKinds = {{
    {"cpu", 0.1e12, 0.1e12, 20 * kGbps, 0, 15e9},
    {"a100", 13e12, 125e12, 200 * kGbps, 72 * kGiB, 1600e9},
    {"h100", 45e12, 400e12, 400 * kGbps, 72 * kGiB, 2700e9},
    {"h200", 45e12, 400e12, 400 * kGbps, 126 * kGiB, 3800e9},
    {"b200", 50e12, 900e12, 400 * kGbps, 160 * kGiB, 6400e9},
}};

}  // namespace

std::span<const DeviceKind> device_kinds() { return kKinds; }

}  // namespace kvloom
