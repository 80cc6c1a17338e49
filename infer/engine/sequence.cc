#include "infer/engine/sequence.h"

namespace kvloom {

Sequence::Sequence(SequenceId number, const NewSequence& facts, PagePools& pools)
    : id(number),
      tokens(facts.prompt),
      prompt(std::ssize(facts.prompt)),
      max_tokens(facts.max_tokens),
      priority(facts.priority),
      arrival(facts.arrival),
      next_wanted(facts.score_from.value_or(facts.generated.empty() ? prompt - 1 : prompt)),
      pages(pools, most_positions()) {
  tokens.insert(tokens.end(), facts.generated.begin(), facts.generated.end());
}

std::int64_t Sequence::target() const {
  if (known() < max_tokens) return known();
  return next_wanted < prompt ? prompt : 0;
}

const std::vector<PageKey>& Sequence::page_keys(std::int64_t positions, std::int64_t page_size,
                                                const PageKey& identity) {
  while ((std::ssize(keys) + 1) * page_size <= positions) {
    const std::span<const std::int32_t> page(tokens.data() + std::ssize(keys) * page_size,
                                             static_cast<std::size_t>(page_size));
    keys.push_back(next_page_key(keys.empty() ? identity : keys.back(), page));
  }
  return keys;
}

RowRun Sequence::next_decode(int layers, std::int64_t rows) const {
  return {.slot = slot,
          .kind = RowKind::kDecode,
          .layers = {0, layers},
          .first_position = computed,
          .rows = static_cast<std::int32_t>(std::min(rows, target() - computed)),
          .block_first = computed,
          .wanted_from = wanted_from()};
}

std::int32_t Sequence::finish(const RowRun& run, std::int32_t settled) {
  if (!prefill.has_value()) {
    computed += run.rows;
    return run.rows;
  }
  const PassCount before = prefill->passes();
  settled = prefill->finish(run, settled, wanted_from());
  computed = prefill->computed();
  if (computed > passes_counted) {
    passes.ran += prefill->passes().ran - before.ran;
    passes.settled += prefill->passes().settled - before.settled;
    passes_counted = computed;
  }
  capped |= prefill->was_capped();
  if (prefill->is_done()) prefill.reset();
  return settled;
}

}  // namespace kvloom
