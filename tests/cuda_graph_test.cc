// CUDA graphs: recording and launching, the memory set apart for them, decoding by them. Run on the host as well
// (simt_cuda_graph_test), where a record is a list of kernels and memory that was given back cannot be touched.
#include "core/cuda_graph.h"

#include <algorithm>
#include <memory>

#include "core/config.h"
#include "core/decoder.h"
#include "core/ops.h"
#include "infer/sampler.h"
#include "tests/support/gpu.h"
#include "tests/support/model_fixture.h"

namespace kvloom {
namespace {

using test::Random;

class CudaGraphs : public test::GpuTest {
 protected:
  const CudaStream& stream() { return allocator().stream(); }
  Tensor tensor(std::span<const float> values) { return Tensor::of<float>(allocator(), {std::ssize(values)}, values); }
  std::size_t set_apart_or_held() {
    const AllocatorStatistics now = allocator().statistics();
    return now.held_bytes + now.cached_bytes;
  }
};

TEST_F(CudaGraphs, ARecordDoesNothingBeforeItIsLaunchedAndAllOfItEachTime) {
  Random random;
  const std::vector<std::int32_t> before = random.tokens(300, 1000);
  Tensor values = Tensor::of<std::int32_t>(allocator(), {300}, before);
  const CudaGraph graph(stream(), [&] {
    ops::advance(values, 5);
    ops::advance(values, -2);
  });
  EXPECT_EQ(values.values<std::int32_t>(), before);
  const auto launches = static_cast<std::int32_t>(random.integer(1, 5));
  for (int i = 0; i < launches; ++i) graph.launch(stream());
  std::vector<std::int32_t> expected = before;
  for (std::int32_t& value : expected) value += 3 * launches;
  EXPECT_EQ(values.values<std::int32_t>(), expected);
}

TEST_F(CudaGraphs, AWaitForTheDeviceEndsTheRecordAndHarmsNothingElse) {
  Tensor values = Tensor::of<std::int32_t>(allocator(), {2}, std::vector<std::int32_t>{1, 2});
  const auto record = [&](const std::function<void()>& work) {
    const CudaGraph graph(stream(), [&] {
      ops::advance(values, 1);
      work();
    });
    graph.launch(stream());
  };
  EXPECT_THROW(record([&] { values.values<std::int32_t>(); }), Error);
  EXPECT_FALSE(stream().is_recording());
  EXPECT_THROW(record([] { fail("an error of the work's own"); }), Error);
  EXPECT_FALSE(stream().is_recording());
  EXPECT_EQ(values.values<std::int32_t>(), (std::vector<std::int32_t>{1, 2}));
  record([] {});
  EXPECT_EQ(values.values<std::int32_t>(), (std::vector<std::int32_t>{2, 3}));
}

TEST_F(CudaGraphs, WorkOfAnotherStreamIsNoPartOfARecord) {
  CachingCudaAllocator other(0);
  Tensor recorded = Tensor::of<std::int32_t>(allocator(), {1}, std::vector<std::int32_t>{1});
  Tensor done = Tensor::of<std::int32_t>(other, {1}, std::vector<std::int32_t>{1});
  const CudaGraph graph(stream(), [&] {
    ops::advance(recorded, 1);
    ops::advance(done, 1);
  });
  EXPECT_EQ(recorded.values<std::int32_t>()[0], 1);
  EXPECT_EQ(done.values<std::int32_t>()[0], 2);
  graph.launch(stream());
  EXPECT_EQ(recorded.values<std::int32_t>()[0], 2);
  EXPECT_EQ(done.values<std::int32_t>()[0], 2);
}

// Tensors that have nothing to do with a graph.
class Others {
 public:
  explicit Others(Allocator& allocator) : allocator_(allocator) {}

  void add(Random& random, std::size_t count) {
    const std::vector<float> values = random.normals(count);
    all_.emplace_back(values, Tensor::of<float>(allocator_, {std::ssize(values)}, values));
  }
  void drop_one(Random& random) { all_.erase(all_.begin() + random.integer(0, std::ssize(all_) - 1)); }
  bool are_whole() const {
    return std::ranges::all_of(all_, [](const auto& one) { return one.second.template values<float>() == one.first; });
  }

 private:
  Allocator& allocator_;
  std::vector<std::pair<std::vector<float>, Tensor>> all_;
};

// 4 x, by way of two tensors that are free again when the record is made.
struct Quadrupling {
  Quadrupling(CachingCudaAllocator& allocator, Tensor input)
      : x(std::move(input)), result(Tensor::empty(allocator, x.shape(), DType::kF32)), arena(allocator) {
    const CudaArena::Use use(arena);
    graph = std::make_unique<CudaGraph>(allocator.stream(), [&] {
      Tensor twice = Tensor::empty(allocator, x.shape(), DType::kF32);
      Tensor thrice = Tensor::empty(allocator, x.shape(), DType::kF32);
      ops::add(x, x, twice);
      ops::add(twice, x, thrice);
      ops::add(thrice, x, result);
    });
  }
  Tensor x;
  Tensor result;
  CudaArena arena;
  std::unique_ptr<CudaGraph> graph;
};

TEST_F(CudaGraphs, MemoryOfARecordIsNobodyElses) {
  Random random;
  const auto count = static_cast<std::size_t>(random.integer(1000, 60000));
  const std::vector<float> input = random.normals(count);
  Quadrupling quadrupling(allocator(), tensor(input));
  std::vector<float> expected = input;
  for (float& value : expected) value = ((value + value) + value) + value;
  Others others(allocator());
  for (int round = 0; round < 6; ++round) {
    for (int i = 0; i < 4; ++i)
      others.add(random, random.flip() ? count : static_cast<std::size_t>(random.integer(1, 60000)));
    quadrupling.graph->launch(stream());
    ASSERT_EQ(quadrupling.result.values<float>(), expected) << "round " << round;
    ASSERT_TRUE(others.are_whole()) << "round " << round;
    others.drop_one(random);
  }
}

TEST_F(CudaGraphs, AnArenaUsesItsOwnAgainAndGivesAllBackInTheEnd) {
  Random random;
  const auto some = [&] {
    std::vector<Tensor> tensors;
    for (const std::int64_t count : {100, 5000, 400000, 70, 900000}) {
      tensors.push_back(Tensor::empty(allocator(), {count}, DType::kF32));
    }
    return tensors;
  };
  const std::size_t before = set_apart_or_held();
  const std::vector<float> values = random.normals(1000);
  Tensor outliving;
  {
    const CudaArena arena(allocator());
    std::size_t first = 0;
    for (int round = 0; round < 3; ++round) {
      const CudaArena::Use use(arena);
      some();
      if (round == 0) first = set_apart_or_held();
      EXPECT_EQ(set_apart_or_held(), first);
    }
    EXPECT_GT(first, before);
    const std::size_t own = set_apart_or_held();
    const std::vector<Tensor> others = some();  // not from what the arena has free
    EXPECT_GT(set_apart_or_held(), own);
    const CudaArena::Use use(arena);
    outliving = tensor(values);
  }
  const std::vector<Tensor> others = some();
  EXPECT_EQ(outliving.values<float>(), values);
  const std::size_t with_arena = set_apart_or_held();
  outliving = Tensor();
  EXPECT_LT(set_apart_or_held(), with_arena);
}

// Decoding.

constexpr Passes kPasses{.without_gradient = 3, .with_gradient = 1};

// Head size 64, which the kernels for one query take: f32 without tensor cores, bf16 with them.
proto::ModelConfig wide(proto::ModelConfig message, Random& random) {
  const int heads = random.flip() ? 2 : 4;
  message.set_hidden(64 * heads);
  message.set_heads(heads);
  message.set_kv_heads(1);
  message.set_initializer_range(0.08);
  return message;
}

class CudaGraphDecoding : public CudaGraphs {
 protected:
  struct Built {
    Built(const proto::ModelConfig& message, DType dtype, Allocator& device, Random& random)
        : config(ModelConfig::from_proto(message)), cpu(config, DType::kF32, host), gpu(config, dtype, device) {
      cpu.initialize(random.seed());
      test::disturb_vectors(cpu, random);
      gpu.master().assign<float>(cpu.master().values<float>());
      gpu.refresh();
    }
    CachingCpuAllocator host;
    ModelConfig config;
    Model cpu;
    Model gpu;
  };

  Tensor on_device(std::span<const std::int32_t> tokens) {
    return Tensor::of<std::int32_t>(allocator(), {std::ssize(tokens)}, tokens);
  }

  // Fills both caches with a prompt and steps on to the end of them.
  void expect_equal_bits(Decoder& direct, Decoder& graphs, std::int64_t prompt, std::int64_t sequences,
                         Random& random) {
    const std::int64_t vocab = 29;
    direct.clear();
    graphs.clear();
    if (prompt > 0) {
      const Tensor tokens = on_device(random.tokens(static_cast<std::size_t>(sequences * prompt), vocab));
      const PrefillOptions options{.passes = kPasses};
      ASSERT_EQ(direct.prefill(tokens, options).values<float>(), graphs.prefill(tokens, options).values<float>());
    }
    while (direct.length() < direct.capacity()) {
      const Tensor tokens = on_device(random.tokens(static_cast<std::size_t>(sequences), vocab));
      const Tensor expected = direct.step(tokens);
      const Tensor actual = graphs.step(tokens);
      ASSERT_EQ(actual.values<float>(), expected.values<float>()) << "position " << direct.length() - 1;
      ASSERT_EQ(graphs.length(), direct.length());
    }
  }
};

TEST_F(CudaGraphDecoding, GraphsOfEveryBoundHaveTheBitsOfStepsGivenDirectly) {
  Random random;
  for (const char* map : {"none", "sandwich-top:2", "pizza-middle:3", "0s_3s_3_3", "3_3_3_3"}) {
    const DType dtype = random.flip() ? DType::kF32 : DType::kBF16;
    proto::ModelConfig message = test::small_model(4, map, 5);
    if (random.integer(0, 3) == 0) message = wide(message, random);
    message.set_qkv_bias(random.flip());
    message.set_qk_norm(random.flip());
    const Built built(message, dtype, allocator(), random);
    const std::int64_t sequences = random.integer(1, 2);
    const std::int64_t capacity = random.integer(18, 20);
    Decoder direct(built.gpu, sequences, capacity);
    Decoder graphs(built.gpu, sequences, capacity, {.launch = StepLaunch::kGraph, .first_bound = 4});
    SCOPED_TRACE(map);
    expect_equal_bits(direct, graphs, 0, sequences, random);
    EXPECT_EQ(graphs.graphs(), 4u) << "of bounds 4, 8, 16 and the capacity";
    EXPECT_EQ(direct.graphs(), 0u);
    expect_equal_bits(direct, graphs, random.integer(6, 16), sequences, random);
    EXPECT_EQ(graphs.graphs(), 4u);
  }
}

TEST_F(CudaGraphDecoding, WhereMoreBlocksShareTheKeysTheBitsStayThoseOfDirectSteps) {
  Random random;
  proto::ModelConfig message = wide(test::small_model(1, "none"), random);
  message.set_context(300);
  const Built built(message, random.flip() ? DType::kF32 : DType::kBF16, allocator(), random);
  Decoder direct(built.gpu, 1, 260);
  Decoder graphs(built.gpu, 1, 260, {.launch = StepLaunch::kGraph});
  expect_equal_bits(direct, graphs, 250, 1, random);
  EXPECT_EQ(graphs.graphs(), 2u);
}

TEST_F(CudaGraphDecoding, TwoDecodersAndAllElseKeepApart) {
  Random random;
  const Built built(test::small_model(3, "sandwich-middle:2"), DType::kF32, allocator(), random);
  const DecoderOptions with_graphs{.launch = StepLaunch::kGraph, .first_bound = 8};
  Decoder expected_a(built.gpu, 2, 12);
  Decoder expected_b(built.gpu, 1, 16);
  Decoder a(built.gpu, 2, 12, with_graphs);
  auto b = std::make_unique<Decoder>(built.gpu, 1, 16, with_graphs);
  Others others(allocator());
  for (int step = 0; step < 11; ++step) {
    const Tensor first = on_device(random.tokens(2, 29));
    const Tensor second = on_device(random.tokens(1, 29));
    const Tensor logits = a.step(first);
    for (int i = 0; i < 5; ++i) others.add(random, static_cast<std::size_t>(random.integer(1, 500)));
    if (step == 6) b = nullptr;  // its memory goes, and that of a stays
    if (b != nullptr) {
      ASSERT_EQ(b->step(second).values<float>(), expected_b.step(second).values<float>()) << step;
    }
    ASSERT_EQ(logits.values<float>(), expected_a.step(first).values<float>()) << step;
    ASSERT_TRUE(others.are_whole()) << step;
    others.drop_one(random);
  }
}

TEST_F(CudaGraphDecoding, ShorterSequencesComeAgainAfterALongerBoundWasRecorded) {
  Random random;
  const Built built(test::small_model(3, "sandwich-middle:2"), DType::kF32, allocator(), random);
  const std::int64_t sequences = random.integer(1, 3);
  Decoder direct(built.gpu, sequences, 8);
  Decoder graphs(built.gpu, sequences, 8, {.launch = StepLaunch::kGraph, .first_bound = 4});
  for (int round = 0; round < 3; ++round) {
    SCOPED_TRACE(round);
    expect_equal_bits(direct, graphs, 0, sequences, random);
    EXPECT_EQ(graphs.graphs(), 2u);
  }
}

// Each counts the steps of its decoder, in steps of its own, whatever other decoders do.
TEST_F(CudaGraphDecoding, AStepsEndIsItsDecodersOwnAndPartOfEveryStep) {
  Random random;
  const Built built(test::small_model(2, "none"), DType::kF32, allocator(), random);
  struct Counting {
    std::int32_t by;
    Tensor count;
  };
  for (const StepLaunch launch : {StepLaunch::kDirect, StepLaunch::kGraph}) {
    Counting counting[] = {{1, on_device(std::vector<std::int32_t>{0})}, {10, on_device(std::vector<std::int32_t>{0})}};
    std::vector<std::unique_ptr<Decoder>> decoders;
    for (Counting& each : counting) {
      const auto end = [&](const Tensor&, Tensor&) { ops::advance(each.count, each.by); };
      decoders.push_back(
          std::make_unique<Decoder>(built.gpu, 1, 12, DecoderOptions{.launch = launch, .first_bound = 4, .end = end}));
    }
    std::int32_t steps = 0;
    for (int round = 0; round < 2; ++round) {
      for (int step = 0; step < 12; ++step) {
        const Tensor tokens = on_device(random.tokens(1, built.config.vocab));
        for (const auto& decoder : decoders) decoder->step(tokens);
        ++steps;
        for (const Counting& each : counting) ASSERT_EQ(each.count.values<std::int32_t>()[0], steps * each.by);
      }
      for (const auto& decoder : decoders) decoder->clear();
    }
  }
}

TEST_F(CudaGraphDecoding, TokensAreChosenWithinTheGraph) {
  Random random;
  const Built built(test::small_model(3, "sandwich-top:2"), DType::kF32, allocator(), random);
  const std::vector<std::int32_t> prompt = random.tokens(3, built.config.vocab);
  const SamplingParameters parameters{.temperature = 1.3f, .top_k = 12, .repetition_penalty = 1.2f, .seed = 7};
  const PrefillOptions options{.passes = kPasses};
  constexpr std::int64_t kCapacity = 20;

  Decoder direct(built.gpu, 1, kCapacity);
  TokenSampler one_by_one(allocator(), built.config.vocab, parameters, prompt);
  std::vector<std::int32_t> expected;
  Tensor logits = direct.prefill(on_device(prompt), options);
  while (direct.length() < kCapacity) {
    const auto [token, where] = one_by_one.next(logits);
    expected.push_back(token);
    logits = direct.step(where);
  }

  TokenSampler sampler(allocator(), built.config.vocab, parameters, prompt);
  const auto choose = [&](const Tensor& from, Tensor& next) { sampler.choose(from, next); };
  Decoder graphs(built.gpu, 1, kCapacity, {.launch = StepLaunch::kGraph, .first_bound = 8, .end = choose});
  std::vector<std::int32_t> actual;
  Tensor tokens = graphs.tokens();
  logits = graphs.prefill(on_device(prompt), options);
  sampler.choose(logits, tokens);
  while (graphs.length() < kCapacity) {
    actual.push_back(sampler.read(logits, tokens));
    logits = graphs.step(tokens);
  }
  EXPECT_EQ(actual, expected);
  EXPECT_EQ(graphs.graphs(), 3u);
}

}  // namespace
}  // namespace kvloom
