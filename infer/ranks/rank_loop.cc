#include "infer/ranks/rank_loop.h"

#include <chrono>
#include <cstring>
#include <span>
#include <thread>
#include <utility>

#include "infer/ranks/step_plan_bytes.h"
#include "kernels/error.h"
#include "parallel/patience.h"

namespace kvloom {
namespace {

constexpr int kLeader = 0;
constexpr std::chrono::milliseconds kIdleAfter{100};
constexpr std::chrono::milliseconds kIdleRest{1};

// The digest, then the plan. A message without bytes ends the loop.
std::string message_of(const StepPlan& plan) {
  const std::vector<std::byte> bytes = to_bytes(plan);
  const std::uint64_t sum = digest(plan);
  std::string message(sizeof(sum) + bytes.size(), '\0');
  std::memcpy(message.data(), &sum, sizeof(sum));
  std::memcpy(message.data() + sizeof(sum), bytes.data(), bytes.size());
  return message;
}

StepPlan plan_of(const std::string& message) {
  std::uint64_t sum = 0;
  if (message.size() < sizeof(sum)) fail("rank loop: a message of {} bytes is no plan", message.size());
  std::memcpy(&sum, message.data(), sizeof(sum));
  StepPlan plan = parse_step_plan(std::as_bytes(std::span(message)).subspan(sizeof(sum)));
  if (digest(plan) != sum)
    fail("rank loop: step {} has digest {:016x}; rank 0 sent {:016x}", plan.step, digest(plan), sum);
  return plan;
}

}  // namespace

void LeadingRunner::send(std::string bytes) {
  const auto length = std::ssize(bytes);
  sent_.add({length, std::move(bytes)}, [&](TextMessage& message, std::vector<Transfer>& transfers) {
    for (int rank = 0; rank < ranks_.size(); ++rank) {
      if (rank != kLeader) start_text(message, ranks_, rank, kPlanTag, transfers);
    }
  });
}

void LeadingRunner::start(const StepPlan& plan) {
  is_broken_ = true;
  ++under_way_;
  send(message_of(plan));
  own_.start(plan);
  is_broken_ = false;
}

StepOutcome LeadingRunner::outcome() {
  is_broken_ = true;
  StepOutcome outcome = own_.outcome();
  is_broken_ = false;
  return outcome;
}

void LeadingRunner::logits(const LogitsSink& sink) {
  is_broken_ = true;
  own_.logits(sink);
  --under_way_;
  is_broken_ = false;
}

void LeadingRunner::finish() {
  if (is_broken_) fail("rank loop: a step failed under way, and the other ranks cannot go on");
  while (under_way_ > 0) {
    outcome();
    logits([](std::int64_t, const Tensor&) {});
  }
  send({});
  sent_.finish();
}

void follow(Runner& own, Communicator& ranks) {
  for (std::int64_t length = 0;;) {
    Transfer begin = ranks.irecv(std::span(&length, 1), kLeader, kPlanTag);
    // Nobody asks anything of an idle engine, however long: then it looks less often.
    if (!is_done_within(begin, kIdleAfter)) {
      while (!begin.done()) std::this_thread::sleep_for(kIdleRest);
    }
    begin.wait();
    if (length == 0) return;
    own.follow(plan_of(receive_text(ranks, length, kLeader, kPlanTag)));
  }
}

void run_engine(const InferenceModel& model, const EngineOptions& options, const EngineRanks& ranks,
                const std::function<void(Engine&)>& body) {
  const EngineOptions complete = completed(options, model, ranks.model);
  Runner own(model, running_of(complete, model, ranks.model));
  if (ranks.all == nullptr) {
    Engine engine(model, complete, own);
    body(engine);
  } else if (ranks.all->rank() == kLeader) {
    LeadingRunner leading(own, *ranks.all);
    Engine engine(model, complete, leading);
    body(engine);
    leading.finish();
  } else {
    follow(own, *ranks.all);
  }
  own.finish();
}

}  // namespace kvloom
