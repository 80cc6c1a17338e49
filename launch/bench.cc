#include <iostream>
#include <memory>

#include "core/device_choice.h"
#include "launch/bench_train.h"
#include "launch/verbs.h"

namespace kvloom {

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
  request->maps = {"none", "sandwich-middle:3", "sandwich-middle:6", "sandwich-top:3", "sandwich-top:6"};
  train->add_option("--layers", sizes->layers, "Layers")->capture_default_str();
  train->add_option("--hidden", sizes->hidden, "Hidden size")->capture_default_str();
  train->add_option("--ffn", sizes->ffn, "Feed-forward size")->capture_default_str();
  train->add_option("--heads", sizes->heads, "Query heads")->capture_default_str();
  train->add_option("--kv-heads", sizes->kv_heads, "KV heads")->capture_default_str();
  train->add_option("--vocab", sizes->vocab, "Vocabulary")->capture_default_str();
  train->add_option("--context", sizes->context, "Tokens of a sequence")->capture_default_str();
  train->add_option("--micro-batch", request->micro_batch, "Sequences")->capture_default_str();
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
  train->add_flag("--json", sizes->json, "Print JSON");
  verb->footer("Example: kvloom bench train --steps 2 --layers 6 --context 256");
  train->footer(
      "Example: kvloom bench train --layers 6 --hidden 256 --ffn 688 --heads 8 --kv-heads 4 --context 256\n"
      "Example: kvloom bench train --maps none cla:2 sandwich-middle:3 --passes-without-gradient 3 --json");
  train->callback([request, sizes] {
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
    bench_train(*request, std::cout);
  });
}

}  // namespace kvloom
