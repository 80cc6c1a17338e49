#include "parallel/schedule_order.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <queue>
#include <set>
#include <tuple>

namespace kvloom {
namespace {

constexpr std::size_t at(int index) { return static_cast<std::size_t>(index); }

// What a rank does for every micro-batch, in this order.
struct RankWork {
  std::vector<int> forward;   // chunks
  std::vector<int> backward;  // chunks
  std::size_t gate = 0;       // into `forward`: from here on it keeps what backward needs, pass after pass
};

std::vector<RankWork> work_of_ranks(const ChunkChain& chain, SchedulePolicy policy) {
  std::vector<RankWork> work(at(chain.ranks));
  for (std::size_t index = 0; index < chain.chunks.size(); ++index) {
    const Chunk& chunk = chain.chunks[index];
    RankWork& rank = work[at(chunk.rank)];
    rank.forward.push_back(static_cast<int>(index));
    if (!chunk.keeps_gradient) rank.gate = rank.forward.size();
    if (chunk.keeps_gradient) rank.backward.push_back(static_cast<int>(index));
  }
  for (RankWork& rank : work) {
    std::ranges::reverse(rank.backward);
    if (policy == SchedulePolicy::kForwardOnly) rank.backward.clear();
    rank.gate = std::min(rank.gate, rank.forward.size() - 1);
  }
  return work;
}

// What a rank prefers when both directions are ready.
enum class Preference : std::uint8_t {
  kForward,    // forward, until a limit stops it
  kAlternate,  // not what it did last
};

// How many micro-batches may be under way.
struct Rules {
  std::vector<int> kept;  // by rank: past its gate, not yet back
  int started = 0;        // past the first chunk, not yet finished
  Preference preference = Preference::kForward;

  friend bool operator==(const Rules&, const Rules&) = default;
};

constexpr int kNoLimit = std::numeric_limits<int>::max();

// Less kept memory is worth this much more time.
constexpr double kGoodEnough = 1.01;

struct Played {
  ComputeOrder order;
  double makespan = 0;
};

// Plays one step with ranks that always take what is ready.
class ListScheduler {
 public:
  ListScheduler(const ChunkChain& chain, int micro_batches, SchedulePolicy policy, const ScheduleCosts& costs,
                const std::vector<RankWork>& work, const Rules& rules)
      : chain_(chain), micro_batches_(micro_batches), policy_(policy), costs_(costs), work_(work), rules_(rules) {}

  Played play() {
    prepare();
    for (int micro_batch = 0; micro_batch < micro_batches_; ++micro_batch) {
      for (int rank = 0; rank < chain_.ranks; ++rank) refresh(rank, micro_batch);
    }
    start_idle_ranks();
    while (!events_.empty()) {
      now_ = events_.top().time;
      while (!events_.empty() && events_.top().time == now_) {
        const Event event = events_.top();
        events_.pop();
        if (event.edge < 0) {
          finish(event.rank);
        } else {
          arrive(event);
        }
      }
      start_idle_ranks();
    }
    return {std::move(order_), now_};
  }

 private:
  struct Progress {
    std::size_t forward = 0;  // chunks of the rank that have begun
    std::size_t backward = 0;
    bool computing = false;
  };
  struct Rank {
    std::vector<Progress> progress;  // by micro-batch
    std::set<int> forward_ready;     // micro-batches whose next chunk has all that it reads
    std::set<int> backward_ready;
    int kept = 0;
    int next_through_gate = 0;  // micro-batch
    int forwards_left = 0;
    std::optional<ComputeTask> running;
  };
  // A rank has ended what it computed (edge < 0), or a message has arrived.
  struct Event {
    double time;
    int number;  // events of one time happen in the order in which they were made
    int rank;
    int edge;
    int micro_batch;
    bool gradient;

    friend bool operator>(const Event& a, const Event& b) {
      return std::tie(a.time, a.number) > std::tie(b.time, b.number);
    }
  };

  void prepare() {
    order_.ranks.resize(at(chain_.ranks));
    ranks_.resize(at(chain_.ranks));
    int tasks = 0;
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      ranks_[rank].progress.resize(at(micro_batches_));
      ranks_[rank].forwards_left = static_cast<int>(work_[rank].forward.size()) * micro_batches_;
      tasks += static_cast<int>(work_[rank].forward.size() + work_[rank].backward.size());
    }
    tasks_left_.assign(at(micro_batches_), tasks);
    for (auto& arrived : arrived_) arrived.assign(chain_.edges.size() * at(micro_batches_), false);
    link_free_.assign(at(chain_.ranks * chain_.ranks), 0);
  }

  std::size_t message(int edge, int micro_batch) const { return at(edge) * at(micro_batches_) + at(micro_batch); }

  bool have_arrived(const std::vector<int>& edges, int micro_batch, bool gradient) const {
    return std::ranges::all_of(edges, [&](int edge) { return arrived_[gradient][message(edge, micro_batch)]; });
  }

  // Puts a micro-batch among the ready ones of a rank if its next chunk there has all that it reads.
  void refresh(int rank, int micro_batch) {
    const RankWork& work = work_[at(rank)];
    Rank& state = ranks_[at(rank)];
    const Progress& progress = state.progress[at(micro_batch)];
    if (progress.computing) return;
    if (progress.forward < work.forward.size()) {
      const int chunk = work.forward[progress.forward];
      if (have_arrived(chain_.needs[at(chunk)], micro_batch, false)) state.forward_ready.insert(micro_batch);
    } else if (progress.backward < work.backward.size()) {
      const int chunk = work.backward[progress.backward];
      if (have_arrived(chain_.backward_needs[at(chunk)], micro_batch, true)) state.backward_ready.insert(micro_batch);
    }
  }

  bool is_admitted(int rank, int micro_batch) const {
    const Rank& state = ranks_[at(rank)];
    const std::size_t position = state.progress[at(micro_batch)].forward;
    if (position == 0 && work_[at(rank)].forward.front() == 0) {
      if (micro_batch != next_started_ || started_ >= rules_.started) return false;
    }
    if (position != work_[at(rank)].gate) return true;
    return micro_batch == state.next_through_gate && state.kept < rules_.kept[at(rank)];
  }

  std::optional<ComputeTask> ready_backward(int rank) const {
    const Rank& state = ranks_[at(rank)];
    const bool must_wait = policy_ == SchedulePolicy::kGPipe && state.forwards_left > 0;
    if (must_wait || state.backward_ready.empty()) return std::nullopt;
    const int micro_batch = *state.backward_ready.begin();
    const std::size_t position = state.progress[at(micro_batch)].backward;
    return ComputeTask{Action::kBackward, micro_batch, work_[at(rank)].backward[position]};
  }

  std::optional<ComputeTask> ready_forward(int rank) const {
    const Rank& state = ranks_[at(rank)];
    for (const int micro_batch : state.forward_ready) {
      if (!is_admitted(rank, micro_batch)) continue;
      const std::size_t position = state.progress[at(micro_batch)].forward;
      return ComputeTask{Action::kForward, micro_batch, work_[at(rank)].forward[position]};
    }
    return std::nullopt;
  }

  std::optional<ComputeTask> choose(int rank) const {
    const std::optional<ComputeTask> forward = ready_forward(rank);
    const std::optional<ComputeTask> backward = ready_backward(rank);
    if (!forward.has_value() || !backward.has_value()) return forward.has_value() ? forward : backward;
    if (rules_.preference == Preference::kForward) return forward;
    const std::vector<ComputeTask>& done = order_.ranks[at(rank)];
    return done.empty() || done.back().action == Action::kForward ? backward : forward;
  }

  void start_idle_ranks() {
    for (int rank = 0; rank < chain_.ranks; ++rank) {
      if (ranks_[at(rank)].running.has_value()) continue;
      if (const std::optional<ComputeTask> task = choose(rank)) start(rank, *task);
    }
  }

  void start(int rank, const ComputeTask& task) {
    Rank& state = ranks_[at(rank)];
    Progress& progress = state.progress[at(task.micro_batch)];
    progress.computing = true;
    if (task.action == Action::kForward) {
      state.forward_ready.erase(task.micro_batch);
      --state.forwards_left;
      if (task.chunk == 0) {
        ++next_started_;
        ++started_;
      }
      if (progress.forward == work_[at(rank)].gate) {
        ++state.next_through_gate;
        ++state.kept;
      }
      ++progress.forward;
    } else {
      state.backward_ready.erase(task.micro_batch);
      ++progress.backward;
    }
    state.running = task;
    order_.ranks[at(rank)].push_back(task);
    const std::vector<double>& times = task.action == Action::kForward ? costs_.forward : costs_.backward;
    events_.push({now_ + times[at(task.chunk)], event_number_++, rank, -1, task.micro_batch, false});
  }

  void finish(int rank) {
    Rank& state = ranks_[at(rank)];
    const ComputeTask task = *state.running;
    state.running.reset();
    Progress& progress = state.progress[at(task.micro_batch)];
    progress.computing = false;
    const RankWork& work = work_[at(rank)];
    const bool done = progress.forward == work.forward.size() && progress.backward == work.backward.size();
    if (done) --state.kept;
    if (--tasks_left_[at(task.micro_batch)] == 0) --started_;
    if (task.action == Action::kForward) {
      for (const int edge : chain_.gives[at(task.chunk)]) send(edge, task.micro_batch, false);
    } else {
      for (const int edge : chain_.backward_gives[at(task.chunk)]) send(edge, task.micro_batch, true);
    }
    refresh(rank, task.micro_batch);
  }

  // A link carries one message after the other.
  void send(int edge, int micro_batch, bool gradient) {
    const Edge& ends = chain_.edges[at(edge)];
    const int from = gradient ? ends.to_rank : ends.from_rank;
    const int to = gradient ? ends.from_rank : ends.to_rank;
    double& link_free = link_free_[at(from * chain_.ranks + to)];
    link_free = std::max(link_free, now_) + (gradient ? costs_.gradient_crossing : costs_.crossing)[at(edge)];
    events_.push({link_free, event_number_++, to, edge, micro_batch, gradient});
  }

  void arrive(const Event& event) {
    arrived_[event.gradient][message(event.edge, event.micro_batch)] = true;
    refresh(event.rank, event.micro_batch);
  }

  const ChunkChain& chain_;
  const int micro_batches_;
  const SchedulePolicy policy_;
  const ScheduleCosts& costs_;
  const std::vector<RankWork>& work_;
  const Rules& rules_;

  std::vector<Rank> ranks_;
  std::vector<int> tasks_left_;   // by micro-batch
  std::vector<bool> arrived_[2];  // forward, gradient; by message
  std::vector<double> link_free_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  int event_number_ = 0;
  double now_ = 0;
  int next_started_ = 0;  // micro-batch
  int started_ = 0;       // and not finished
  ComputeOrder order_;
};

bool visits_each_rank_once(const std::vector<RankWork>& work) {
  return std::ranges::all_of(work, [](const RankWork& rank) { return rank.forward.size() == 1; });
}

Rules unlimited(const ChunkChain& chain) { return {std::vector<int>(at(chain.ranks), kNoLimit), kNoLimit}; }

// Ranks from here to the end of the pipeline: the warm-up of PipeDream-Flush.
Rules one_visit_rules(const ChunkChain& chain) {
  Rules rules = unlimited(chain);
  for (int rank = 0; rank < chain.ranks; ++rank) rules.kept[at(rank)] = chain.ranks - rank;
  return rules;
}

// A pipeline is full when the busiest rank always has work: with as many micro-batches between two points as fit into
// the time that one takes from the one to the other, and some more that wait behind others.
class CirculatingRules {
 public:
  CirculatingRules(const ChunkChain& chain, int micro_batches, const ScheduleCosts& costs,
                   const std::vector<RankWork>& work)
      : chain_(chain), micro_batches_(micro_batches), costs_(costs), work_(work) {
    for (const RankWork& rank : work) {
      double busy = 0;
      for (const int chunk : rank.forward) busy += costs.forward[at(chunk)];
      for (const int chunk : rank.backward) busy += costs.backward[at(chunk)];
      busiest_ = std::max(busiest_, busy);
    }
  }

  // Those worth a try, without repeats; what keeps less comes first.
  std::vector<Rules> candidates() const {
    std::vector<Rules> all;
    for (const int kept : {0, 1, 2, chain_.ranks, 2 * chain_.ranks}) {
      for (const int started : {0, 2, chain_.ranks, 2 * chain_.ranks}) {
        if (started < kept) continue;
        for (const Preference preference : {Preference::kForward, Preference::kAlternate}) {
          Rules rules = with_waiting(kept, started);
          rules.preference = preference;
          if (std::ranges::find(all, rules) == all.end()) all.push_back(std::move(rules));
        }
      }
    }
    return all;
  }

 private:
  Rules with_waiting(int kept, int started) const {
    Rules rules;
    for (const RankWork& rank : work_) {
      const int gate = rank.forward[rank.gate];
      const int back = rank.backward.empty() ? static_cast<int>(chain_.chunks.size()) : rank.backward.back();
      rules.kept.push_back(std::min(filling(gate, back) + kept, micro_batches_));
    }
    rules.started = std::min(std::max(filling(0, 0), chain_.ranks) + started, micro_batches_);
    return rules;
  }

  // Micro-batches that fill the way from chunk `up_from` forward to the end and backward to chunk `down_to`.
  int filling(int up_from, int down_to) const {
    double time = 0;
    for (std::size_t chunk = 0; chunk < chain_.chunks.size(); ++chunk) {
      if (chunk >= at(up_from)) time += costs_.forward[chunk];
      if (chunk >= at(down_to) && chain_.chunks[chunk].keeps_gradient) time += costs_.backward[chunk];
    }
    if (busiest_ <= 0) return chain_.ranks;
    return std::clamp(static_cast<int>(std::ceil(time / busiest_ - 1e-9)), 1, chain_.ranks);
  }

  const ChunkChain& chain_;
  const int micro_batches_;
  const ScheduleCosts& costs_;
  const std::vector<RankWork>& work_;
  double busiest_ = 0;
};

// Rules are compared over fewer micro-batches than there are where playing all of them, rule by rule, takes seconds.
int micro_batches_to_compare(const ChunkChain& chain, int micro_batches) {
  constexpr std::size_t kMostComputes = 20'000;
  const auto affordable = static_cast<int>(kMostComputes / chain.chunks.size());
  return std::min(micro_batches, std::max(affordable, 2 * chain.ranks));
}

}  // namespace

ComputeOrder order_computes(const ChunkChain& chain, int micro_batches, SchedulePolicy policy,
                            const ScheduleCosts& costs) {
  const std::vector<RankWork> work = work_of_ranks(chain, policy);
  const auto play = [&](const Rules& rules, int count) {
    return ListScheduler(chain, count, policy, costs, work, rules).play();
  };
  if (policy == SchedulePolicy::kGPipe) return play(unlimited(chain), micro_batches).order;
  if (chain.ranks == 1) return play({.kept = {1}, .started = 1}, micro_batches).order;
  if (visits_each_rank_once(work)) return play(one_visit_rules(chain), micro_batches).order;

  const int compared = micro_batches_to_compare(chain, micro_batches);
  const std::vector<Rules> candidates = CirculatingRules(chain, micro_batches, costs, work).candidates();
  std::vector<Played> played;
  for (const Rules& rules : candidates) played.push_back(play(rules, compared));
  const double best = std::ranges::min(played, {}, &Played::makespan).makespan;
  const auto chosen =
      std::ranges::find_if(played, [&](const Played& one) { return one.makespan <= kGoodEnough * best; });
  if (compared == micro_batches) return std::move(chosen->order);
  return play(candidates[static_cast<std::size_t>(chosen - played.begin())], micro_batches).order;
}

}  // namespace kvloom
