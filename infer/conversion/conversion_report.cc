#include "infer/conversion/conversion_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "core/convert/model_weights.h"
#include "core/kv_pages.h"
#include "core/parameters.h"
#include "data/token_file.h"
#include "infer/evaluation/file_evaluation.h"
#include "kernels/error.h"
#include "parallel/thread_ranks.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kLongestWindow = 2048;

Json describe_model(const ModelConfig& model, const std::string& family) {
  const ParameterLayout layout(model, ModelShard::whole(model));
  return {{"family", family.empty() ? "none" : family},
          {"layers", model.layers},
          {"kv_map", model.kv_map.explicit_form()},
          {"kv_layers", model.kv_map.kv_layers().size()},
          {"window", model.window},
          {"parameters", layout.count()},
          {"kv_bytes_per_token_bf16", kv_bytes(model, KvFormat::kBF16, 1)}};
}

std::string form_name(ModelForm form) { return form == ModelForm::kHuggingFace ? "hf" : "kvloom"; }

Json describe_tensor(const proto::TargetTensor& tensor) {
  Json inputs = Json::array();
  for (const proto::SourceSlice& input : tensor.inputs()) {
    const bool sliced = input.offset_size() > 0 || input.shape_size() > 0;
    inputs.push_back(
        fmt::format("{}{}{}", input.tensor(), sliced ? " sliced" : "", input.transpose() ? " transposed" : ""));
  }
  std::string operation = proto::TargetTensor::Operation_Name(tensor.operation());
  std::ranges::transform(operation, operation.begin(), [](unsigned char c) { return std::tolower(c); });
  return {{"name", tensor.name()},
          {"shape", std::vector<std::int64_t>(tensor.shape().begin(), tensor.shape().end())},
          {"dtype", tensor.dtype().empty() ? "as it is" : tensor.dtype()},
          {"operation", operation},
          {"from", std::move(inputs)}};
}

FileLoss loss_of(PlannedConversion& conversion, const ModelConfig& config, const Passes& passes, const TokenFile& file,
                 std::int64_t limit) {
  CachingCpuAllocator allocator;
  Model model(config, DType::kF32, allocator);
  load_weights(conversion, model);
  const std::unique_ptr<Scorer> scorer = make_scorer(model);
  FileEvaluation evaluation(file, Part::kValidation, std::min(config.context, kLongestWindow), limit);
  return evaluation.run(
      [&](const EvaluationWindow& window) { return window_nats(*scorer, {.passes = passes}, window); },
      *make_single_rank());
}

}  // namespace

ConversionReport describe_conversion(const ModelSource& source, const TargetModel& target,
                                     const proto::ConversionPlan& plan) {
  const PlanFit fit = fit_of(plan, *source.tensors);
  ConversionReport report;
  report.fits = fit.missing.empty() && fit.unclaimed.empty();
  Json& content = report.content;
  content["from"] = describe_model(source.model, source.family);
  content["from"]["form"] = form_name(source.form);
  content["from"]["path"] = source.path.string();
  content["to"] = describe_model(target.model, target.family.empty() ? source.family : target.family);
  content["to"]["form"] = form_name(target.form);
  content["tensors"] = Json::array();
  for (const proto::TargetTensor& tensor : plan.tensors()) content["tensors"].push_back(describe_tensor(tensor));
  content["left_over"] = Json::array();
  for (const proto::LeftOverTensor& left : plan.left_over()) {
    content["left_over"].push_back({{"name", left.name()}, {"reason", left.reason()}});
  }
  content["missing"] = fit.missing;
  content["unclaimed"] = fit.unclaimed;
  content["files_taken_along"] = Json::array();
  for (const proto::CarriedFile& file : source.origin.files()) content["files_taken_along"].push_back(file.name());
  content["files_left"] = source.left_files;
  content["config_fields_kept"] = source.kept_fields;
  return report;
}

void ConversionReport::add_perplexity(const ModelSource& source, PlannedConversion& conversion, const std::string& data,
                                      std::int64_t limit) {
  const TokenFile file(data);
  if (file.used_vocab() > source.model.vocab) {
    reject_input("--data: '{}' holds token {} of a vocabulary of {}; the model has {}", data, file.used_vocab() - 1,
                 file.vocab(), source.model.vocab);
  }
  if (file.count(Part::kValidation) < 2) {
    reject_input("--data: '{}' has no validation tokens; make some with kvloom tokenize --valid-fraction", data);
  }
  const TargetModel as_it_is{
      .form = ModelForm::kCheckpoint, .model = source.model, .passes = source.passes, .family = {}, .dtype = {}};
  PlannedConversion before(plan_conversion(source, as_it_is), *source.tensors);
  const FileLoss first = loss_of(before, source.model, source.passes, file, limit);
  const ModelConfig after = ModelConfig::from_proto(conversion.plan().model());
  const FileLoss second = loss_of(conversion, after, passes_of(conversion.plan().passes()), file, limit);
  content["evaluation"] = {{"tokens", first.tokens},
                           {"window", std::min(source.model.context, kLongestWindow)},
                           {"loss_before", first.mean_loss()},
                           {"loss_after", second.mean_loss()},
                           {"perplexity_before", first.perplexity()},
                           {"perplexity_after", second.perplexity()}};
}

void ConversionReport::add_rate(const ConversionRate& rate) {
  content["bytes"] = rate.bytes;
  content["seconds"] = rate.seconds;
}

}  // namespace kvloom
