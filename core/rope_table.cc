#include "core/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace kvloom {
namespace {

using Frequencies = std::vector<double>;  // radians per position, one a pair of elements

Frequencies base_frequencies(double theta, std::int64_t head_dim) {
  Frequencies frequencies(static_cast<std::size_t>(head_dim / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
  }
  return frequencies;
}

// Context before scaling: the positions that the unscaled frequencies were trained for.
double original_context(const ModelConfig& config) {
  const std::int64_t original = config.rope_scaling.original_context();
  return static_cast<double>(original > 0 ? original : config.context);
}

// NTK by position count, of config.context positions.
Frequencies dynamic_frequencies(const ModelConfig& config) {
  const double factor = config.rope_scaling.factor();
  const double original = original_context(config);
  const double length = std::max(static_cast<double>(config.context), original);
  const auto dim = static_cast<double>(config.head_dim);
  const double stretch = std::pow(factor * length / original - (factor - 1), dim / (dim - 2));
  return base_frequencies(config.rope_theta * stretch, config.head_dim);
}

// Llama 3.1: long wavelengths are interpolated, short ones kept, a linear blend between.
Frequencies llama3_frequencies(const ModelConfig& config) {
  const proto::RopeScaling& scaling = config.rope_scaling;
  const double low = scaling.low_frequency_factor();
  const double high = scaling.high_frequency_factor();
  const double original = original_context(config);
  Frequencies frequencies = base_frequencies(config.rope_theta, config.head_dim);
  for (double& frequency : frequencies) {
    const double turns = original * frequency / (2 * std::numbers::pi);  // over the original context
    const double kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    frequency = (1 - kept) * frequency / scaling.factor() + kept * frequency;
  }
  return frequencies;
}

// YaRN, Peng et al. 2023 (arXiv 2309.00071), section 3.2.
Frequencies yarn_frequencies(const ModelConfig& config) {
  const proto::RopeScaling& scaling = config.rope_scaling;
  const double fast = scaling.beta_fast() > 0 ? scaling.beta_fast() : 32;
  const double slow = scaling.beta_slow() > 0 ? scaling.beta_slow() : 1;
  const auto dim = static_cast<double>(config.head_dim);
  const auto correction = [&](double rotations) {
    return dim * std::log(original_context(config) / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(config.rope_theta));
  };
  const bool exact = scaling.exact_range();
  const double low = std::max(exact ? correction(fast) : std::floor(correction(fast)), 0.0);
  double high = std::min(exact ? correction(slow) : std::ceil(correction(slow)), dim - 1);
  if (low == high) high += 0.001;
  Frequencies frequencies = base_frequencies(config.rope_theta, config.head_dim);
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double interpolated = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] *= interpolated / scaling.factor() + (1 - interpolated);
  }
  return frequencies;
}

Frequencies scaled_frequencies(const ModelConfig& config) {
  switch (config.rope_scaling.kind()) {
    case proto::RopeScaling::LINEAR: {
      Frequencies frequencies = base_frequencies(config.rope_theta, config.head_dim);
      for (double& frequency : frequencies) frequency /= config.rope_scaling.factor();
      return frequencies;
    }
    case proto::RopeScaling::DYNAMIC:
      return dynamic_frequencies(config);
    case proto::RopeScaling::LLAMA3:
      return llama3_frequencies(config);
    case proto::RopeScaling::YARN:
      return yarn_frequencies(config);
    default:
      return base_frequencies(config.rope_theta, config.head_dim);
  }
}

double attention_factor(const proto::RopeScaling& scaling) {
  if (scaling.kind() != proto::RopeScaling::YARN) return 1;
  return scaling.attention_factor() > 0 ? scaling.attention_factor() : 0.1 * std::log(scaling.factor()) + 1;
}

}  // namespace

RopeTable make_rope_table(const ModelConfig& config, std::int64_t positions, Allocator& allocator) {
  const Frequencies frequencies = scaled_frequencies(config);
  const double factor = attention_factor(config.rope_scaling);
  const auto half = static_cast<std::int64_t>(frequencies.size());
  std::vector<float> cosine(static_cast<std::size_t>(positions * half));
  std::vector<float> sine(cosine.size());
  std::size_t at = 0;
  for (std::int64_t position = 0; position < positions; ++position) {
    for (const double frequency : frequencies) {
      const double angle = static_cast<double>(position) * frequency;
      cosine[at] = static_cast<float>(factor * std::cos(angle));
      sine[at] = static_cast<float>(factor * std::sin(angle));
      ++at;
    }
  }
  return {Tensor::of<float>(allocator, {positions, half}, cosine),
          Tensor::of<float>(allocator, {positions, half}, sine)};
}

}  // namespace kvloom
