#include "launch/plan_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "core/kv_kept.h"
#include "core/quantity_text.h"
#include "parallel/schedule_drawing.h"
#include "parallel/step_summary.h"
#include "train/mesh_config.h"

namespace kvloom {
namespace {

constexpr int kGanttColumns = 100;

constexpr std::size_t at(int index) { return static_cast<std::size_t>(index); }

std::string count(std::int64_t number, const char* what) {
  return fmt::format("{} {}{}", number, what, number == 1 ? "" : "s");
}

template <typename Numbers>
std::string list_or_dash(const Numbers& numbers) {
  constexpr std::size_t kMost = 8;
  if (std::begin(numbers) == std::end(numbers)) return "-";
  if (std::size(numbers) <= kMost) return fmt::format("{}", fmt::join(numbers, ","));
  return fmt::format("{}..{} ({})", *std::begin(numbers), *std::prev(std::end(numbers)), std::size(numbers));
}

std::string bytes_text(std::int64_t bytes) { return bytes == 0 ? "-" : format_bytes(static_cast<double>(bytes)); }

// Large enough to read: milliseconds where it is less than a second.
std::string seconds_text(double seconds) {
  return seconds < 1 ? fmt::format("{:.4g} ms", 1e3 * seconds) : fmt::format("{:.4g} s", seconds);
}

class Text {
 public:
  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

void add_heading(const PlanReport& report, Text& text) {
  const StepShape& shape = report.shape;
  text.add("{}, {}, over {} data x {} pipeline x {} tensor ranks{}\n", count(shape.model.layers, "layer"),
           count(std::ssize(shape.model.kv_map.kv_layers()), "KV layer"), report.data_ranks, report.step.layout.ranks(),
           shape.tensor_ranks, shape.sequence_parallel == SequenceParallel::kYes ? ", sequence parallel" : "");
  text.add("a step: {} of {} x {} tokens for each data rank, {}, m = {}, b = {}, {}{}\n",
           fmt::format("{} micro-batch{}", shape.micro_batches, shape.micro_batches == 1 ? "" : "es"), shape.sequences,
           shape.model.context, name_of(shape.dtype), shape.passes.without_gradient, shape.passes.with_gradient,
           shape.policy == SchedulePolicy::kGPipe ? "gpipe" : "1f1b",
           shape.recompute == Recompute::kFull ? ", recompute" : "");
  if (report.step.layout.stages() > 1) {
    text.add("--boundaries {} ({})\n", boundaries_text(report.step.layout), report.placement);
  }
}

// What a text of the model's context keeps when it is served in the dtype of training.
void add_kept(const PlanReport& report, Text& text) {
  const ModelConfig& model = report.shape.model;
  const KvFormat format = kv_format_of(report.shape.dtype);
  text.add("\nK/V kept of a text of {} tokens: {} in {}, {} a token; {}\n", model.context,
           bytes_text(kv_bytes(model, format, model.context)), name_of(format), bytes_text(kv_bytes(model, format, 1)),
           fmt::join(reach_lines(model.kv_map), "; "));
}

nlohmann::ordered_json kept_json(const PlanReport& report) {
  const ModelConfig& model = report.shape.model;
  const KvFormat format = kv_format_of(report.shape.dtype);
  nlohmann::ordered_json groups = nlohmann::ordered_json::array();
  for (const KvKept& kept : kv_kept(model, format, model.context)) {
    groups.push_back({{"reach", kept.group.reach},
                      {"sources", kept.group.layers()},
                      {"keys_of", kept.group.sources.key},
                      {"values_of", kept.group.sources.value},
                      {"bytes", kept.bytes}});
  }
  return {{"dtype", name_of(format)},
          {"positions", model.context},
          {"bytes", kv_bytes(model, format, model.context)},
          {"bytes_per_token", kv_bytes(model, format, 1)},
          {"groups", groups}};
}

void add_stages(const PlanReport& report, Text& text) {
  text.add("\n{:>5} {:>5}  {:<10} {:<22} {:<22} {:>8}\n", "stage", "rank", "layers", "KV sources", "K/V received of",
           "compute");
  const std::vector<StageSummary> stages = stages_of(report.shape, report.step);
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const StageSummary& stage = stages[i];
    const std::string layers = stage.first_layer == stage.last_layer
                                   ? fmt::format("{}", stage.first_layer)
                                   : fmt::format("{}-{}", stage.first_layer, stage.last_layer);
    text.add("{:>5} {:>5}  {:<10} {:<22} {:<22} {:>7.1f}%\n", i, stage.rank, layers, list_or_dash(stage.owned),
             list_or_dash(stage.received), 100 * stage.compute_share);
  }
}

void add_ranks(const PlanReport& report, Text& text) {
  text.add("\n{:>5} {:>7} {:>12} {:>22} {:>17} {:>17}\n", "rank", "idle", "memory", "weights and optimizer",
           "kept activations", "K/V without grad");
  for (int rank = 0; rank < report.step.layout.ranks(); ++rank) {
    const RankMemory& memory = report.step.memory[at(rank)];
    text.add("{:>5} {:>6.1f}% {:>12} {:>22} {:>17} {:>17}\n", rank, 100 * idle_share(report.step, rank),
             bytes_text(memory.total()), bytes_text(memory.weights), bytes_text(memory.activations),
             bytes_text(memory.key_values));
  }
}

void add_links(const PlanReport& report, Text& text) {
  const std::vector<RankLink> links = links_of(report.step);
  if (links.empty()) return;
  text.add("\nsent from rank to rank, for each micro-batch{}:\n",
           report.shape.tensor_ranks > 1 ? " and tensor rank" : "");
  text.add("{:>9} {:>12} {:>14} {:>12} {:>12} {:>9}\n", "from > to", "hidden", "their gradient", "K/V", "dK/dV",
           "messages");
  for (const RankLink& link : links) {
    text.add("{:>9} {:>12} {:>14} {:>12} {:>12} {:>9}\n", fmt::format("{} > {}", link.from, link.to),
             bytes_text(link.bytes.hidden), bytes_text(link.bytes.hidden_gradient), bytes_text(link.bytes.key_value),
             bytes_text(link.bytes.key_value_gradient), link.bytes.messages);
  }
}

std::string prediction_text(const PredictedStep& step) {
  return fmt::format("{} a step, ranks idle {:.1f}% of it, {} at most", seconds_text(step.times.makespan),
                     100 * step.times.idle_share(), format_bytes(static_cast<double>(step.most_memory())));
}

void add_prediction(const PlanReport& report, Text& text) {
  const int ranks = report.step.layout.ranks();
  if (ranks == 1) {
    text.add("\npredicted  {}\n", prediction_text(report.step));
    return;
  }
  const auto m = static_cast<double>(report.shape.micro_batches);
  text.add("\npredicted  {}\n", prediction_text(report.step));
  text.add("even       {}: {:.3f} times as long, at boundaries {}\n", prediction_text(report.even),
           report.even.times.makespan / report.step.times.makespan, boundaries_text(report.even.layout));
  text.add("           equal stages visited once would be idle {:.1f}%: (P-1)/(M+P-1)\n",
           100 * (ranks - 1) / (m + ranks - 1));
}

void add_schedule(const PlanReport& report, Text& text) {
  text.add("\nschedule, {} a column, by micro-batch:\n{}", seconds_text(report.step.times.makespan / kGanttColumns),
           text_gantt(report.step.times, kGanttColumns));
}

nlohmann::ordered_json to_json(const LinkBytes& bytes, std::int64_t times) {
  return {{"hidden", times * bytes.hidden},
          {"hidden_gradient", times * bytes.hidden_gradient},
          {"key_value", times * bytes.key_value},
          {"key_value_gradient", times * bytes.key_value_gradient},
          {"messages", times * bytes.messages}};
}

nlohmann::ordered_json prediction_json(const PredictedStep& step) {
  return {{"boundaries", boundaries_text(step.layout)},
          {"seconds", step.times.makespan},
          {"idle_share", step.times.idle_share()},
          {"most_memory_bytes", step.most_memory()}};
}

nlohmann::ordered_json stages_json(const PlanReport& report) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const StageSummary& stage : stages_of(report.shape, report.step)) {
    all.push_back({{"rank", stage.rank},
                   {"first_layer", stage.first_layer},
                   {"last_layer", stage.last_layer},
                   {"sources", stage.owned},
                   {"received_sources", stage.received},
                   {"compute_share", stage.compute_share}});
  }
  return all;
}

nlohmann::ordered_json ranks_json(const PredictedStep& step) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (int rank = 0; rank < step.layout.ranks(); ++rank) {
    all.push_back({{"busy_seconds", step.times.busy[at(rank)]},
                   {"idle_share", idle_share(step, rank)},
                   {"peak_kept_chunks", step.times.peak_kept_chunks[at(rank)]},
                   {"memory_bytes",
                    {{"total", step.memory[at(rank)].total()},
                     {"weights", step.memory[at(rank)].weights},
                     {"activations", step.memory[at(rank)].activations},
                     {"key_values", step.memory[at(rank)].key_values}}}});
  }
  return all;
}

nlohmann::ordered_json links_json(const PlanReport& report) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const RankLink& link : links_of(report.step)) {
    all.push_back({{"from", link.from},
                   {"to", link.to},
                   {"bytes_per_micro_batch", to_json(link.bytes, 1)},
                   {"bytes_per_step", to_json(link.bytes, report.shape.micro_batches)}});
  }
  return all;
}

}  // namespace

std::string plan_text(const PlanReport& report) {
  Text text;
  add_heading(report, text);
  add_kept(report, text);
  add_stages(report, text);
  add_ranks(report, text);
  add_links(report, text);
  add_prediction(report, text);
  add_schedule(report, text);
  return text.text();
}

std::string plan_json(const PlanReport& report) {
  nlohmann::ordered_json all = {
      {"mesh",
       {{"data", report.data_ranks}, {"pipeline", report.step.layout.ranks()}, {"tensor", report.shape.tensor_ranks}}},
      {"micro_batches", report.shape.micro_batches},
      {"placement", report.placement},
      {"kv_cache", kept_json(report)}};
  all.update(prediction_json(report.step));
  all["stages"] = stages_json(report);
  all["ranks"] = ranks_json(report.step);
  all["links"] = links_json(report);
  all["even"] = prediction_json(report.even);
  return all.dump(2) + "\n";
}

}  // namespace kvloom
