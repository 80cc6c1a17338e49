// kvloom convert: models between Hugging Face folders and checkpoints, to other dtypes, KV maps and meshes.
#include <fmt/format.h>
#include <malloc.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "core/checkpoint_manifest.h"
#include "core/convert/plan_models.h"
#include "core/convert/target_folder.h"
#include "core/file.h"
#include "core/quantity_text.h"
#include "infer/conversion/leaving_files.h"
#include "kernels/error.h"
#include "launch/at_least.h"
#include "launch/convert_report.h"
#include "launch/terminal.h"
#include "launch/verbs.h"
#include "parallel/checkpoint_cut.h"
#include "train/training_checkpoint.h"

namespace kvloom {
namespace {

struct Options {
  std::string source;
  std::string target;
  std::string to;
  std::string dtype;
  std::string map;
  std::string kv_init = "copy";
  std::optional<std::uint32_t> window;
  std::optional<std::uint32_t> pad_vocabulary;
  std::optional<std::uint32_t> pipeline;
  std::optional<std::uint32_t> tensor;
  std::string plan;
  std::string plan_out;
  std::string data;
  std::int64_t limit = 64;
  double shard_gigabytes = 5;
  bool any_tokenizer = false;
  bool allow_overflow = false;
  bool dry_run = false;
  bool json = false;

  bool cuts() const { return pipeline || tensor; }
};

ModelForm form_wanted(const Options& options, const ModelSource& source) {
  if (options.to == "hf") return ModelForm::kHuggingFace;
  if (options.to == "kvloom" || source.form == ModelForm::kHuggingFace) return ModelForm::kCheckpoint;
  return options.cuts() || !options.map.empty() ? ModelForm::kCheckpoint : ModelForm::kHuggingFace;
}

std::int64_t padded_vocabulary(std::uint32_t wanted, const ModelSource& source) {
  if (wanted < source.model.vocab) {
    reject_input("--pad-vocab: {}; '{}' has {} already", wanted, source.path.string(), source.model.vocab);
  }
  return wanted;
}

TargetModel target_wanted(const Options& options, const ModelSource& source) {
  TargetModel target{.form = form_wanted(options, source),
                     .model = source.model,
                     .passes = source.passes,
                     .family = {},
                     .dtype = {},
                     .kv_init = options.kv_init == "average" ? KvInit::kAverage : KvInit::kCopy};
  if (!options.dtype.empty()) target.dtype = dtype_named(options.dtype);
  if (!options.map.empty()) target.model = with_map(source.model, options.map, options.window);
  if (options.pad_vocabulary) target.model.vocab = padded_vocabulary(*options.pad_vocabulary, source);
  if (target.form == ModelForm::kHuggingFace) target.family = family_for(target.model, source.family);
  return target;
}

// The model and passes that a plan of the user's names take the place of what the source says.
proto::ConversionPlan plan_given(const Options& options, TargetModel& target) {
  proto::ConversionPlan plan = parse_plan(read_file(options.plan, kLargestPlan), options.plan);
  if (plan.has_model()) target.model = ModelConfig::from_proto(plan.model());
  if (plan.has_passes()) target.passes = passes_of(plan.passes());
  if (target.form == ModelForm::kHuggingFace) target.family = family_for(target.model, target.family);
  return plan;
}

std::optional<proto::MeshConfig> mesh_wanted(const Options& options, const TargetModel& target) {
  if (!options.cuts()) return std::nullopt;
  if (target.form == ModelForm::kHuggingFace) reject_input("--pp, --tp: safetensors are not cut for ranks");
  proto::MeshConfig mesh;
  mesh.set_data(1);
  mesh.set_pipeline(options.pipeline.value_or(1));
  mesh.set_tensor(options.tensor.value_or(1));
  return mesh;
}

std::unique_ptr<TensorTarget> make_target(const Options& options, const ModelSource& source, const TargetModel& target,
                                          const PlannedConversion& conversion) {
  const std::optional<proto::MeshConfig> mesh = mesh_wanted(options, target);
  if (target.form == ModelForm::kHuggingFace) {
    LeavingFiles leaving = files_for_huggingface(source, target, main_dtype(conversion));
    for (const std::string& note : leaving.notes) print_warning(note);
    return make_safetensors_target(options.target, conversion.tensors(), std::move(leaving.files),
                                   static_cast<std::uint64_t>(options.shard_gigabytes * 1e9));
  }
  proto::Manifest manifest = checkpoint_manifest(source, target);
  if (!mesh) return make_checkpoint_target(options.target, std::move(manifest));
  *manifest.mutable_mesh() = *mesh;
  return make_checkpoint_target(options.target, std::move(manifest), cut_for_mesh(target.model, *mesh));
}

ConversionRate write_target(const Options& options, const ModelSource& source, const TargetModel& target,
                            PlannedConversion& conversion) {
  const std::unique_ptr<TensorTarget> writer = make_target(options, source, target, conversion);
  const auto start = std::chrono::steady_clock::now();
  ProgressLine line;
  std::uint64_t bytes = 0;
  const OverflowRule rule = options.allow_overflow ? OverflowRule::kAllow : OverflowRule::kRefuse;
  run_conversion(conversion, *writer, rule, [&](const ConversionProgress& done) {
    bytes = done.bytes;
    line.update(fmt::format("{} of {}", format_bytes(static_cast<double>(done.bytes)),
                            format_bytes(static_cast<double>(done.of_bytes))));
  });
  line.end();
  return {bytes, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()};
}

void check_data(const Options& options, const ModelSource& source) {
  if (options.any_tokenizer) return;
  const TargetModel as_it_is{
      .form = ModelForm::kCheckpoint, .model = source.model, .passes = source.passes, .family = {}, .dtype = {}};
  check_tokenizer(tokenizer_of(checkpoint_manifest(source, as_it_is)), options.source, TokenFile(options.data),
                  options.data, "take --any-tokenizer");
}

// Blocks of one size come and go: what is freed stays with the process, since fresh pages cost more than the copies.
void keep_freed_memory() {
  constexpr int kKept = 1 << 30;
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, kKept);
}

void convert(const Options& options) {
  keep_freed_memory();
  const ModelSource source = open_model_source(options.source);
  for (const std::string& what : source.unheeded) fmt::print(stderr, "warning: not heeded: {}\n", what);
  TargetModel target = target_wanted(options, source);
  const proto::ConversionPlan plan =
      options.plan.empty() ? plan_conversion(source, target) : plan_given(options, target);
  if (!options.plan_out.empty()) write_file_atomically(options.plan_out, to_text(plan));
  ConversionReport report = describe_conversion(source, target, plan);
  if (options.dry_run) {
    print_report(report, options.json ? ReportForm::kJson : ReportForm::kEverything);
    if (!report.fits) reject_input("the conversion is not possible: tensors are missing or left over");
  }
  PlannedConversion conversion(plan, *source.tensors);
  check_model_tensors(conversion.tensors(), target);
  if (options.dry_run) return;
  if (options.target.empty()) reject_input("name the TARGET folder, or ask for --dry-run");
  refuse_existing_target(options.target);
  if (!options.data.empty()) {
    check_data(options, source);
    report.add_perplexity(source, conversion, options.data, options.limit);
  }
  print_warning(warning_of_vocabulary(source, target));
  report.add_rate(write_target(options, source, target, conversion));
  if (!conversion.overflows().empty()) {
    fmt::print(stderr, "warning: values became infinite: {}\n", describe_overflows(conversion.overflows()));
  }
  print_report(report, options.json ? ReportForm::kJson : ReportForm::kSummary);
}

void add_options(CLI::App& verb, Options& options) {
  verb.add_option("source", options.source, "Hugging Face folder, checkpoint, or output directory")->required();
  verb.add_option("target", options.target, "Folder to make");
  verb.add_option("--to", options.to, "hf or kvloom; default: the other form, or kvloom with --map, --pp, --tp")
      ->check(CLI::IsMember({"hf", "kvloom"}));
  verb.add_option("--dtype", options.dtype, "f32, bf16 or f16; default: each tensor's own")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  verb.add_flag("--allow-overflow", options.allow_overflow, "Let values beyond the dtype's largest become infinite");
  auto* plan = verb.add_option("--plan", options.plan, "Apply this plan (proto/conversion.proto, text format)");
  auto* map = verb.add_option("--map", options.map, "Change the KV map: cla:2, sandwich-middle:3, 0_2_2_3, ...");
  map->excludes(plan);
  verb.add_option("--kv-init", options.kv_init, "What a KV layer starts from: its own weights, or its readers' mean")
      ->check(CLI::IsMember({"copy", "average"}))
      ->capture_default_str()
      ->needs(map);
  verb.add_option("--window", options.window, "Positions that windowed readers of the map see; 0: no windows")
      ->needs(map);
  verb.add_option("--pad-vocab", options.pad_vocabulary,
                  "Grow the vocabulary to so many tokens; new rows of embedding and head are the mean of the others")
      ->excludes(plan);
  verb.add_option("--pp", options.pipeline, "Cut the checkpoint's files for so many pipeline ranks")
      ->check(CLI::Range(1, 4096));
  verb.add_option("--tp", options.tensor, "Cut the checkpoint's files for so many tensor ranks")
      ->check(CLI::Range(1, 4096));
  verb.add_option("--plan-out", options.plan_out, "Write the plan that is applied");
  auto* data = verb.add_option("--data", options.data, "Token file: report perplexity before and after");
  verb.add_flag("--any-tokenizer", options.any_tokenizer, "Take --data of another tokenizer than the model's too");
  verb.add_option("--limit", options.limit, "Sequences of --data at most")->check(at_least(1))->capture_default_str();
  verb.add_option("--shard-gb", options.shard_gigabytes, "Size of a safetensors file, 10^9 bytes")
      ->check(CLI::Range(1e-6, 1e6))
      ->capture_default_str();
  verb.add_flag("--dry-run", options.dry_run, "Show what would become what, and write nothing but --plan-out")
      ->excludes(data);
  verb.add_flag("--json", options.json, "Print JSON");
}

}  // namespace

void add_convert(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("convert", "Convert between Hugging Face folders and checkpoints; change the map");
  add_options(*verb, *options);
  verb->footer(
      "Hugging Face: llama, mistral, qwen2, qwen3, lckv-llama. A model that shares leaves as lckv-llama,\n"
      "which has no norms of queries and keys: a qwen3 model that shares stays a checkpoint.\n"
      "Example: kvloom convert Llama-3.2-1B llama.kvloom --dtype bf16\n"
      "Example: kvloom convert Llama-3.2-1B shared --map sandwich-middle:3 --kv-init average --data tokens.h5\n"
      "Example: kvloom convert out exported --to hf --dtype bf16\n"
      "Example: kvloom convert out/step-00000100 cut --tp 2 --pp 2\n"
      "Example: kvloom convert Llama-3.2-1B --dry-run --plan-out plan.pbtxt");
  verb->callback([options] { convert(*options); });
}

}  // namespace kvloom
