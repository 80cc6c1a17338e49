// An engine whose model is split among ranks, by matrices, by layers or both, answers as one rank's does, whatever
// shares its steps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>

#include "infer/ranks/step_plan_bytes.h"
#include "parallel/serving_plan.h"
#include "parallel/stage_layout.h"
#include "tests/support/engine_ranks.h"
#include "tests/support/forwarding_communicator.h"
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

EngineOptions random_options(test::Random& random) {
  EngineOptions options;
  options.tolerance = 1e-5F;
  options.page_size = 16;
  options.grid = 16 * random.integer(1, 4);
  options.window = random.integer(1, 40);
  options.max_chunk = random.integer(4, 64);
  options.max_sequences = random.integer(2, 6);
  return options;
}

std::vector<std::string> all_maps(test::Random& random) {
  std::vector<std::string> maps = {"none", "yoco", "cla:2", "0s_1s_3_3s_5s_5_7_7", "0s_1s_2s_3_3:0_6:2s_6_3:0"};
  for (const std::string& name : test::nine_maps()) maps.push_back(name + ":3");
  for (int i = 0; i < test::repetitions(4, 2, "random maps"); ++i) {
    maps.push_back(test::random_map(random, kLayers, i % 2 == 0));
  }
  return maps;
}

std::vector<test::Answer> serve_on(const test::ServedMesh& mesh, const test::EngineModel& built,
                                   const EngineOptions& options, const test::Load& load,
                                   SchedulerCounts* counts = nullptr) {
  std::vector<test::Answer> answers;
  test::run_on(mesh, built, options, [&](Engine& engine) {
    answers = test::serve(engine, load);
    if (counts == nullptr) return;
    counts->preemptions += engine.counts().sequences.preemptions;
    counts->prefix_hits += engine.counts().sequences.prefix_hits;
  });
  return answers;
}

std::string name_of(const test::ServedMesh& mesh) {
  return "tensor " + std::to_string(mesh.tensor) + ", cuts " + testing::PrintToString(mesh.boundaries);
}

// Bytes of one sequence's pages on the rank that needs most for it.
std::int64_t most_of_a_stage(ModelConfig config, const test::ServedMesh& mesh, const EngineOptions& options) {
  config.kv_heads = std::max<std::int64_t>(1, config.kv_heads / mesh.tensor);
  std::int64_t most = 0;
  for (int stage = 0; stage < mesh.stages(); ++stage) {
    const KvSources kept = sources_kept(config.kv_map, mesh.boundaries, stage);
    most = std::max(most, paged_bytes(config, reach_groups(config.kv_map, kept), options.kv_format, options.page_size,
                                      config.context, std::max(options.max_chunk, options.grid)));
  }
  return most;
}

std::vector<int> even_cuts(int stages) {
  const StageLayout layout = StageLayout::even(kLayers, stages);
  return {layout.boundaries().begin(), layout.boundaries().end()};
}

TEST(EngineRanks, AnyMeshAnswersAsOneRankDoes) {
  test::Random random;
  const std::vector<std::string> maps = all_maps(random);
  const std::vector<test::ServedMesh> meshes = {{2, {0, kLayers}}, {4, {0, kLayers}}, {1, even_cuts(2)},
                                                {1, even_cuts(3)}, {1, even_cuts(4)}, {2, even_cuts(2)}};
  std::int64_t held = 0;
  for (const std::string& map : maps) {
    test::EngineModel built(small(map), random);
    EngineOptions options = random_options(random);
    options.guess = random.integer(0, 3) == 0 ? StartingGuess::kZeros : StartingGuess::kProjection;
    const test::Load load = test::random_load(random, built.model.config().vocab);
    Engine alone(built.model, options);
    const std::vector<test::Answer> wanted = test::serve(alone, load);
    for (const test::ServedMesh& mesh : meshes) {
      SCOPED_TRACE(map + " on " + name_of(mesh));
      held += test::hold(load, serve_on(mesh, built, options, load), wanted);
    }
  }
  std::cout << maps.size() << " maps on " << meshes.size() << " meshes, " << held
            << " tokens held against one rank's\n";
  EXPECT_GT(held, 100);
}

// Pages for two sequences or three: some give way, to the host's memory or to be computed again.
TEST(EngineRanks, StagesCutAnywhereAnswerAsOneRankDoesWhereSequencesGiveWay) {
  test::Random random;
  std::vector<test::ServedMesh> meshes;
  for (int cut = 1; cut < kLayers; ++cut) meshes.push_back({1, {0, cut, kLayers}});
  for (int cut = 1; cut + 2 < kLayers; ++cut) {
    const int second = static_cast<int>(random.integer(cut + 1, kLayers - 1));
    meshes.push_back({1, {0, cut, second, kLayers}});
  }
  meshes.push_back({2, {0, static_cast<int>(random.integer(1, kLayers - 1)), kLayers}});
  std::int64_t held = 0;
  SchedulerCounts counts;
  for (const std::string& map : {std::string("sandwich-top:3"), std::string("lasagna-middle:3"), std::string("yoco"),
                                 std::string("0s_1s_3_3s_5s_5_7_7"), test::random_map(random, kLayers, true)}) {
    test::EngineModel built(small(map), random);
    EngineOptions options = random_options(random);
    options.max_sequences = 6;
    const test::Load load = test::random_load(random, built.model.config().vocab, 7);
    Engine alone(built.model, options);
    const std::vector<test::Answer> wanted = test::serve(alone, load);
    for (const test::ServedMesh& mesh : meshes) {
      SCOPED_TRACE(map + " on " + name_of(mesh));
      EngineOptions tight = options;
      tight.kv_bytes = most_of_a_stage(built.model.config(), mesh, options) * random.integer(10, 25) / 10;
      tight.swap_bytes = random.flip() ? tight.kv_bytes : 0;
      held += test::hold(load, serve_on(mesh, built, tight, load, &counts), wanted);
    }
  }
  std::cout << meshes.size() << " meshes, " << held << " tokens held against one rank's, " << counts.preemptions
            << " preemptions, " << counts.prefix_hits << " tokens found in the prefix cache\n";
  EXPECT_GT(held, 100);
  EXPECT_GT(counts.preemptions, 0);
  EXPECT_GT(counts.prefix_hits, 0);
}

TEST(EngineRanks, LateMessagesAndSumsChangeNoBitOfAnAnswer) {
  test::Random random;
  for (const std::string& map :
       {std::string("sandwich-top:3"), std::string("none"), test::random_map(random, kLayers, true)}) {
    test::EngineModel built(small(map), random);
    const EngineOptions options = random_options(random);
    const test::Load load = test::random_load(random, built.model.config().vocab, 4);
    for (const test::ServedMesh& mesh : {test::ServedMesh{1, even_cuts(3)}, test::ServedMesh{2, even_cuts(2)}}) {
      SCOPED_TRACE(map + " on " + name_of(mesh));
      const std::vector<test::Answer> wanted = serve_on(mesh, built, options, load);
      std::vector<test::Answer> late;
      test::run_on(
          mesh, built, options, [&](Engine& engine) { late = test::serve(engine, load); }, {}, random.seed());
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        if (load.cancelled[i] >= 0) continue;  // how far it came depends on the steps
        EXPECT_EQ(late[i].tokens, wanted[i].tokens);
        EXPECT_EQ(late[i].log_probabilities, wanted[i].log_probabilities);
      }
    }
  }
}

ServingShape shape_of(const test::EngineModel& built, const test::ServedMesh& mesh, const EngineOptions& options) {
  return {.model = built.model.config(),
          .stages = mesh.stages(),
          .tensor_ranks = mesh.tensor,
          .compute = built.model.dtype(),
          .kv_format = options.kv_format,
          .page_size = options.page_size,
          .context = built.model.config().context,
          .rows_ahead = std::max(options.max_chunk, options.grid)};
}

// What stages sent while one prompt was computed and so many tokens decoded.
StageBytes sent_for(std::int64_t tokens, const test::ServedMesh& mesh, const test::EngineModel& built,
                    const EngineOptions& options) {
  Request request;
  request.prompt = std::vector<std::int32_t>(20, 3);
  request.max_new_tokens = tokens;
  request.sampling.temperature = 0;
  std::mutex mutex;
  StageBytes sent;
  const auto add = [&](const ModelPart& part) {
    const std::lock_guard lock(mutex);
    const auto of = [&](StageMessage message) { return static_cast<std::int64_t>(part.stages()->sent_bytes(message)); };
    sent.hidden += of(StageMessage::kHidden);
    sent.downward += of(StageMessage::kDownward);
    sent.upward += of(StageMessage::kUpward);
    sent.logits += of(StageMessage::kLogits);
  };
  test::run_on(
      mesh, built, options,
      [&](Engine& engine) { EXPECT_EQ(std::ssize(test::answer_of(engine, request).tokens), tokens); }, add);
  return sent;
}

TEST(EngineRanks, ADecodedTokenSendsTheBytesThatThePlanCounts) {
  test::Random random;
  std::int64_t upward = 0;
  std::int64_t downward = 0;
  for (const std::string& map : {std::string("sandwich-top:3"), std::string("yoco"), std::string("0_7_6_3_3_0_6_7"),
                                 test::random_map(random, kLayers, true)}) {
    test::EngineModel built(small(map), random);
    const EngineOptions options = random_options(random);
    for (const test::ServedMesh& mesh :
         {test::ServedMesh{1, {0, static_cast<int>(random.integer(1, kLayers - 1)), kLayers}},
          test::ServedMesh{1, even_cuts(4)}, test::ServedMesh{4, even_cuts(2)}}) {
      SCOPED_TRACE(map + " on " + name_of(mesh));
      const StageBytes few = sent_for(2, mesh, built, options);
      const StageBytes more = sent_for(9, mesh, built, options);
      const StageBytes each = bytes_per_token(shape_of(built, mesh, options), mesh.boundaries);
      EXPECT_EQ(more.hidden - few.hidden, 7 * each.hidden);
      EXPECT_EQ(more.downward - few.downward, 7 * each.downward);
      EXPECT_EQ(more.upward - few.upward, 7 * each.upward);
      EXPECT_EQ(more.logits - few.logits, 7 * each.logits);
      upward += each.upward;
      downward += each.downward;
    }
  }
  EXPECT_GT(upward, 0);
  EXPECT_GT(downward, 0);
}

TEST(EngineRanks, AsManySequencesRunAsThePlanSays) {
  test::Random random;
  for (const std::string& map : {std::string("none"), std::string("sandwich-top:3"), std::string("yoco")}) {
    test::EngineModel built(small(map), random);
    const test::ServedMesh mesh{1, even_cuts(2)};
    EngineOptions options = random_options(random);
    options.max_sequences = 64;
    options.prefix_cache = false;
    const ServingShape shape = shape_of(built, mesh, options);
    options.kv_bytes = sequence_bytes(shape, mesh.boundaries) * random.integer(20, 70) / 10;
    const std::int64_t largest = sequences_within(shape, pages_of_stages(shape, mesh.boundaries, options.kv_bytes));
    std::int64_t most = 0;
    test::run_on(mesh, built, options, [&](Engine& engine) {
      for (int i = 0; i < largest + 3; ++i) {
        Request request;
        request.prompt = random.tokens(150, built.model.config().vocab);
        request.max_new_tokens = 10;
        engine.submit(request);
      }
      while (!engine.is_idle()) {
        engine.step();
        most = std::max(most, engine.counts().sequences.running);
      }
    });
    EXPECT_EQ(most, largest) << map;
  }
}

// One message between stages, which is lost, or comes after the next of its kind.
struct StageFault {
  StageKey key;
  bool is_lost;
};

class FaultyStages final : public test::ForwardingCommunicator {
 public:
  FaultyStages(Communicator& inner, const StageFault& fault) : ForwardingCommunicator(inner), fault_(fault) {}
  bool has_met_it() const { return has_met_it_; }

 protected:
  Transfer do_isend(const void* data, std::size_t count, DType dtype, int to, int tag) override {
    if (tag == StageRanks::key_tag(fault_.key.message)) {
      const auto* header = static_cast<const std::int64_t*>(data);
      held_back_ = StageKey{fault_.key.message, header[0], static_cast<int>(header[1]), static_cast<int>(header[2]),
                            static_cast<int>(header[3])} == fault_.key;
      has_met_it_ |= held_back_;
      overtaking_ = !held_back_ && !held_.empty() && to == fault_.key.to ? 3 : 0;
    } else if (tag != StageRanks::part_tag(fault_.key.message)) {
      return ForwardingCommunicator::do_isend(data, count, dtype, to, tag);
    }
    if (held_back_ && fault_.is_lost) return {};
    if (held_back_) {
      const auto* bytes = static_cast<const std::byte*>(data);
      held_.push_back({{bytes, bytes + count * size_of(dtype)}, count, dtype, tag});
      return {};
    }
    Transfer transfer = ForwardingCommunicator::do_isend(data, count, dtype, to, tag);
    // Its key, K and V have left: now the one before.
    if (overtaking_ > 0 && --overtaking_ == 0) {
      for (const Part& part : held_) {
        ForwardingCommunicator::do_isend(part.bytes.data(), part.count, part.dtype, fault_.key.to, part.tag).wait();
      }
      held_.clear();
    }
    return transfer;
  }

 private:
  struct Part {
    std::vector<std::byte> bytes;
    std::size_t count;
    DType dtype;
    int tag;
  };

  StageFault fault_;
  bool has_met_it_ = false;
  bool held_back_ = false;
  int overtaking_ = 0;
  std::vector<Part> held_;
};

constexpr const char* kNeverSent = "the message was never sent";

// What the ranks come to; "" when nothing is wrong.
std::string serve_with(const StageFault& fault, const test::EngineModel& built, const EngineOptions& options,
                       const test::Load& load, const std::vector<int>& boundaries) {
  try {
    std::atomic<bool> met = false;
    run_thread_ranks(static_cast<int>(boundaries.size()) - 1, [&](Communicator& world) {
      CachingCpuAllocator allocator;
      FaultyStages faulty(world, fault);
      StageRanks stages(faulty, boundaries, allocator, {.limit = std::chrono::seconds(1)});
      InferenceModel model(built.model.config(), stage_shard(boundaries, world.rank()), built.model.format(),
                           allocator);
      test::put_part(built.trained, model, allocator);
      run_engine(model, options, {.all = &world, .model = {.stages = &stages}},
                 [&](Engine& engine) { test::serve(engine, load); });
      if (faulty.has_met_it()) met = true;
    });
    return met ? "" : kNeverSent;
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(EngineRanks, AMessageThatIsLostOrComesLateIsNamed) {
  test::Random random;
  // Sources 0 and 3 are read above the cut, 6 and 7 below it; the segment of layers 1 to 7 crosses it.
  test::EngineModel built(small("0_7_6_3_3_0_6_7"), random);
  const std::vector<int> boundaries = {0, 4, kLayers};
  EngineOptions options = random_options(random);
  test::Load load = test::random_load(random, built.model.config().vocab);
  load.arrivals[0] = 0;
  load.cancelled[0] = -1;
  load.requests[0].max_new_tokens = 20;
  // From a random step on, the first that has the message.
  const auto expect_named = [&](StageMessage message, int layer, bool is_lost) {
    const bool goes_up = message == StageMessage::kDownward || message == StageMessage::kPieces ||
                         message == StageMessage::kHidden || message == StageMessage::kSegmentInput;
    const bool is_early = message == StageMessage::kGuess || message == StageMessage::kSegmentInput;
    StageKey key{.message = message,
                 .step = is_early ? 1 : random.integer(1, 15),
                 .layer = layer,
                 .from = goes_up ? 0 : 1,
                 .to = goes_up ? 1 : 0};
    std::string words = kNeverSent;
    for (; words == kNeverSent && key.step < 40; ++key.step) {
      words = serve_with({key, is_lost}, built, options, load, boundaries);
    }
    --key.step;
    EXPECT_THAT(words, testing::HasSubstr(describe(key))) << (is_lost ? "lost" : "late");
  };
  for (const bool is_lost : {true, false}) {
    for (const int source : {0, 3}) expect_named(StageMessage::kDownward, source, is_lost);
    for (const int source : {6, 7}) expect_named(StageMessage::kUpward, source, is_lost);
    for (const int source : {6, 7}) expect_named(StageMessage::kGuess, source, is_lost);
  }
  expect_named(StageMessage::kPieces, 4, true);
  expect_named(StageMessage::kHidden, 4, true);
  expect_named(StageMessage::kSegmentInput, 1, true);
  expect_named(StageMessage::kOutcome, kLayers, true);
  expect_named(StageMessage::kLogits, kLayers, true);
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
                                  std::vector<std::int64_t> length = {std::ssize(message)};
                                  world.send(std::span(length), 1, kPlanTag);
                                  world.send(std::span(reinterpret_cast<std::uint8_t*>(message.data()), message.size()),
                                             1, kPlanTag);
                                }),
               Error);
}

}  // namespace
}  // namespace kvloom
