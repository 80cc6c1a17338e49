// libgomp is not built for ThreadSanitizer, which therefore takes every loop that OpenMP shares out for a race. These
// stand before libgomp's own functions in programs built for it, pass the call on, and tell it what libgomp orders: a
// region's start and end, barriers, critical and atomic sections. Races within a region are then seen as any others.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#define KVLOOM_BEFORE_LIBGOMP extern "C" __attribute__((visibility("default")))

namespace {

// libgomp's function of a name.
template <typename Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

// A team's work and the moments that order it. Each has a place of its own: were start and end one, a thread that
// starts late would seem to come after those that had ended, and their races would go unseen.
struct Region {
  void (*body)(void*);
  void* data;
  char start = 0;
  char end = 0;
  char barriers[2] = {};  // in turn, for the same reason
};

struct Membership {
  Region* region = nullptr;
  unsigned barriers_passed = 0;
};

thread_local Membership membership;

void run_body(void* given) {
  auto& region = *static_cast<Region*>(given);
  __tsan_acquire(&region.start);
  const Membership outer = membership;
  membership = {&region, 0};
  region.body(region.data);
  membership = outer;
  __tsan_release(&region.end);
}

char critical_section;
char atomic_section;

// `lock` is libgomp's.
void enter(const char* lock, char& section) {
  next<void()>(lock)();
  __tsan_acquire(&section);
}

void leave(const char* unlock, char& section) {
  __tsan_release(&section);
  next<void()>(unlock)();
}

}  // namespace

KVLOOM_BEFORE_LIBGOMP void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags) {
  static auto* const real = next<void(void (*)(void*), void*, unsigned, unsigned)>("GOMP_parallel");
  Region region{body, data};
  __tsan_release(&region.start);
  real(run_body, &region, threads, flags);
  __tsan_acquire(&region.end);
}

KVLOOM_BEFORE_LIBGOMP void GOMP_barrier() {
  static auto* const real = next<void()>("GOMP_barrier");
  if (membership.region == nullptr) return real();
  char* const moment = &membership.region->barriers[membership.barriers_passed++ % 2];
  __tsan_release(moment);
  real();
  __tsan_acquire(moment);
}

KVLOOM_BEFORE_LIBGOMP void GOMP_critical_start() { enter("GOMP_critical_start", critical_section); }
KVLOOM_BEFORE_LIBGOMP void GOMP_critical_end() { leave("GOMP_critical_end", critical_section); }
KVLOOM_BEFORE_LIBGOMP void GOMP_atomic_start() { enter("GOMP_atomic_start", atomic_section); }
KVLOOM_BEFORE_LIBGOMP void GOMP_atomic_end() { leave("GOMP_atomic_end", atomic_section); }
