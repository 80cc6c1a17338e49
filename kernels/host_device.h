// For functions that both the host and a GPU's kernels call: nvcc has to be told.
#pragma once

#ifdef __CUDACC__
#define KVLOOM_HOST_DEVICE __host__ __device__
#else
#define KVLOOM_HOST_DEVICE
#endif
