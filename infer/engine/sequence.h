// One sequence: its tokens, how far it is, and what comes next. It knows of no other sequence.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "infer/engine/prefill_progress.h"
#include "infer/engine/sequence_pages.h"

namespace kvloom {

using SequenceId = std::uint64_t;

// What the scheduler is told of a sequence.
struct NewSequence {
  std::vector<std::int32_t> prompt;
  // Tokens generated so far; usually none. They are computed as decoded ones, not sampled again.
  std::vector<std::int32_t> generated;
  std::int64_t max_tokens = 0;  // prompt and generated together
  int priority = 0;             // higher first
  double arrival = 0;           // seconds; equal ones stand in the order of their ids
  // Logits are wanted of prompt positions from here on; nothing: of the last one alone, unless tokens were generated
  // already. The prefix cache is searched only up to the first wanted one.
  std::optional<std::int64_t> score_from;
};

enum class SequenceState : std::uint8_t { kWaiting, kRunning, kSwapped };

struct Sequence {
  Sequence(SequenceId number, const NewSequence& facts, PagePools& pools);

  std::int64_t known() const { return std::ssize(tokens); }
  // The last token that a sequence may have needs no K/V.
  std::int64_t most_positions() const { return std::max(prompt, max_tokens - 1); }
  // The first position whose logits are wanted and were not delivered.
  std::int64_t wanted_from() const { return next_wanted < prompt ? next_wanted : std::max(next_wanted, known() - 1); }
  // Positions that can be computed now, and have a use.
  std::int64_t target() const;
  bool has_work() const { return computed < target(); }
  bool decodes() const { return !prefill.has_value() && has_work(); }
  // Keys of the full pages of the first `positions` tokens.
  const std::vector<PageKey>& page_keys(std::int64_t positions, std::int64_t page_size, const PageKey& identity);
  // The next decoding run, of at most `rows` tokens.
  RowRun next_decode(int layers, std::int64_t rows) const;
  // A run was done; moves `computed`. Returns how many of its rows settled.
  std::int32_t finish(const RowRun& run, std::int32_t settled);

  SequenceId id;
  std::vector<std::int32_t> tokens;  // prompt, then generated ones
  std::int64_t prompt;               // how many of them are the prompt's
  std::int64_t max_tokens;
  int priority;
  double arrival;

  SequenceState state = SequenceState::kWaiting;
  std::int32_t slot = -1;
  std::int64_t computed = 0;               // positions before it are final
  std::optional<PrefillProgress> prefill;  // while running, until the prompt is computed
  std::int64_t next_wanted;                // logits of positions before it were delivered, or are not wanted
  bool awaits_token = false;               // the logits of the last known token were delivered

  std::vector<PageKey> keys;
  std::int64_t published = 0;  // pages of positions before it were given their keys
  SequencePages pages;

  std::optional<std::int64_t> cached_tokens;  // found when it was first admitted
  int preemptions = 0;
  PassCount passes;
  std::int64_t passes_counted = 0;  // of positions before it: what is computed again counts once
  bool capped = false;
};

}  // namespace kvloom
