// How fast the threads of this process read memory, and how time is taken.
#pragma once

#include <hwy/aligned_allocator.h>
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <functional>

namespace kvloom {

// One thread is timed by the time that it ran: others may use the core between.
inline double now() {
  timespec time{};
  clock_gettime(omp_get_max_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

inline double seconds_of(const std::function<void()>& work) {
  const double start = now();
  work();
  return now() - start;
}

// Memory whose pages are large where the system lets them be.
class Pages {
 public:
  explicit Pages(std::size_t bytes) : bytes_(bytes), memory_(hwy::AllocateAligned<char>(bytes + kHuge)) {
    madvise(data(), bytes, MADV_HUGEPAGE);
    std::memset(data(), 1, bytes);
  }
  char* data() const {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
    return memory_.get() + (kHuge - address % kHuge) % kHuge;
  }
  std::size_t size() const { return bytes_; }

 private:
  static constexpr std::size_t kHuge = std::size_t{1} << 21;
  std::size_t bytes_;
  hwy::AlignedFreeUniquePtr<char[]> memory_;
};

// Reads all of `pages`, each thread its part as so many streams. Returns something of what was read.
inline std::uint64_t read_streams(const Pages& pages, int streams) {
  std::uint64_t all = 0;
#pragma omp parallel reduction(+ : all)
  {
    const std::size_t words = pages.size() / 8;
    const std::size_t part = words / static_cast<std::size_t>(omp_get_num_threads());
    const auto* from =
        reinterpret_cast<const std::uint64_t*>(pages.data()) + part * static_cast<std::size_t>(omp_get_thread_num());
    const std::size_t length = part / static_cast<std::size_t>(streams) / 8 * 8;
    std::uint64_t sums[8] = {};
    for (std::size_t i = 0; i < length; i += 8) {
      for (int s = 0; s < streams; ++s) {
        const std::uint64_t* line = from + static_cast<std::size_t>(s) * length + i;
        for (int w = 0; w < 8; ++w) sums[w] += line[w];
      }
    }
    for (const std::uint64_t sum : sums) all += sum;
  }
  return all;
}

// Bytes a second, by as many streams as it takes.
inline double memory_rate(int repetitions) {
  const Pages pages(std::size_t{256} << 20);

  double best = 0;
  std::uint64_t sum = 0;
  for (const int streams : {1, 2, 4, 8, 16}) {
    double seconds = 1e9;
    for (int n = 0; n < repetitions; ++n) {
      seconds = std::min(seconds, seconds_of([&] { sum += read_streams(pages, streams); }));
    }
    const double rate = static_cast<double>(pages.size()) / seconds;
    best = std::max(best, rate);
  }
  return sum == 1 ? 0 : best;  // the sum is asked for
}

}  // namespace kvloom
