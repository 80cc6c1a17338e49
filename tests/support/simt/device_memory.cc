#include "tests/support/simt/device_memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

namespace kvloom::simt {
namespace {

struct Memory {
  std::recursive_mutex mutex;
  std::map<const std::byte*, std::size_t> regions;
  bool is_open = false;

  void protect(int how) {
    for (const auto& [region, bytes] : regions) mprotect(const_cast<std::byte*>(region), bytes, how);
  }
};

Memory& memory() {
  static Memory instance;
  return instance;
}

}  // namespace

void* take_device_memory(std::size_t bytes) {
  constexpr std::size_t kPage = 4096;
  constexpr std::size_t kMost = std::size_t{8} << 30;
  if (bytes > kMost) return nullptr;
  const std::lock_guard lock(memory().mutex);
  const std::size_t size = (bytes + kPage - 1) / kPage * kPage;
  void* region = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region == MAP_FAILED) return nullptr;
  // All ones is NaN: what reads memory that nobody wrote shows.
  std::memset(region, 0xff, size);
  if (!memory().is_open) mprotect(region, size, PROT_NONE);
  memory().regions.emplace(static_cast<std::byte*>(region), size);
  return region;
}

void give_back_device_memory(void* block) {
  const std::lock_guard lock(memory().mutex);
  const auto found = memory().regions.find(static_cast<std::byte*>(block));
  munmap(block, found->second);
  memory().regions.erase(found);
}

void spoil_device_memory(void* block) {
  const std::lock_guard lock(memory().mutex);
  std::memset(block, 0xff, memory().regions.at(static_cast<std::byte*>(block)));
}

bool is_device_address(const void* address) {
  const std::lock_guard lock(memory().mutex);
  const auto* at = static_cast<const std::byte*>(address);
  auto region = memory().regions.upper_bound(at);
  if (region == memory().regions.begin()) return false;
  --region;
  return at < region->first + region->second;
}

void close_device_memory() {
  const std::lock_guard lock(memory().mutex);
  if (std::exchange(memory().is_open, false)) memory().protect(PROT_NONE);
}

DeviceMemoryAccess::DeviceMemoryAccess() {
  memory().mutex.lock();
  if (!std::exchange(memory().is_open, true)) memory().protect(PROT_READ | PROT_WRITE);
}

DeviceMemoryAccess::~DeviceMemoryAccess() { memory().mutex.unlock(); }

}  // namespace kvloom::simt
