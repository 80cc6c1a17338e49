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
  return "exitcode=99:detect_leaks=1:print_suppressions=0:strict_string_checks=1:detect_stack_use_after_"
         "return=" KVLOOM_KEPT_STACKS;
}

KVLOOM_SANITIZER_HOOK const char* __ubsan_default_options() { return "print_stacktrace=1"; }

// The first report ends the program, so that no later exit hides it.
KVLOOM_SANITIZER_HOOK const char* __tsan_default_options() {
  return "exitcode=99:halt_on_error=1:second_deadlock_stack=1";
}

// Each line with the reason that it is not ours.
KVLOOM_SANITIZER_HOOK const char* __lsan_default_suppressions() {
  // Open MPI 4.1 with what it stands on (PMIx, hwloc, libevent) leaves what MPI_Init took; its plugins are mca_*.
  return "leak:libmpi\n"
         "leak:libopen-pal\n"
         "leak:libopen-rte\n"
         "leak:libpmix\n"
         "leak:libevent\n"
         "leak:libhwloc\n"
         "leak:mca_\n"
         // The text of a name that PMIx makes by asprintf, whose own frame libc has lost. kvloom calls neither.
         "leak:vasprintf\n";
}

KVLOOM_SANITIZER_HOOK const char* __tsan_default_suppressions() {
  // Open MPI 4.1 takes two locks of its TCP plugin in both orders, one after the other in MPI_Init and MPI_Finalize.
  return "deadlock:mca_\n"
         // oneDNN is not built for ThreadSanitizer, which sees its primitives' memory and not the atomics that hand it
         // from thread to thread. Its headers read that memory too.
         "race:libdnnl.so\n"
         "race:^dnnl::\n";
}
