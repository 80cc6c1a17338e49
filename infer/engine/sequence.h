// One sequence: its tokens, how far it is, and what comes next. It knows of no other sequence.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
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
  // Logits are wanted of prompt positions from here on; nothing: of the last one alone, if nothing was generated yet.
  // The prefix cache is searched only up to the first wanted one.
  std::optional<std::int64_t> score_from;
};

enum class SequenceState : std::uint8_t { kWaiting, kRunning, kSwapped };

struct Sequence {
  Sequence(SequenceId number, NewSequence of, const PrefillRules& rules, PagePools& pools)
      : id(number),
        facts(std::move(of)),
        tokens(facts.prompt),
        prompt(std::ssize(facts.prompt)),
        prefill(rules, prompt),
        next_wanted(facts.score_from.value_or(facts.generated.empty() ? prompt - 1 : prompt)),
        pages(pools, most_positions()) {
    tokens.insert(tokens.end(), facts.generated.begin(), facts.generated.end());
  }

  std::int64_t known() const { return std::ssize(tokens); }
  // The last token that a sequence may have needs no K/V.
  std::int64_t most_positions() const { return std::max(prompt, facts.max_tokens - 1); }
  // The first position whose logits are wanted and were not delivered.
  std::int64_t wanted_from() const { return next_wanted < prompt ? next_wanted : std::max(next_wanted, known() - 1); }
  // Positions that can be computed now, and have a use.
  std::int64_t target() const { return known() < facts.max_tokens ? known() : next_wanted < prompt ? prompt : 0; }
  bool has_work() const { return computed < target() && !under_way; }
  bool is_in_prompt() const { return computed < prompt; }

  SequenceId id;
  NewSequence facts;
  std::vector<std::int32_t> tokens;  // prompt, then generated ones
  std::int64_t prompt;               // how many of them are the prompt's

  SequenceState state = SequenceState::kWaiting;
  std::int32_t slot = -1;
  std::int64_t computed = 0;  // positions before it are final
  PrefillProgress prefill;
  std::int64_t next_wanted;   // logits of positions before it were delivered, or are not wanted
  bool awaits_token = false;  // the logits of the last known token were delivered
  bool under_way = false;     // in a step that is not finished
  bool leaves = false;        // is removed when that is
  int preemptions = 0;

  SequencePages pages;
  std::vector<PageKey> keys;                  // of its first full pages, as far as they were asked for
  std::int64_t published = 0;                 // pages of positions before it were given their keys
  std::optional<std::int64_t> cached_tokens;  // found when it was first admitted
};

}  // namespace kvloom
