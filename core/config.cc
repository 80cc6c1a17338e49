#include "core/config.h"

#include <cmath>
#include <string_view>
#include <utility>
#include <vector>

namespace kvloom {
namespace {

constexpr std::int64_t kLargestSize = std::int64_t{1} << 24;
// Far above any model, and far below where sizes in bytes overflow.
constexpr double kMostParameters = 1e13;

std::int64_t size_within(std::string_view field, std::uint64_t value, std::int64_t least) {
  if (value > static_cast<std::uint64_t>(kLargestSize) || static_cast<std::int64_t>(value) < least) {
    reject_input("model.{}: {}; right is {} to {}", field, value, least, kLargestSize);
  }
  return static_cast<std::int64_t>(value);
}

double positive_or(std::string_view field, double value, double default_value) {
  if (value == 0) return default_value;
  if (!(value > 0) || !std::isfinite(value)) reject_input("model.{}: {}; right is a positive number", field, value);
  return value;
}

void check_rope_scaling(const proto::RopeScaling& scaling) {
  if (scaling.kind() == proto::RopeScaling::NONE) return;
  const std::string kind = proto::RopeScaling::Kind_Name(scaling.kind());
  if (kind.empty()) reject_input("model.rope_scaling.kind: {} is unknown", static_cast<int>(scaling.kind()));
  if (!(scaling.factor() >= 1) || !std::isfinite(scaling.factor())) {
    reject_input("model.rope_scaling.factor: {}; {} needs 1 or more", scaling.factor(), kind);
  }
  if (scaling.kind() != proto::RopeScaling::LLAMA3) return;
  if (!(scaling.low_frequency_factor() > 0) || !(scaling.high_frequency_factor() > scaling.low_frequency_factor())) {
    reject_input("model.rope_scaling: LLAMA3 needs 0 < low_frequency_factor < high_frequency_factor, not {} and {}",
                 scaling.low_frequency_factor(), scaling.high_frequency_factor());
  }
}

// Settings that make the formulas of rotary scaling divide by zero.
void check_rope(const ModelConfig& config) {
  check_rope_scaling(config.rope_scaling);
  if (config.rope_scaling.kind() == proto::RopeScaling::DYNAMIC && config.head_dim < 4) {
    reject_input("model.head_dim: {}; rope_scaling DYNAMIC needs 4 or more", config.head_dim);
  }
  if (config.rope_scaling.kind() == proto::RopeScaling::YARN && config.rope_theta <= 1) {
    reject_input("model.rope_theta: {}; rope_scaling YARN needs more than 1", config.rope_theta);
  }
}

void check_parameters(const ModelConfig& config) {
  if (config.heads * config.head_dim > kLargestSize) {
    reject_input("model.heads x model.head_dim: {} x {}; right is a product of at most {}", config.heads,
                 config.head_dim, kLargestSize);
  }
  const auto columns = static_cast<double>(2 * (config.heads + config.kv_heads) * config.head_dim + 3 * config.ffn);
  const double parameters = static_cast<double>(config.hidden) *
                            (static_cast<double>(config.layers) * columns + 2 * static_cast<double>(config.vocab));
  if (parameters > kMostParameters) {
    reject_input("model: {:.1e} parameters; right is at most {:.0e}", parameters, kMostParameters);
  }
}

KvMap resolve_map(const proto::ModelConfig& message) {
  const std::string& text = message.kv_map().empty() ? std::string("none") : message.kv_map();
  const Diagonal diagonal = message.no_diagonal() ? Diagonal::kHidden : Diagonal::kSeen;
  const KvMap map = KvMap::parse(text, static_cast<int>(message.layers()), message.window(), diagonal);
  if (!message.window_everywhere()) return map;
  if (message.window() == 0) reject_input("model.window_everywhere: needs a positive model.window");
  return map.with_windows(std::vector<std::int64_t>(message.layers(), message.window()));
}

}  // namespace

ModelConfig ModelConfig::from_proto(const proto::ModelConfig& message) {
  ModelConfig config;
  config.layers = size_within("layers", message.layers(), 1);
  config.hidden = size_within("hidden", message.hidden(), 1);
  config.ffn = size_within("ffn", message.ffn(), 1);
  config.heads = size_within("heads", message.heads(), 1);
  config.kv_heads = message.kv_heads() == 0 ? config.heads : size_within("kv_heads", message.kv_heads(), 1);
  config.vocab = size_within("vocab", message.vocab(), 2);
  config.context = size_within("context", message.context(), 1);
  if (config.heads % config.kv_heads != 0) {
    reject_input("model.kv_heads: {} does not divide model.heads {}", config.kv_heads, config.heads);
  }
  if (message.head_dim() == 0 && config.hidden % config.heads != 0) {
    reject_input("model.heads: {} does not divide model.hidden {}; give model.head_dim", config.heads, config.hidden);
  }
  config.head_dim =
      message.head_dim() == 0 ? config.hidden / config.heads : size_within("head_dim", message.head_dim(), 2);
  if (config.head_dim % 2 != 0) reject_input("model.head_dim: {}; rotary embedding needs an even one", config.head_dim);
  check_parameters(config);
  config.kv_map = resolve_map(message);
  config.window = message.window();
  config.rope_theta = positive_or("rope_theta", message.rope_theta(), 10000);
  config.rope_scaling = message.rope_scaling();
  check_rope(config);
  config.norm_epsilon = static_cast<float>(positive_or("norm_epsilon", message.norm_epsilon(), 1e-5));
  if (!(config.norm_epsilon > 0) || !std::isfinite(config.norm_epsilon)) {
    reject_input("model.norm_epsilon: {}; right is a positive number that f32 holds", message.norm_epsilon());
  }
  config.initializer_range = positive_or("initializer_range", message.initializer_range(), 0.02);
  config.tied_embeddings = message.tied_embeddings();
  config.qkv_bias = message.qkv_bias();
  config.qk_norm = message.qk_norm();
  return config;
}

proto::ModelConfig ModelConfig::to_proto() const {
  proto::ModelConfig message;
  message.set_layers(static_cast<std::uint32_t>(layers));
  message.set_hidden(static_cast<std::uint32_t>(hidden));
  message.set_ffn(static_cast<std::uint32_t>(ffn));
  message.set_heads(static_cast<std::uint32_t>(heads));
  message.set_kv_heads(static_cast<std::uint32_t>(kv_heads));
  message.set_head_dim(static_cast<std::uint32_t>(head_dim));
  message.set_vocab(static_cast<std::uint32_t>(vocab));
  message.set_context(static_cast<std::uint32_t>(context));
  message.set_kv_map(kv_map.explicit_form());
  message.set_window(static_cast<std::uint32_t>(window));
  message.set_no_diagonal(kv_map.diagonal() == Diagonal::kHidden);
  message.set_rope_theta(rope_theta);
  if (rope_scaling.kind() != proto::RopeScaling::NONE) *message.mutable_rope_scaling() = rope_scaling;
  message.set_norm_epsilon(static_cast<double>(norm_epsilon));
  message.set_initializer_range(initializer_range);
  message.set_tied_embeddings(tied_embeddings);
  message.set_qkv_bias(qkv_bias);
  message.set_qk_norm(qk_norm);
  return message;
}

Passes passes_of(const proto::PassesConfig& message) {
  Passes passes;
  if (message.has_without_gradient()) passes.without_gradient = static_cast<int>(message.without_gradient());
  if (message.has_with_gradient()) passes.with_gradient = static_cast<int>(message.with_gradient());
  if (passes.without_gradient < 0 || passes.without_gradient > kMostPasses) {
    reject_input("passes.without_gradient: {}; right is 0 to {}", message.without_gradient(), kMostPasses);
  }
  if (passes.with_gradient < 1 || passes.with_gradient > kMostPasses) {
    reject_input("passes.with_gradient: {}; right is 1 to {}", message.with_gradient(), kMostPasses);
  }
  return passes;
}

}  // namespace kvloom
