// Which of them this processor has.
#include "kernels/cpu/bf16_products.h"

#include <hwy/targets.h>

#include <vector>

#include "kernels/cpu/packed_amx.h"
#include "kernels/cpu/packed_avx512.h"

namespace kvloom::cpu {

std::span<const Bf16Products> bf16_products() {
  static const std::vector<Bf16Products> products = [] {
    std::vector<Bf16Products> all;
    const bool wide = (hwy::SupportedTargets() & HWY_AVX3) != 0;
    if (wide && processor_has_amx()) all.push_back(amx_products());
    if (wide && processor_has_avx512_bf16()) all.push_back(avx512_bf16_products());
    return all;
  }();
  return products;
}

}  // namespace kvloom::cpu
