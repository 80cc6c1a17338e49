// How programs built under sanitizers run, however they are started. The environment (ASAN_OPTIONS, TSAN_OPTIONS,
// LSAN_OPTIONS) adds to it and overrides it.
#define KVLOOM_SANITIZER_HOOK extern "C" __attribute__((visibility("default"), used, no_sanitize("all")))

// Stacks kept for use after return: those of GCC before 14 are not aligned for the 64-byte vectors that it puts there
// (PR 110027), and kernels crash in them.
#if defined(__clang__) || __GNUC__ >= 14
#define KVLOOM_KEPT_STACKS "1"
#else
#define KVLOOM_KEPT_STACKS "0"
#endif

// An exit status of its own: tests that expect a program to fail with 1 or 2 must not take a report for that.
KVLOOM_SANITIZER_HOOK const char* __asan_default_options() {
  return "exitcode=99:detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=" KVLOOM_KEPT_STACKS;
}

KVLOOM_SANITIZER_HOOK const char* __ubsan_default_options() { return "print_stacktrace=1"; }

// The first report ends the program, so that no later exit hides it.
KVLOOM_SANITIZER_HOOK const char* __tsan_default_options() {
  return "exitcode=99:halt_on_error=1:second_deadlock_stack=1";
}

// Each line with the reason that it is not ours.
KVLOOM_SANITIZER_HOOK const char* __lsan_default_suppressions() { return ""; }

KVLOOM_SANITIZER_HOOK const char* __tsan_default_suppressions() { return ""; }
