#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <optional>

#include "core/device_choice.h"
#include "kernels/error.h"
#include "launch/at_least.h"
#include "launch/bench_decode.h"
#include "launch/bench_mesh.h"
#include "launch/bench_options.h"
#include "launch/bench_train.h"
#include "launch/cores.h"
#include "launch/gpu_options.h"
#include "launch/memory_advice.h"
#include "launch/ranks.h"
#include "launch/verbs.h"
#include "parallel/thread_ranks.h"

namespace kvloom {
namespace {

constexpr int kMostThreadRanks = 256;

struct TrainOptions : BenchOptions {
  std::uint32_t context = 1024;
  Passes passes;
  std::optional<std::int64_t> micro_batch;
  int steps = 2;
  bool mesh = false;
  BenchMeshRequest of_mesh;  // what --mesh alone takes
  int thread_ranks = 2;
};

struct DecodeOptions : BenchOptions {
  std::vector<std::int64_t> batches = {1, 4, 16};
  std::int64_t prompt = 512;
  int passes = 9;
  int steps = 32;
  int repetitions = 3;
  std::string cuda_graphs = "on";
};

// Under mpirun its ranks; started alone, threads, which only CPU cores are given to.
void run_bench_mesh(BenchMeshRequest request, const TrainOptions& options) {
  const bool on_cores = parse_device(options.device.name).kind == Device::Kind::kCpu;
  run_in_world([&](World& world) {
    if (world.communicator().size() > 1) {
      if (on_cores) stay_on_core(world.local_rank());
      request.mesh.device = options.device.in_mesh(world);
      with_memory_advice(kBenchMeshMemory, [&] { bench_mesh(request, world.communicator(), std::cout); });
      return;
    }
    if (!on_cores) {
      reject_input("--device {}: ranks on GPUs are processes; right is mpirun -n <ranks> kvloom bench train --mesh",
                   options.device.name);
    }
    run_thread_ranks(options.thread_ranks, [&](Communicator& ranks) {
      stay_on_core(ranks.rank());
      with_memory_advice(kBenchMeshMemory, [&] { bench_mesh(request, ranks, std::cout); });
    });
  });
}

proto::ModelConfig model_of(const TrainOptions& options) {
  proto::ModelConfig model = options.model();
  model.set_context(options.context);
  return model;
}

void measure_maps(const TrainOptions& options) {
  require_one_rank();
  BenchTrainRequest request{
      .step = {.model = model_of(options),
               .precision = options.compute(),
               .device = parse_device(options.device.name),
               .gpu = options.device.gpu.setting(),
               .passes = options.passes,
               .steps = options.steps},
      .maps = maps_of(options, {"sandwich-middle:3", "sandwich-middle:6", "sandwich-top:3", "sandwich-top:6"}),
      .form = options.form()};
  request.step.micro_batch = options.micro_batch.value_or(request.step.micro_batch);
  with_memory_advice(kBenchTrainMemory, [&] { bench_train(request, std::cout); });
}

void measure_mesh(const TrainOptions& options) {
  const std::string flag = options.device.gpu.unusual();
  if (parse_device(options.device.name).kind == Device::Kind::kCpu && !flag.empty()) {
    reject_input(
        "{}: --mesh measures ranks on CPU cores, which compute in one way; right is without it, or with "
        "--device cuda",
        flag);
  }
  BenchMeshRequest request = options.of_mesh;
  request.form = options.form();
  MeshMeasurementRequest& mesh = request.mesh;
  mesh.model = model_of(options);
  mesh.model.set_kv_map(options.maps.empty() ? "none" : options.maps.front());
  mesh.precision = options.compute();
  mesh.passes = options.passes;
  mesh.micro_batch = options.micro_batch.value_or(mesh.micro_batch);
  if (mesh.micro_batch * mesh.micro_batches > kMostSequences) {
    reject_input("--micro-batches: {} of {} sequences; right is at most {} sequences in all", mesh.micro_batches,
                 mesh.micro_batch, kMostSequences);
  }
  run_bench_mesh(std::move(request), options);
}

void add_step_options(CLI::App& verb, TrainOptions& options) {
  verb.add_option("--context", options.context, "Tokens of a sequence")->capture_default_str();
  verb.add_option("--micro-batch", options.micro_batch, "Sequences; 4, with --mesh 1")
      ->check(CLI::Range(std::int64_t{1}, kMostSequences));
  verb.add_option("--steps", options.steps, "Timed steps, after one that is not; the best counts")
      ->check(at_least(1))
      ->capture_default_str();
  verb.add_option("--passes-without-gradient", options.passes.without_gradient, "m, of iterated segments")
      ->check(CLI::Range(0, kMostPasses))
      ->capture_default_str();
  verb.add_option("--passes-with-gradient", options.passes.with_gradient, "b, the last ones")
      ->check(CLI::Range(1, kMostPasses))
      ->capture_default_str();
}

void add_mesh_options(CLI::App& verb, TrainOptions& options) {
  verb.add_flag("--mesh", options.mesh,
                "A step split among ranks, beside one rank's: of one core each, under mpirun or threads of one "
                "process; with --device cuda of one GPU each, under mpirun");
  options.device.add_sharing_to(verb)->needs("--mesh");
  verb.add_option("--axes", options.of_mesh.mesh.axes,
                  "--mesh: tp, pp, dp and even-pp (as many layers on every stage), by turns over all ranks")
      ->check(CLI::IsMember({"tp", "pp", "dp", "even-pp"}))
      ->capture_default_str();
  verb.add_option("--map", options.maps, "The same as --maps; with --mesh the first one counts");
  verb.add_option("--micro-batches", options.of_mesh.mesh.micro_batches, "--mesh: of a step")
      ->check(CLI::Range(std::int64_t{1}, kMostSequences))
      ->capture_default_str();
  verb.add_option("--repetitions", options.of_mesh.mesh.repetitions,
                  "--mesh: timed ones, after one that is not; medians count")
      ->check(at_least(1))
      ->capture_default_str();
  verb.add_option("--thread-ranks", options.thread_ranks, "--mesh without mpirun: ranks")
      ->check(CLI::Range(2, kMostThreadRanks))
      ->capture_default_str();
}

void add_bench_train(CLI::App& bench) {
  CLI::App* verb = bench.add_subcommand("train", "A training step beside its matrix products alone, map by map");
  auto options = std::make_shared<TrainOptions>();
  options->add_model_to(*verb);
  add_step_options(*verb, *options);
  options->add_device_to(*verb);
  options->add_maps_to(*verb);
  add_mesh_options(*verb, *options);
  verb->add_flag("--json", options->json, "Print JSON");
  verb->footer(
      "Example: kvloom bench train --layers 6 --hidden 256 --ffn 688 --heads 8 --kv-heads 4 --context 256\n"
      "Example: kvloom bench train --maps none cla:2 sandwich-middle:3 --passes-without-gradient 3 --json\n"
      "Example: mpirun -n 2 kvloom bench train --mesh --context 256 --map sandwich-top:3\n"
      "Example: mpirun -n 2 kvloom bench train --mesh --context 256 --map pizza-bottom:6 --axes pp even-pp\n"
      "Example: mpirun -n 4 kvloom bench train --mesh --device cuda --precision bf16 --axes tp pp --micro-batches 16\n"
      "--mesh keeps every mesh of --axes in memory at once, and on rank 0 one rank's whole model beside them.");
  verb->callback([options] { options->mesh ? measure_mesh(*options) : measure_maps(*options); });
}

void measure_decode(const DecodeOptions& options) {
  require_one_rank();
  with_memory_advice(kBenchDecodeMemory, [&] {
    bench_decode({.decode = {.model = options.model(),
                             .precision = options.compute(),
                             .device = parse_device(options.device.name),
                             .gpu = options.device.gpu.setting(),
                             .launch = options.cuda_graphs == "on" ? StepLaunch::kGraph : StepLaunch::kDirect,
                             .passes = options.passes,
                             .prompt = options.prompt,
                             .steps = options.steps,
                             .repetitions = options.repetitions},
                  .maps = maps_of(options, {fmt::format("pizza-bottom:{}", options.layers / 2), "sandwich-middle:3"}),
                  .batches = options.batches,
                  .form = options.form()},
                 std::cout);
  });
}

void add_bench_decode(CLI::App& bench) {
  CLI::App* verb =
      bench.add_subcommand("decode", "Prefill and decode beside what memory and products allow, map by map");
  auto options = std::make_shared<DecodeOptions>();
  options->add_model_to(*verb);
  options->add_device_to(*verb);
  add_cuda_graphs_option(*verb, options->cuda_graphs);
  options->add_maps_to(*verb);
  verb->add_option("--batch", options->batches, "Sequences that are decoded together; several are measured one by one")
      ->check(CLI::Range(std::int64_t{1}, kMostSequences))
      ->capture_default_str();
  verb->add_option("--prompt-tokens", options->prompt, "Tokens of each sequence before the first step")
      ->check(CLI::Range(std::int64_t{1}, kMostPromptTokens))
      ->capture_default_str();
  verb->add_option("--passes", options->passes, "Passes of prefill through iterated segments")
      ->check(CLI::Range(1, kMostPasses))
      ->capture_default_str();
  verb->add_option("--steps", options->steps, "Timed steps, after two that are not")
      ->check(CLI::Range(1, kMostSteps))
      ->capture_default_str();
  verb->add_option("--repetitions", options->repetitions, "Of prefill and steps; the best counts")
      ->check(at_least(1))
      ->capture_default_str();
  verb->add_flag("--json", options->json, "Print JSON");
  verb->footer(
      "The bound is the time for reading every weight, and every key and value that a layer reads, at the rate of\n"
      "memory, or for a step's arithmetic at the rate of matrix products, whichever is longer; both rates come from "
      "this\n"
      "run. What fits into a cache can be faster. Layers that share K/V each read them: a step of as many sequences "
      "reads\n"
      "about as much, but the cache is smaller, so that more sequences fit.\n"
      "Example: kvloom bench decode --layers 6 --hidden 256 --ffn 688 --heads 8 --kv-heads 4 --batch 1 8\n"
      "Example: kvloom bench decode --device cuda --precision bf16 --layers 22 --hidden 2048 --ffn 5632 --heads 32 \\\n"
      "           --kv-heads 4 --prompt-tokens 2048 --batch 1 16 64 256 --maps none pizza-bottom:11 sandwich-middle:3");
  verb->callback([options] { measure_decode(*options); });
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("bench", "Measure speed, as ratios to ceilings measured in the same run");
  verb->require_subcommand(1);
  verb->footer(
      "Example: kvloom bench train --steps 2 --layers 6 --context 256\n"
      "Example: kvloom bench serve --batch 1 8 --maps none cla:2");
  add_bench_train(*verb);
  add_bench_decode(*verb);
  add_bench_serve(*verb);
}

}  // namespace kvloom
