// Engines on thread ranks, and loads that they are put under.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "infer/ranks/model_part.h"
#include "infer/ranks/rank_loop.h"
#include "parallel/thread_ranks.h"
#include "tests/support/delaying_communicator.h"
#include "tests/support/engine_fixture.h"

namespace kvloom::test {

// The rank's part of the whole model.
inline void put_part(const Model& whole, InferenceModel& part, Allocator& allocator) {
  for (const Parameter& parameter : part.layout().all()) {
    const Parameter& source = whole.layout().at(parameter.name);
    const auto from = whole.master().view(source.offset, source.shape).as<float>();
    const bool is_matrix = parameter.shape.size() == 2;
    const std::int64_t columns = is_matrix ? parameter.shape[1] : 1;
    const std::int64_t first_column = is_matrix ? parameter.global_offset[1] : 0;
    const std::int64_t global_columns = is_matrix ? parameter.global_shape[1] : 1;
    std::vector<float> values;
    for (std::int64_t row = 0; row < parameter.shape[0]; ++row) {
      const auto first = (parameter.global_offset[0] + row) * global_columns + first_column;
      values.insert(values.end(), from.begin() + first, from.begin() + first + columns);
    }
    part.put(parameter, 0, Tensor::of<float>(allocator, parameter.shape, values));
  }
}

struct Load {
  std::vector<Request> requests;
  std::vector<int> arrivals;   // steps
  std::vector<int> cancelled;  // steps; -1: never
};

inline Load random_load(Random& random, std::int64_t vocab, int requests = 5) {
  Load load;
  const auto common = random.tokens(60, vocab);
  for (int i = 0; i < requests; ++i) {
    Request request;
    request.prompt.assign(common.begin(), common.begin() + random.integer(0, 60));
    const auto own = random.tokens(static_cast<std::size_t>(random.integer(1, 30)), vocab);
    request.prompt.insert(request.prompt.end(), own.begin(), own.end());
    request.max_new_tokens = random.integer(1, 20);
    request.sampling.temperature = random.flip() ? 0 : 1;
    request.sampling.seed = random.seed();
    request.alternatives = 0;
    load.requests.push_back(request);
    load.arrivals.push_back(static_cast<int>(random.integer(0, 20)));
    load.cancelled.push_back(random.integer(0, 4) == 0 ? static_cast<int>(random.integer(5, 40)) : -1);
  }
  return load;
}

inline std::vector<Answer> serve(Engine& engine, const Load& load) {
  Answers answers;
  std::vector<RequestId> ids(load.requests.size(), 0);
  for (int step = 0; step <= 20 || !engine.is_idle(); ++step) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (load.arrivals[i] == step) ids[i] = engine.submit(load.requests[i], step);
      if (load.cancelled[i] == step && ids[i] != 0) engine.cancel(ids[i]);
    }
    for (const Event& event : engine.step(step)) answers[{event.request, event.choice}].take(event);
  }
  std::vector<Answer> in_order;
  for (const RequestId id : ids) in_order.push_back(answers[{id, 0}]);
  return in_order;
}

// Stages that hold layers [boundaries[s], boundaries[s + 1]), and the ranks that share each one's matrices.
struct ServedMesh {
  int tensor = 1;
  std::vector<int> boundaries;

  int stages() const { return static_cast<int>(boundaries.size()) - 1; }
};

// Runs `body` on rank 0 over an engine of all the mesh's ranks. With `delays` messages and sums begin late at random.
inline void run_on(const ServedMesh& served, const EngineModel& built, const EngineOptions& options,
                   const std::function<void(Engine&)>& body, const std::function<void(ModelPart&)>& at_end = {},
                   std::optional<std::uint64_t> delays = {}) {
  const Mesh mesh{.data = 1, .pipeline = served.stages(), .tensor = served.tensor};
  run_thread_ranks(mesh.size(), [&](Communicator& world) {
    CachingCpuAllocator allocator;
    std::optional<DelayingCommunicator> late;
    if (delays.has_value()) {
      late.emplace(world, std::chrono::microseconds(2000), *delays + static_cast<std::uint64_t>(world.rank()));
    }
    MeshRanks ranks(late.has_value() ? *late : world, mesh);
    ModelPart part(ranks, served.boundaries, allocator);
    InferenceModel model(built.model.config(), part.shard(), built.model.format(), allocator);
    put_part(built.trained, model, allocator);
    run_engine(model, options, part.ranks(), body);
    if (at_end) at_end(part);
  });
}

// Holds answers against one rank's: tokens, and log-probabilities within 1e-4. Sums of parts round otherwise: where two
// tokens are as likely, the other one may come when it is drawn at random, and the texts part. Returns how many tokens
// were held.
inline std::int64_t hold(const Load& load, const std::vector<Answer>& got, const std::vector<Answer>& wanted) {
  std::int64_t held = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const std::size_t both = std::min(got[i].tokens.size(), wanted[i].tokens.size());
    const auto end = got[i].tokens.begin() + static_cast<std::ptrdiff_t>(both);
    const auto parted = std::mismatch(got[i].tokens.begin(), end, wanted[i].tokens.begin());
    const auto same = static_cast<std::size_t>(parted.first - got[i].tokens.begin());
    for (std::size_t n = 0; n < same; ++n, ++held) {
      EXPECT_NEAR(got[i].log_probabilities[n], wanted[i].log_probabilities[n], 1e-4) << "request " << i;
    }
    if (load.requests[i].sampling.temperature == 0) {
      EXPECT_EQ(same, both) << "request " << i;
    }
    if (load.cancelled[i] < 0 && same == both) {
      EXPECT_EQ(got[i].finish, wanted[i].finish) << "request " << i;
    }
  }
  return held;
}

}  // namespace kvloom::test
