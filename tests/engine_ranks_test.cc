// An engine whose matrices are split among ranks answers as one rank's does, whatever shares its steps.
#include <gtest/gtest.h>

#include <mutex>

#include "infer/engine/rank_loop.h"
#include "parallel/tensor_ranks.h"
#include "parallel/thread_ranks.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/sanitized.h"

namespace kvloom {
namespace {

constexpr int kLayers = 8;

proto::ModelConfig small(const std::string& map) {
  proto::ModelConfig config = test::small_model(kLayers, map, 5);
  config.set_context(160);
  config.set_initializer_range(0.15);
  return config;
}

// The rank's part of the whole model.
void put_part(const Model& whole, InferenceModel& part, Allocator& allocator) {
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

Load random_load(test::Random& random, std::int64_t vocab) {
  Load load;
  const auto common = random.tokens(60, vocab);
  for (int i = 0; i < 5; ++i) {
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

std::vector<test::Answer> serve(Engine& engine, const Load& load) {
  test::Answers answers;
  std::vector<RequestId> ids(load.requests.size(), 0);
  for (int step = 0; step <= 20 || !engine.is_idle(); ++step) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (load.arrivals[i] == step) ids[i] = engine.submit(load.requests[i], step);
      if (load.cancelled[i] == step && ids[i] != 0) engine.cancel(ids[i]);
    }
    for (const Event& event : engine.step(step)) answers[{event.request, event.choice}].take(event);
  }
  std::vector<test::Answer> in_order;
  for (const RequestId id : ids) in_order.push_back(answers[{id, 0}]);
  return in_order;
}

std::vector<test::Answer> serve_on_ranks(const test::EngineModel& built, const EngineOptions& options, const Load& load,
                                         int ranks) {
  std::vector<test::Answer> answers;
  run_thread_ranks(ranks, [&](Communicator& world) {
    CachingCpuAllocator allocator;
    ModelShard shard = ModelShard::whole(built.model.config());
    shard.tensor_rank = world.rank();
    shard.tensor_size = world.size();
    InferenceModel part(built.model.config(), shard, built.model.format(), allocator);
    put_part(built.trained, part, allocator);
    TensorRanks tensor(world, SequenceParallel::kNo, allocator);
    run_engine(part, options, {.all = &world, .tensor = &tensor},
               [&](Engine& engine) { answers = serve(engine, load); });
  });
  return answers;
}

TEST(EngineRanks, TensorRanksAnswerAsOneRankDoes) {
  test::Random random;
  std::vector<std::string> maps = {"none", "yoco", "cla:2", "0s_1s_3_3s_5s_5_7_7", "0s_1s_2s_3_3:0_6:2s_6_3:0"};
  for (const std::string& name : test::nine_maps()) maps.push_back(name + ":3");
  for (int i = 0; i < test::repetitions(4, 2, "random maps"); ++i) {
    maps.push_back(test::random_map(random, kLayers, i % 2 == 0));
  }
  int held = 0;
  for (const std::string& map : maps) {
    test::EngineModel built(small(map), random);
    EngineOptions options;
    options.tolerance = 1e-5F;
    options.page_size = 16;
    options.grid = 16 * random.integer(1, 4);
    options.window = random.integer(1, 40);
    options.max_chunk = random.integer(4, 64);
    options.max_sequences = random.integer(2, 6);
    const Load load = random_load(random, built.model.config().vocab);
    Engine alone(built.model, options);
    const std::vector<test::Answer> wanted = serve(alone, load);
    for (const int ranks : {2, 4}) {
      const std::vector<test::Answer> got = serve_on_ranks(built, options, load, ranks);
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        // Sums of parts round otherwise: where two tokens are as likely, the other one may come, and the texts part.
        const std::size_t both = std::min(got[i].tokens.size(), wanted[i].tokens.size());
        const auto parted = std::mismatch(
            got[i].tokens.begin(), got[i].tokens.begin() + static_cast<std::ptrdiff_t>(both), wanted[i].tokens.begin());
        const auto same = static_cast<std::size_t>(parted.first - got[i].tokens.begin());
        for (std::size_t n = 0; n < same; ++n) {
          ASSERT_NEAR(got[i].log_probabilities[n], wanted[i].log_probabilities[n], 1e-4) << map << " on " << ranks;
          ++held;
        }
        if (load.requests[i].sampling.temperature == 0) {
          EXPECT_EQ(same, both) << map << " on " << ranks << ", request " << i;
        }
      }
    }
  }
  std::cout << maps.size() << " maps on 2 and 4 tensor ranks, " << held << " tokens held against one rank's\n";
  EXPECT_GT(held, 100);
}

TEST(EngineRanks, APlanThatArrivesChangedIsRefused) {
  EXPECT_THROW(run_thread_ranks(2,
                                [&](Communicator& world) {
                                  test::Random random(1);
                                  test::EngineModel built(small("none"), random);
                                  Runner own(built.model, running_of(completed({}, built.model), built.model));
                                  if (world.rank() != 0) return follow(own, world);
                                  StepPlan plan;
                                  plan.step = 3;
                                  std::string message(8, 'x');
                                  for (const std::byte byte : to_bytes(plan))
                                    message.push_back(static_cast<char>(byte));
                                  broadcast_bytes(world, message, 0);
                                }),
               Error);
}

}  // namespace
}  // namespace kvloom
