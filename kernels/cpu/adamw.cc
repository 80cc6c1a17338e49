#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cpu/pieces.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/adamw.cc"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vectors-inl.h"

#ifndef KVLOOM_ADAMW_CONSTANTS
#define KVLOOM_ADAMW_CONSTANTS
namespace kvloom::cpu {
namespace {

// The bias-corrected step written as two constants, so that the loop divides once.
struct Constants {
  float step_size;      // learning_rate / bias1
  float inverse_bias2;  // 1 / sqrt(bias2)
  float decay;          // learning_rate * weight_decay
};

}  // namespace
}  // namespace kvloom::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace kvloom::cpu {
namespace HWY_NAMESPACE {
namespace {

void update(const AdamW& op, const Constants& constants, std::int64_t begin, std::int64_t end) {
  for_vectors(begin, end, [&](auto place) HWY_ATTR {
    const Vector g = hn::Mul(place.load(op.gradient), fill(op.gradient_scale));
    const Vector m = hn::MulAdd(fill(1.0f - op.beta1), g, hn::Mul(fill(op.beta1), place.load(op.momentum)));
    const Vector v = hn::MulAdd(hn::Mul(fill(1.0f - op.beta2), g), g, hn::Mul(fill(op.beta2), place.load(op.variance)));
    place.store(m, op.momentum);
    place.store(v, op.variance);
    // Not weight * (1 - decay): that factor's rounding, the same for every weight, would bias a small decay.
    const Vector divisor = hn::MulAdd(hn::Sqrt(v), fill(constants.inverse_bias2), fill(op.epsilon));
    const Vector change = hn::Div(hn::Mul(fill(constants.step_size), m), divisor);
    const Vector before = place.load(op.weight);
    const Vector weight = hn::Sub(before, hn::MulAdd(fill(constants.decay), before, change));
    place.store(weight, op.weight);
    if (op.copy != nullptr) place.store(weight, op.copy);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace kvloom::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvloom::cpu {
namespace {
HWY_EXPORT(update);
}  // namespace

void run(const AdamW& op) {
  const double bias1 = 1 - std::pow(static_cast<double>(op.beta1), static_cast<double>(op.step));
  const double bias2 = 1 - std::pow(static_cast<double>(op.beta2), static_cast<double>(op.step));
  const Constants constants{static_cast<float>(static_cast<double>(op.learning_rate) / bias1),
                            static_cast<float>(1 / std::sqrt(bias2)), op.learning_rate * op.weight_decay};
  const auto update = HWY_DYNAMIC_DISPATCH(update);
  for_pieces(op.count, [&](std::int64_t begin, std::int64_t end) { update(op, constants, begin, end); });
}

}  // namespace kvloom::cpu
#endif
