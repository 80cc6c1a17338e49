#include <iostream>
#include <memory>
#include <optional>

#include "core/device_choice.h"
#include "kernels/error.h"
#include "launch/bench_mesh.h"
#include "launch/bench_train.h"
#include "launch/cores.h"
#include "launch/ranks.h"
#include "launch/verbs.h"
#include "parallel/thread_ranks.h"

namespace kvloom {
namespace {

struct MeshOptions {
  bool wanted = false;
  int thread_ranks = 2;
  std::optional<std::int64_t> micro_batch;
};

// Under mpirun its ranks; started alone, threads.
void run_bench_mesh(const BenchMeshRequest& request, int thread_ranks) {
  run_in_world([&](World& world) {
    if (world.communicator().size() > 1) {
      stay_on_core(world.local_rank());
      return bench_mesh(request, world.communicator(), std::cout);
    }
    run_thread_ranks(thread_ranks, [&](Communicator& ranks) {
      stay_on_core(ranks.rank());
      bench_mesh(request, ranks, std::cout);
    });
  });
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("bench", "Measure speed, as ratios to ceilings measured in the same run");
  verb->require_subcommand(1);
  CLI::App* train = verb->add_subcommand("train", "A training step beside its matrix products alone, map by map");
  auto request = std::make_shared<BenchTrainRequest>();
  struct Sizes {
    std::uint32_t layers = 12, hidden = 768, ffn = 2048, heads = 12, kv_heads = 6, vocab = 32000, context = 1024;
    std::string precision = "f32";
    std::string device = "cpu";
    bool json = false;
  };
  auto sizes = std::make_shared<Sizes>();
  auto mesh = std::make_shared<BenchMeshRequest>();
  auto mesh_options = std::make_shared<MeshOptions>();
  request->maps = {"none", "sandwich-middle:3", "sandwich-middle:6", "sandwich-top:3", "sandwich-top:6"};
  train->add_option("--layers", sizes->layers, "Layers")->capture_default_str();
  train->add_option("--hidden", sizes->hidden, "Hidden size")->capture_default_str();
  train->add_option("--ffn", sizes->ffn, "Feed-forward size")->capture_default_str();
  train->add_option("--heads", sizes->heads, "Query heads")->capture_default_str();
  train->add_option("--kv-heads", sizes->kv_heads, "KV heads")->capture_default_str();
  train->add_option("--vocab", sizes->vocab, "Vocabulary")->capture_default_str();
  train->add_option("--context", sizes->context, "Tokens of a sequence")->capture_default_str();
  train->add_option("--micro-batch", mesh_options->micro_batch, "Sequences; 4, with --mesh 1");
  train->add_option("--steps", request->steps, "Timed steps, after one that is not; the best counts")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  train->add_option("--precision", sizes->precision, "f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  train->add_option("--device", sizes->device, "cpu, cuda or cuda:<index>: where to compute")->capture_default_str();
  train->add_option("--maps", request->maps, "KV maps; times are relative to the first")->capture_default_str();
  train->add_option("--passes-without-gradient", request->passes.without_gradient, "m, of iterated segments")
      ->capture_default_str();
  train->add_option("--passes-with-gradient", request->passes.with_gradient, "b, the last ones")->capture_default_str();
  train->add_flag(
      "--mesh", mesh_options->wanted,
      "A step split among ranks, one core each, beside one rank's: under mpirun, or threads of one process");
  train
      ->add_option("--axes", mesh->axes,
                   "--mesh: tp, pp, dp and even-pp (as many layers on every stage), by turns over all ranks")
      ->check(CLI::IsMember({"tp", "pp", "dp", "even-pp"}))
      ->capture_default_str();
  train->add_option("--map", request->maps, "The same as --maps; with --mesh the first one counts");
  train->add_option("--micro-batches", mesh->micro_batches, "--mesh: of a step")->capture_default_str();
  train->add_option("--repetitions", mesh->repetitions, "--mesh: timed ones, after one that is not; medians count")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  train->add_option("--thread-ranks", mesh_options->thread_ranks, "--mesh without mpirun: ranks")
      ->capture_default_str();
  train->add_flag("--json", sizes->json, "Print JSON");
  verb->footer("Example: kvloom bench train --steps 2 --layers 6 --context 256");
  train->footer(
      "Example: kvloom bench train --layers 6 --hidden 256 --ffn 688 --heads 8 --kv-heads 4 --context 256\n"
      "Example: kvloom bench train --maps none cla:2 sandwich-middle:3 --passes-without-gradient 3 --json\n"
      "Example: mpirun -n 2 kvloom bench train --mesh --context 256 --map sandwich-top:3\n"
      "Example: mpirun -n 2 kvloom bench train --mesh --context 256 --map pizza-bottom:6 --axes pp even-pp");
  train->callback([request, sizes, mesh, mesh_options] {
    proto::ModelConfig& model = request->model;
    model.set_layers(sizes->layers);
    model.set_hidden(sizes->hidden);
    model.set_ffn(sizes->ffn);
    model.set_heads(sizes->heads);
    model.set_kv_heads(sizes->kv_heads);
    model.set_vocab(sizes->vocab);
    model.set_context(sizes->context);
    request->precision = sizes->precision == "bf16" ? proto::TrainConfig::BF16 : proto::TrainConfig::F32;
    request->device = parse_device(sizes->device);
    request->form = sizes->json ? BenchForm::kJson : BenchForm::kText;
    if (!mesh_options->wanted) {
      request->micro_batch = mesh_options->micro_batch.value_or(request->micro_batch);
      return bench_train(*request, std::cout);
    }
    if (request->device.kind != Device::Kind::kCpu) {
      reject_input("--device {}: --mesh measures ranks on CPU cores; leave --device away, or --mesh", sizes->device);
    }
    mesh->model = model;
    mesh->model.set_kv_map(request->maps.front());
    mesh->precision = request->precision;
    mesh->passes = request->passes;
    mesh->micro_batch = mesh_options->micro_batch.value_or(mesh->micro_batch);
    mesh->form = request->form;
    run_bench_mesh(*mesh, mesh_options->thread_ranks);
  });
}

}  // namespace kvloom
