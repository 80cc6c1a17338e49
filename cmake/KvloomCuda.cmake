# Decides whether this build has CUDA: KVLOOM_HAS_CUDA. Sources never ask; CMake picks either the CUDA files of a folder
# (`cuda/`, `cuda_*.cc`, `nccl_*.cc`, `.cu`) or the ones that stand in for them (`no_cuda.cc`, `no_nccl.cc`).
set(KVLOOM_CUDA AUTO CACHE STRING "Build the CUDA backend and NCCL ranks: ON, OFF, or AUTO (when nvcc and NCCL are found)")
set_property(CACHE KVLOOM_CUDA PROPERTY STRINGS AUTO ON OFF)
set(KVLOOM_CUDA_ARCHITECTURES "80-real;90a-real" CACHE STRING
    "GPU targets in CMake's notation; 100a-real (Blackwell) where the toolkit knows it")

set(KVLOOM_HAS_CUDA OFF)
set(kvloom_cuda_missing)
if(KVLOOM_CUDA STREQUAL "OFF")
  message(STATUS "kvloom: CUDA off (KVLOOM_CUDA=OFF)")
  return()
endif()

# The real compiler, not a wrapper somewhere on PATH: its neighbours are the toolkit's headers and libraries.
find_program(KVLOOM_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(KVLOOM_NVCC)
  execute_process(COMMAND ${KVLOOM_NVCC} --dryrun -x cu -E /dev/null RESULT_VARIABLE ran ERROR_VARIABLE dry_run
                  OUTPUT_QUIET)
  string(REGEX MATCH "#\\$ TOP=([^\n]*)" top "${dry_run}")
  if(CMAKE_MATCH_1)
    get_filename_component(KVLOOM_CUDA_ROOT "${CMAKE_MATCH_1}" REALPATH)
  endif()
  find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${KVLOOM_CUDA_ROOT} ENV NCCL_HOME PATH_SUFFIXES include)
  find_library(NCCL_LIBRARY nccl HINTS ${KVLOOM_CUDA_ROOT} ENV NCCL_HOME PATH_SUFFIXES lib64 lib)
  if(NOT KVLOOM_CUDA_ROOT)
    list(APPEND kvloom_cuda_missing "a working nvcc (${KVLOOM_NVCC} does not run)")
  endif()
  if(NOT NCCL_INCLUDE_DIR)
    list(APPEND kvloom_cuda_missing nccl.h)
  endif()
  if(NOT NCCL_LIBRARY)
    list(APPEND kvloom_cuda_missing libnccl)
  endif()
else()
  list(APPEND kvloom_cuda_missing nvcc)
endif()

if(kvloom_cuda_missing)
  list(JOIN kvloom_cuda_missing ", " kvloom_cuda_missing)
  if(KVLOOM_CUDA STREQUAL "ON")
    message(FATAL_ERROR "KVLOOM_CUDA=ON, but this machine lacks: ${kvloom_cuda_missing}. Install it, or set KVLOOM_CUDA=OFF")
  endif()
  message(STATUS "kvloom: CUDA off (not found: ${kvloom_cuda_missing})")
  return()
endif()

set(KVLOOM_HAS_CUDA ON)
set(CMAKE_CUDA_COMPILER ${KVLOOM_CUDA_ROOT}/bin/nvcc)
set(CMAKE_CUDA_ARCHITECTURES ${KVLOOM_CUDA_ARCHITECTURES})
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # it opens the driver's library itself: the binary starts where there is none
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know how to ask nvcc for C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
# Named by other packages, the system's own folder would go before the C++ library's.
list(APPEND CMAKE_CUDA_IMPLICIT_INCLUDE_DIRECTORIES ${CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES})
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
find_package(CUDAToolkit REQUIRED)
if(CCACHE_PROGRAM)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()
add_library(NCCL::nccl UNKNOWN IMPORTED)
set_target_properties(NCCL::nccl PROPERTIES IMPORTED_LOCATION ${NCCL_LIBRARY}
                                            INTERFACE_INCLUDE_DIRECTORIES ${NCCL_INCLUDE_DIR})
message(STATUS "kvloom: CUDA ${CMAKE_CUDA_COMPILER_VERSION} (${CMAKE_CUDA_COMPILER}) for ${CMAKE_CUDA_ARCHITECTURES}, NCCL ${NCCL_LIBRARY}")
