#include "core/decoder.h"

#include <algorithm>

#include "core/cuda_allocator.h"
#include "core/head.h"

namespace kvloom {
namespace {

// Copies every sequence's rows [positions, columns] into the cache, from its start on.
void store_rows(const Tensor& rows, Tensor& cache) { ops::copy_into_blocks(rows, cache, 0); }

}  // namespace

Decoder::Decoder(const Model& model, std::int64_t sequences, std::int64_t capacity, const DecoderOptions& options)
    : model_(model),
      sequences_(sequences),
      capacity_(capacity),
      rope_(make_rope_table(model.config(), capacity, model.allocator())),
      cache_(static_cast<std::size_t>(model.config().layers)),
      tokens_(Tensor::empty(model.allocator(), {sequences}, DType::kI32)),
      end_(options.end),
      first_bound_(options.first_bound) {
  const ModelConfig& config = model.config();
  const Shape shape = {sequences, capacity, config.kv_heads * config.head_dim};
  for (const int source : config.kv_map.kv_layers()) {
    for (const KvPart part : kKvParts) {
      if (!config.kv_map.owns(part, source)) continue;
      cache_[static_cast<std::size_t>(source)][part] = Tensor::empty(model.allocator(), shape, model.dtype());
    }
  }
  auto* allocator = dynamic_cast<CachingCudaAllocator*>(&model.allocator());
  if (options.launch == StepLaunch::kDirect || allocator == nullptr) return;
  if (first_bound_ < 1) fail("decoder: a first bound of {}; right is 1 or more", first_bound_);
  positions_ = Tensor::empty(*allocator, {sequences}, DType::kI32);
  graphs_ = std::make_unique<StepGraphs>(*allocator);
}

LayerContext Decoder::context_at(std::int64_t positions, std::int64_t first_position) const {
  return {.config = model_.config(),
          .shard = model_.shard(),
          .rope = rope_,
          .allocator = model_.allocator(),
          .dtype = model_.dtype(),
          .sequences = sequences_,
          .positions = positions,
          .first_position = first_position};
}

Tensor Decoder::prefill(const Tensor& tokens, const PrefillOptions& options) {
  if (length_ != 0) fail("decoder: prefill into a cache that holds {} positions", length_);
  if (tokens.count() == 0 || tokens.count() % sequences_ != 0) {
    fail("decoder: {} prompt tokens for {} sequences of equal length", tokens.count(), sequences_);
  }
  const std::int64_t positions = tokens.count() / sequences_;
  if (positions > capacity_) fail("decoder: a prompt of {} tokens in a cache of {}", positions, capacity_);
  const KvMap& map = model_.config().kv_map;
  const IterationPlan plan = make_iteration_plan(map, options.passes, PlanMode::kPrefill, positions);
  PlanRun run(model_, plan, rope_,
              {.sequences = sequences_,
               .positions = positions,
               .asked = std::min(options.asked, positions),
               .tolerance = options.tolerance});
  const Tensor hidden = run.forward(tokens);
  for (const int source : map.kv_layers()) {
    for (const KvPart part : kKvParts) {
      if (!map.owns(part, source)) continue;
      store_rows(run.store().at({part, source, run.last_pass(source)}), cache_[static_cast<std::size_t>(source)][part]);
    }
  }
  length_ = positions;
  prefill_passes_ = *std::max_element(run.passes_run().begin(), run.passes_run().end());
  return head_logits(model_, hidden);
}

Tensor Decoder::step(const Tensor& tokens) {
  if (length_ == capacity_) fail("decoder: the cache of {} positions is full", capacity_);
  if (tokens.count() != sequences_) fail("decoder: {} tokens for {} sequences", tokens.count(), sequences_);
  Tensor logits;
  if (graphs_ == nullptr) {
    logits = run_step(tokens, context_at(1, length_), length_ + 1);
  } else {
    if (tokens.data() != tokens_.data()) ops::copy(tokens, tokens_);
    logits = launch_step();
  }
  ++length_;
  return logits;
}

// Where the sequences stand is known to the device alone, which counts on by itself.
Tensor Decoder::launch_step() {
  if (device_length_ != length_) {
    const std::vector<std::int32_t> positions(static_cast<std::size_t>(sequences_), static_cast<std::int32_t>(length_));
    positions_.assign<std::int32_t>(positions);
  }
  device_length_ = -1;  // unless all goes well
  LayerContext context = context_at(1, 0);
  context.starts = &positions_;
  const DecodeShape shape{sequences_, bound_of(length_ + 1)};
  Tensor logits = graphs_->run(shape, [&] {
    Tensor result = run_step(tokens_, context, shape.keys);
    ops::advance(positions_, 1);
    return result;
  });
  device_length_ = length_ + 1;
  return logits;
}

std::int64_t Decoder::bound_of(std::int64_t positions) const {
  std::int64_t bound = first_bound_;
  while (bound < positions) bound *= 2;
  return std::min(bound, capacity_);
}

// `keys` positions may be seen, the tokens' own counted.
Tensor Decoder::run_step(const Tensor& tokens, const LayerContext& context, std::int64_t keys) {
  Tensor hidden = Tensor::empty(model_.allocator(), {sequences_, model_.config().hidden}, model_.dtype());
  ops::embedding(tokens, model_.weights().embedding, 0, hidden);
  for (int layer = 0; layer < model_.config().layers; ++layer) hidden = step_layer(layer, context, keys, hidden);
  Tensor logits = head_logits(model_, hidden);
  if (end_) end_(logits, tokens_);
  return logits;
}

Tensor Decoder::step_layer(int layer, const LayerContext& context, std::int64_t keys, const Tensor& hidden) {
  const LayerWeights& weights = model_.weights().layers[static_cast<std::size_t>(layer)];
  const KvMap& map = model_.config().kv_map;
  const Tensor normed = layer_attention_norm(context, weights, hidden, nullptr);
  const Tensor query = layer_query(context, weights, normed, cache_[static_cast<std::size_t>(layer)]);
  // What does not see its own position reads up to the token before: an upward source has not seen this one yet. A
  // bound stays what it is, and visibility does the rest.
  const bool is_short = context.starts == nullptr && map.visibility(layer) == Visibility::kUpward;
  const auto cached = [&](KvPart part) { return cache_[static_cast<std::size_t>(map.source(part, layer))][part]; };
  const KvRead read{{cached(KvPart::kKey), cached(KvPart::kValue)}, is_short ? keys - 1 : keys};
  return layer_block_from_query(context, layer, weights, hidden, query, read);
}

std::int64_t kv_bytes_per_token(const ModelConfig& config, DType dtype) {
  return config.kv_map.owned_parts() * config.kv_heads * config.head_dim * static_cast<std::int64_t>(size_of(dtype));
}

}  // namespace kvloom
