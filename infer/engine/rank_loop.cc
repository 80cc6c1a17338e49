#include "infer/engine/rank_loop.h"

#include <cstring>
#include <span>
#include <string>

#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr int kLeader = 0;

// The digest, then the plan. An empty message ends the loop.
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

LeadingRunner::~LeadingRunner() {
  if (!under_way_) broadcast_bytes(ranks_, {}, kLeader);
}

StepOutcome LeadingRunner::execute(const StepPlan& plan) {
  under_way_ = true;
  broadcast_bytes(ranks_, message_of(plan), kLeader);
  return own_.execute(plan);
}

void LeadingRunner::logits(const LogitsSink& sink) {
  own_.logits(sink);
  under_way_ = false;
}

void follow(StepRunner& own, Communicator& ranks) {
  const auto nothing = [](std::int64_t, const Tensor&) {};
  for (std::string message; !(message = broadcast_bytes(ranks, {}, kLeader)).empty();) {
    own.execute(plan_of(message));
    own.logits(nothing);
  }
}

void run_engine(const InferenceModel& model, const EngineOptions& options, const EngineRanks& ranks,
                const std::function<void(Engine&)>& body) {
  Runner own(model, running_of(completed(options, model), model, ranks.tensor));
  const bool leads = ranks.all == nullptr || ranks.all->rank() == kLeader;
  if (!leads) return follow(own, *ranks.all);
  if (ranks.all == nullptr) {
    Engine engine(model, options, own);
    return body(engine);
  }
  LeadingRunner leading(own, *ranks.all);
  Engine engine(model, options, leading);
  body(engine);
}

}  // namespace kvloom
