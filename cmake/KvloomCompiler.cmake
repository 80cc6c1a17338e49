# Flags for our own code. They live on one interface target so that nothing leaks into dependencies.
add_library(kvloom_compiler INTERFACE)
set(kvloom_host "$<COMPILE_LANGUAGE:C,CXX>")
target_compile_options(kvloom_compiler INTERFACE
  "$<${kvloom_host}:-Wall;-Wextra;-Wshadow;-Wnon-virtual-dtor;-Wundef;-Wno-missing-field-initializers;-Wno-restrict;-Werror>")
# Nothing of ours is seen by shared libraries: see kvloom_protobuf in KvloomDependencies.
target_compile_options(kvloom_compiler INTERFACE "$<${kvloom_host}:-fvisibility=hidden;-fvisibility-inlines-hidden>")
# The same for a .cu file. Without --expt-relaxed-constexpr: what it lets a kernel call may compile to nothing, in silence,
# where the function's constant evaluation is not what runs.
target_compile_options(kvloom_compiler INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-fvisibility=hidden;-Werror=all-warnings>")
# fmt 9 writes half of its constexpr out for nvcc, which the other half then misses.
target_compile_definitions(kvloom_compiler INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>")
target_link_options(kvloom_compiler INTERFACE LINKER:--exclude-libs,ALL)
if(KVLOOM_NATIVE)
  target_compile_options(kvloom_compiler INTERFACE "$<${kvloom_host}:-march=native>")
else()
  # Any machine since Haswell; kernels reach AVX-512 and AMX by dispatching at run time.
  target_compile_options(kvloom_compiler INTERFACE "$<${kvloom_host}:-march=x86-64-v3>")
endif()
if(KVLOOM_SANITIZE)
  # RelWithDebInfo keeps the tests within minutes. The library's assertions see what addresses alone do not: an index
  # that lies past a span and yet inside its memory. Of debug information, only what names a line.
  target_compile_options(kvloom_compiler INTERFACE
    "$<${kvloom_host}:-g1;-fsanitize=${KVLOOM_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all;-D_GLIBCXX_ASSERTIONS>")
  target_link_options(kvloom_compiler INTERFACE -fsanitize=${KVLOOM_SANITIZE})
endif()

# What every executable is linked with: nothing, but under sanitizers how they run.
add_library(kvloom_executable INTERFACE)
if(KVLOOM_SANITIZE)
  set(folder ${CMAKE_CURRENT_LIST_DIR}/sanitizers)
  add_library(kvloom_sanitizers OBJECT ${folder}/defaults.cc)
  if(KVLOOM_SANITIZE MATCHES address)
    target_sources(kvloom_sanitizers PRIVATE ${folder}/keep_modules.cc)
  endif()
  if(KVLOOM_SANITIZE MATCHES thread)
    target_sources(kvloom_sanitizers PRIVATE ${folder}/openmp.cc)
  endif()
  target_sources(kvloom_executable INTERFACE $<TARGET_OBJECTS:kvloom_sanitizers>)
  target_link_libraries(kvloom_executable INTERFACE ${CMAKE_DL_LIBS})
endif()

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()
