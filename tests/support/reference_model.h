// The model of DESIGN 4 and 5 in plain double precision, written from the text alone: it shares nothing with the
// kernels, the plan or the store. Slow, and meant to be read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/parameters.h"

namespace kvloom::test {

using Row = std::vector<double>;
using Rows = std::vector<Row>;  // one a position

struct ReferenceKv {
  Rows key;
  Rows value;
};

class ReferenceModel {
 public:
  explicit ReferenceModel(const ModelConfig& config) : config_(config), layout_(config, ModelShard::whole(config)) {}

  // Logits of every position, token by token.
  Rows sequential(const std::vector<double>& weights, const std::vector<int>& tokens) const {
    const auto layers = static_cast<std::size_t>(config_.layers);
    std::vector<ReferenceKv> cache(layers);
    Rows logits;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      Row x = row(weights, "model.embed_tokens.weight", tokens[t]);
      for (int i = 0; i < config_.layers; ++i) {
        make_own(weights, i, x, t, cache[static_cast<std::size_t>(i)]);
        const std::size_t seen = is_strict(i) ? t : t + 1;
        x = block(weights, i, x, t,
                  {beginning(cache[static_cast<std::size_t>(key_source(i))].key, seen),
                   beginning(cache[static_cast<std::size_t>(value_source(i))].value, seen)});
      }
      logits.push_back(head(weights, x));
    }
    return logits;
  }

  // Logits after m + b parallel passes. K/V of the passes before m come from `frozen` weights, so that a difference
  // quotient in `weights` sees them as constants.
  Rows iterated(const std::vector<double>& weights, const std::vector<double>& frozen, const std::vector<int>& tokens,
                int m, int b) const {
    Rows x;
    Rows frozen_x;
    for (const int token : tokens) {
      x.push_back(row(weights, "model.embed_tokens.weight", token));
      frozen_x.push_back(row(frozen, "model.embed_tokens.weight", token));
    }
    std::map<int, ReferenceKv> kv;         // of finished segments, from `weights`
    std::map<int, ReferenceKv> frozen_kv;  // the same from `frozen`
    int i = 0;
    while (i < config_.layers) {
      const int top = segment_top(i);
      if (top == i) {
        pass(weights, i, i, x, kv, {});
        pass(frozen, i, i, frozen_x, frozen_kv, {});
      } else {
        std::map<int, ReferenceKv> previous;
        for (int p = 0; p < m; ++p) {
          std::map<int, ReferenceKv> current = frozen_kv;
          Rows scratch = frozen_x;
          pass(frozen, i, top, scratch, current, previous);
          previous = current;
        }
        Rows out;
        for (int p = 0; p < b; ++p) {
          std::map<int, ReferenceKv> current = kv;
          out = x;
          pass(weights, i, top, out, current, previous);
          previous = current;
        }
        kv = previous;
        x = out;
        advance_frozen(frozen, i, top, m + b, frozen_x, frozen_kv);
      }
      i = top + 1;
    }
    Rows logits;
    for (const Row& r : x) logits.push_back(head(weights, r));
    return logits;
  }

  // K and V after each of so many passes of the lowest iterated segment, by source.
  std::vector<std::map<int, ReferenceKv>> passes_of_segment(const std::vector<double>& weights,
                                                            const std::vector<int>& tokens, int passes) const {
    Rows x;
    for (const int token : tokens) x.push_back(row(weights, "model.embed_tokens.weight", token));
    std::map<int, ReferenceKv> kv;
    int first = 0;
    for (; first < config_.layers && segment_top(first) == first; ++first) {
      pass(weights, first, first, x, kv, {});
    }
    std::vector<std::map<int, ReferenceKv>> all;
    for (int p = 0; first < config_.layers && p < passes; ++p) {
      std::map<int, ReferenceKv> current = kv;
      Rows scratch = x;
      pass(weights, first, segment_top(first), scratch, current, p == 0 ? std::map<int, ReferenceKv>{} : all.back());
      all.push_back(std::move(current));
    }
    return all;
  }

  static double mean_loss(const Rows& logits, const std::vector<int>& targets) {
    double sum = 0;
    for (std::size_t t = 0; t < logits.size(); ++t) {
      const double largest = *std::max_element(logits[t].begin(), logits[t].end());
      double total = 0;
      for (const double v : logits[t]) total += std::exp(v - largest);
      sum += std::log(total) + largest - logits[t][static_cast<std::size_t>(targets[t])];
    }
    return sum / static_cast<double>(logits.size());
  }

  const ParameterLayout& layout() const { return layout_; }

 private:
  // A later segment's frozen passes start from what the earlier segments really give under the frozen weights.
  void advance_frozen(const std::vector<double>& frozen, int first, int top, int passes, Rows& x,
                      std::map<int, ReferenceKv>& kv) const {
    std::map<int, ReferenceKv> previous;
    Rows out;
    for (int p = 0; p < passes; ++p) {
      std::map<int, ReferenceKv> current = kv;
      out = x;
      pass(frozen, first, top, out, current, previous);
      previous = current;
    }
    kv = previous;
    x = out;
  }

  int key_source(int layer) const { return config_.kv_map.source(KvPart::kKey, layer); }
  int value_source(int layer) const { return config_.kv_map.source(KvPart::kValue, layer); }
  int top_of(int layer) const { return std::max({layer, key_source(layer), value_source(layer)}); }
  bool is_strict(int layer) const { return top_of(layer) > layer || config_.kv_map.diagonal() == Diagonal::kHidden; }

  // Somebody reads the layer's K, its V, or both.
  void make_own(const std::vector<double>& w, int layer, const Row& x, std::size_t t, ReferenceKv& kv) const {
    bool reads_key = false;
    bool reads_value = false;
    for (int reader = 0; reader < config_.layers; ++reader) {
      reads_key = reads_key || key_source(reader) == layer;
      reads_value = reads_value || value_source(reader) == layer;
    }
    if (reads_key) kv.key.push_back(key(w, layer, x, t));
    if (reads_value) kv.value.push_back(value(w, layer, x));
  }

  static Rows beginning(const Rows& rows, std::size_t count) {
    return {rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(count)};
  }

  int segment_top(int first) const {
    int top = top_of(first);
    for (int j = first; j <= top && top > first; ++j) top = std::max(top, top_of(j));
    return top;
  }

  // All layers of [first, last] over all positions; `x` in and out. What is read from above is `previous`; before there
  // is one, a layer that reads from above reads nothing.
  void pass(const std::vector<double>& w, int first, int last, Rows& x, std::map<int, ReferenceKv>& current,
            const std::map<int, ReferenceKv>& previous) const {
    for (int i = first; i <= last; ++i) {
      ReferenceKv own;
      for (std::size_t t = 0; t < x.size(); ++t) make_own(w, i, x[t], t, own);
      current[i] = own;
      const bool reads = top_of(i) == i || !previous.empty();
      for (std::size_t t = 0; t < x.size(); ++t) {
        ReferenceKv visible;
        if (reads) {
          const std::size_t seen = is_strict(i) ? t : t + 1;
          visible.key = beginning((key_source(i) > i ? previous : current).at(key_source(i)).key, seen);
          visible.value = beginning((value_source(i) > i ? previous : current).at(value_source(i)).value, seen);
        }
        x[t] = block(w, i, x[t], t, visible);
      }
    }
  }

  Row row(const std::vector<double>& w, const std::string& name, int index) const {
    const Parameter& p = layout_.at(name);
    const auto begin = w.begin() + p.offset + index * p.shape[1];
    return {begin, begin + p.shape[1]};
  }

  Row vector(const std::vector<double>& w, const std::string& name) const {
    const Parameter& p = layout_.at(name);
    return {w.begin() + p.offset, w.begin() + p.offset + p.shape[0]};
  }

  Row multiply(const std::vector<double>& w, const std::string& name, const Row& x) const {
    const Parameter& p = layout_.at(name);
    Row y(static_cast<std::size_t>(p.shape[0]), 0.0);
    for (std::size_t r = 0; r < y.size(); ++r) {
      for (std::size_t c = 0; c < x.size(); ++c) {
        y[r] += w[static_cast<std::size_t>(p.offset) + r * x.size() + c] * x[c];
      }
    }
    return y;
  }

  Row normalized(const Row& x, const Row& gain) const {
    double square = 0;
    for (const double v : x) square += v * v;
    const double scale = 1 / std::sqrt(square / static_cast<double>(x.size()) + config_.norm_epsilon);
    Row y(x.size());
    for (std::size_t c = 0; c < x.size(); ++c) y[c] = x[c] * scale * gain[c];
    return y;
  }

  static std::string at(int layer, const std::string& name) {
    return "model.layers." + std::to_string(layer) + "." + name;
  }

  Row projected(const std::vector<double>& w, int layer, const std::string& kind, const Row& x) const {
    Row y = multiply(w, at(layer, "self_attn." + kind + "_proj.weight"), x);
    if (config_.qkv_bias) {
      const Row bias = vector(w, at(layer, "self_attn." + kind + "_proj.bias"));
      for (std::size_t c = 0; c < y.size(); ++c) y[c] += bias[c];
    }
    return y;
  }

  // Per-head norm, then rotation for position t.
  Row rotated(const std::vector<double>& w, int layer, const std::string& kind, Row y, std::size_t t) const {
    const auto dim = static_cast<std::size_t>(config_.head_dim);
    for (std::size_t h = 0; h < y.size() / dim; ++h) {
      Row head(y.begin() + static_cast<std::ptrdiff_t>(h * dim),
               y.begin() + static_cast<std::ptrdiff_t>((h + 1) * dim));
      if (config_.qk_norm) head = normalized(head, vector(w, at(layer, "self_attn." + kind + "_norm.weight")));
      for (std::size_t d = 0; d < dim / 2; ++d) {
        const double angle = static_cast<double>(t) *
                             std::pow(config_.rope_theta, -2.0 * static_cast<double>(d) / static_cast<double>(dim));
        y[h * dim + d] = head[d] * std::cos(angle) - head[d + dim / 2] * std::sin(angle);
        y[h * dim + d + dim / 2] = head[d + dim / 2] * std::cos(angle) + head[d] * std::sin(angle);
      }
    }
    return y;
  }

  Row key(const std::vector<double>& w, int layer, const Row& x, std::size_t t) const {
    const Row n = normalized(x, vector(w, at(layer, "input_layernorm.weight")));
    return rotated(w, layer, "k", projected(w, layer, "k", n), t);
  }

  Row value(const std::vector<double>& w, int layer, const Row& x) const {
    return projected(w, layer, "v", normalized(x, vector(w, at(layer, "input_layernorm.weight"))));
  }

  // `kv` holds the positions 0.. that exist for this query; the window cuts further.
  Row block(const std::vector<double>& w, int layer, const Row& x, std::size_t t, const ReferenceKv& kv) const {
    const Row n = normalized(x, vector(w, at(layer, "input_layernorm.weight")));
    const Row q = rotated(w, layer, "q", projected(w, layer, "q", n), t);
    const auto dim = static_cast<std::size_t>(config_.head_dim);
    const auto group = static_cast<std::size_t>(config_.heads / config_.kv_heads);
    const auto window = static_cast<std::size_t>(config_.kv_map.window(layer));
    const std::size_t begin = window > 0 && t + 1 > window ? t + 1 - window : 0;
    Row attended(q.size(), 0.0);
    for (std::size_t h = 0; h < q.size() / dim; ++h) {
      const std::size_t source = h / group * dim;
      Row weights;
      double total = 0;
      for (std::size_t j = begin; j < kv.key.size(); ++j) {
        double score = 0;
        for (std::size_t d = 0; d < dim; ++d) score += q[h * dim + d] * kv.key[j][source + d];
        weights.push_back(std::exp(score / std::sqrt(static_cast<double>(dim))));
        total += weights.back();
      }
      for (std::size_t j = begin; j < kv.key.size(); ++j) {
        for (std::size_t d = 0; d < dim; ++d) {
          attended[h * dim + d] += weights[j - begin] / total * kv.value[j][source + d];
        }
      }
    }
    Row y = multiply(w, at(layer, "self_attn.o_proj.weight"), attended);
    for (std::size_t c = 0; c < y.size(); ++c) y[c] += x[c];
    const Row f = normalized(y, vector(w, at(layer, "post_attention_layernorm.weight")));
    const Row gate = multiply(w, at(layer, "mlp.gate_proj.weight"), f);
    Row up = multiply(w, at(layer, "mlp.up_proj.weight"), f);
    for (std::size_t c = 0; c < up.size(); ++c) up[c] *= gate[c] / (1 + std::exp(-gate[c]));
    const Row down = multiply(w, at(layer, "mlp.down_proj.weight"), up);
    for (std::size_t c = 0; c < y.size(); ++c) y[c] += down[c];
    return y;
  }

  Row head(const std::vector<double>& w, const Row& x) const {
    return multiply(w, config_.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
                    normalized(x, vector(w, "model.norm.weight")));
  }

  ModelConfig config_;
  ParameterLayout layout_;
};

}  // namespace kvloom::test
