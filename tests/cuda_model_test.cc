// The model, its training and its decoding on a GPU against the CPU. Run with the kernels compiled for the host as well
// (simt_cuda_model_test), where memory of the device is out of the host's reach.
#include <cmath>
#include <fstream>

#include "core/config.h"
#include "core/decoder.h"
#include "core/head.h"
#include "parallel/world.h"
#include "tests/support/gpu.h"
#include "tests/support/model_fixture.h"
#include "tests/support/temporary_folder.h"
#include "train/optimizer.h"
#include "train/trainer.h"

namespace kvloom {
namespace {

using test::Random;

constexpr std::int64_t kSequences = 2;
constexpr std::int64_t kPositions = 9;
constexpr Passes kPasses{.without_gradient = 2, .with_gradient = 2};

proto::ModelConfig with_features(proto::ModelConfig message) {
  message.set_qkv_bias(true);
  message.set_qk_norm(true);
  message.set_tied_embeddings(true);
  return message;
}

// Head size 64, which the tensor-core kernels take in bf16.
proto::ModelConfig wide(proto::ModelConfig message) {
  message.set_hidden(128);
  message.set_heads(2);
  message.set_kv_heads(1);
  message.set_initializer_range(0.08);
  return message;
}

class CudaModel : public test::GpuTest {
 protected:
  // The same weights on both.
  struct Pair {
    Pair(const proto::ModelConfig& message, DType dtype, Allocator& device, Random& random)
        : config(ModelConfig::from_proto(message)), cpu(config, DType::kF32, host), gpu(config, dtype, device) {
      cpu.initialize(random.seed());
      test::disturb_vectors(cpu, random);
      gpu.master().assign<float>(cpu.master().values<float>());
      gpu.refresh();
      const auto count = static_cast<std::size_t>(kSequences * kPositions);
      tokens = random.tokens(count, config.vocab);
      targets = random.tokens(count, config.vocab);
    }
    TokenBatch batch(const Model& model) const { return make_token_batch(model, tokens, targets, kSequences); }

    CachingCpuAllocator host;
    ModelConfig config;
    Model cpu;
    Model gpu;
    std::vector<std::int32_t> tokens, targets;
  };

  // Norm of the difference over the norm of what is expected.
  static double distance(std::span<const float> actual, std::span<const float> expected) {
    double error = 0;
    double size = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const auto apart = static_cast<double>(actual[i]) - static_cast<double>(expected[i]);
      error += apart * apart;
      size += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
    }
    return std::sqrt(error) / std::max(1e-6, std::sqrt(size));
  }

  void expect_same_training(const proto::ModelConfig& message, DType dtype, double tolerance, Random& random) {
    Pair pair(message, dtype, allocator(), random);
    ModelGradients expected(pair.cpu);
    ModelGradients actual(pair.gpu);
    const double loss =
        TrainingPass(pair.cpu, kPasses, kPositions, Recompute::kNone).run(pair.batch(pair.cpu), 0.1f, expected);
    const double device_loss =
        TrainingPass(pair.gpu, kPasses, kPositions, Recompute::kNone).run(pair.batch(pair.gpu), 0.1f, actual);
    EXPECT_NEAR(device_loss, loss, tolerance * loss) << message.kv_map();
    const std::vector<float> all = actual.flat.values<float>();
    const std::vector<float> wanted = expected.flat.values<float>();
    if (dtype == DType::kBF16) {
      EXPECT_LE(distance(all, wanted), 3 * tolerance) << message.kv_map();
      return;
    }
    for (const Parameter& parameter : pair.cpu.layout().all()) {
      const auto count = static_cast<std::size_t>(element_count(parameter.shape));
      const auto at = static_cast<std::size_t>(parameter.offset);
      EXPECT_LE(distance(std::span(all).subspan(at, count), std::span(wanted).subspan(at, count)), tolerance)
          << message.kv_map() << " " << parameter.name;
    }
  }
};

std::vector<std::string> maps() {
  std::vector<std::string> all;
  for (const std::string& map : test::nine_maps()) all.push_back(map + ":3");
  all.insert(all.end(), {"none", "0s_3s_3_5s_3_5"});
  return all;
}

TEST_F(CudaModel, LossAndEveryGradientOfEveryMapAreTheCpus) {
  Random random;
  for (const std::string& map : maps()) {
    const proto::ModelConfig message = test::small_model(6, map, map.find('s') < 2 ? 3 : 0);
    expect_same_training(random.flip() ? with_features(message) : message, DType::kF32, 1e-4, random);
  }
}

TEST_F(CudaModel, TrainingInBf16StaysNearTheCpusF32) {
  Random random;
  for (const char* map : {"none", "sandwich-middle:2", "pizza-bottom:2"}) {
    expect_same_training(wide(test::small_model(4, map)), DType::kBF16, 2e-2, random);
  }
}

TEST_F(CudaModel, RecomputedActivationsGiveEqualBits) {
  Random random;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Pair pair(wide(test::small_model(4, "sandwich-middle:2")), dtype, allocator(), random);
    std::vector<std::vector<float>> gradients;
    for (const Recompute recompute : {Recompute::kNone, Recompute::kFull, Recompute::kNone}) {
      ModelGradients sums(pair.gpu);
      TrainingPass(pair.gpu, kPasses, kPositions, recompute).run(pair.batch(pair.gpu), 1, sums);
      gradients.push_back(sums.flat.values<float>());
    }
    EXPECT_EQ(gradients[0], gradients[1]);
    EXPECT_EQ(gradients[0], gradients[2]);
  }
}

TEST_F(CudaModel, PrefillAndDecodeGiveTheCpusLogits) {
  Random random;
  for (const char* map : {"none", "sandwich-middle:2", "0s_3s_3_3"}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Pair pair(wide(test::small_model(4, map, 4)), dtype, allocator(), random);
      Decoder cpu(pair.cpu, kSequences, kPositions + 3);
      Decoder gpu(pair.gpu, kSequences, kPositions + 3);
      const PrefillOptions options{.passes = {.without_gradient = kPositions, .with_gradient = 0}};
      const double tolerance = dtype == DType::kF32 ? 1e-4 : 3e-2;
      EXPECT_LE(distance(gpu.prefill(pair.batch(pair.gpu).tokens, options).values<float>(),
                         cpu.prefill(pair.batch(pair.cpu).tokens, options).values<float>()),
                tolerance)
          << map;
      for (int step = 0; step < 3; ++step) {
        const std::vector<std::int32_t> next = random.tokens(kSequences, pair.config.vocab);
        EXPECT_LE(distance(gpu.step(make_token_batch(pair.gpu, next, next, kSequences).tokens).values<float>(),
                           cpu.step(make_token_batch(pair.cpu, next, next, kSequences).tokens).values<float>()),
                  tolerance)
            << map << " step " << step;
      }
    }
  }
}

TEST_F(CudaModel, EnoughPassesGiveTheSequentialLosses) {
  Random random;
  Pair pair(test::small_model(6, "sandwich-middle:3"), DType::kF32, allocator(), random);
  const Passes passes{.without_gradient = kPositions - 1, .with_gradient = 1};
  const TokenBatch batch = pair.batch(pair.gpu);
  const std::vector<float> sequential = sequential_losses(pair.gpu, batch).values<float>();
  EXPECT_LE(distance(parallel_losses(pair.gpu, passes, batch).values<float>(), sequential), 1e-4);
  EXPECT_LE(distance(sequential, sequential_losses(pair.cpu, pair.batch(pair.cpu)).values<float>()), 1e-4);
}

TEST_F(CudaModel, FiftyUpdatesFollowTheCpusLosses) {
  Random random;
  Pair pair(test::small_model(4, "sandwich-top:2"), DType::kF32, allocator(), random);
  proto::TrainConfig train;
  train.set_beta1(0.9);
  train.set_beta2(0.95);
  train.set_epsilon(1e-8);
  train.set_weight_decay(0.1);
  const auto losses = [&](Model& model) {
    const ElementRange all{0, model.layout().count()};
    AdamWOptimizer optimizer(model, all, train);
    TrainingPass pass(model, kPasses, kPositions, Recompute::kNone);
    std::vector<float> result;
    for (int step = 0; step < 50; ++step) {
      ModelGradients gradients(model);
      result.push_back(static_cast<float>(pass.run(pair.batch(model), 1.0f / (kSequences * kPositions), gradients) /
                                          (kSequences * kPositions)));
      optimizer.step(gradients.flat, 3e-4, clip_scale(gradient_norm(gradients.flat), 1.0));
    }
    return result;
  };
  const std::vector<float> expected = losses(pair.cpu);
  const std::vector<float> actual = losses(pair.gpu);
  EXPECT_LT(expected.back(), 0.95 * expected.front());
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-3) << "step " << i;
}

// A run of the trainer, on either device, from files.
class TrainerRun {
 public:
  explicit TrainerRun(Random& random) {
    TokenFileWriter writer(folder_ / "tokens.h5", {.vocab = 29, .tokenizer_kind = "bytes"});
    for (const Part part : {Part::kTraining, Part::kValidation}) {
      writer.begin_document(part);
      const auto tokens = random.tokens(200, 29);
      writer.append(part, tokens, tokens.size());
    }
    writer.finish();
  }

  class Losses final : public TrainObserver {
   public:
    void on_start(const TrainStart&) override {}
    void on_step(const StepReport& report) override { losses.push_back(report.loss); }
    void on_evaluation(const EvaluationReport& report) override { losses.push_back(report.loss); }
    void on_checkpoint(std::uint64_t, const std::string&) override {}
    std::vector<double> losses;
  };

  std::vector<double> losses(const Device& device, const std::string& output, Resume resume,
                             std::optional<std::uint64_t> stop_after = std::nullopt) const {
    std::ofstream(folder_ / "run.pbtxt")
        << "model { layers: 4 hidden: 16 ffn: 24 heads: 4 kv_heads: 2 vocab: 29 context: 8 kv_map: \"sandwich-top:3\" "
           "}\n"
        << "passes { without_gradient: 1 with_gradient: 2 }\ndata { tokens: \"" << (folder_ / "tokens.h5").string()
        << "\" }\ntrain { steps: 6 global_batch: 4 micro_batch: 2 learning_rate: 3e-3 warmup_steps: 2 seed: 3 "
           "evaluate_every: 3 evaluation_sequences: 2 check_replicas_every: 2 }\noutput { directory: \""
        << (folder_ / output).string() << "\" checkpoint_every: 2 keep: 2 }\n";
    World world(LaunchEnvironment{});
    Losses observer;
    Trainer trainer(load_run_config((folder_ / "run.pbtxt").string(), {}), world.communicator(),
                    {.resume = resume, .device = {.device = device}, .stop_after = stop_after, .observer = &observer});
    trainer.run();
    return observer.losses;
  }

 private:
  TemporaryFolder folder_;
};

TEST_F(CudaModel, ARunOfTheTrainerIsTheCpusAndGoesOnFromItsCheckpoint) {
  Random random;
  const TrainerRun run(random);
  const Device device{Device::Kind::kCuda, 0};
  const std::vector<double> expected = run.losses({}, "cpu", Resume::kNo);
  const std::vector<double> actual = run.losses(device, "gpu", Resume::kNo);
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-3);

  const std::vector<double> first = run.losses(device, "parts", Resume::kNo, 3);
  const std::vector<double> rest = run.losses(device, "parts", Resume::kAuto);
  std::vector<double> both = first;
  both.insert(both.end(), rest.begin(), rest.end());
  EXPECT_EQ(both, actual);
}

}  // namespace
}  // namespace kvloom
