#include "launch/serving_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/quantity_text.h"
#include "parallel/stage_layout.h"

namespace kvloom {
namespace {

using Json = nlohmann::ordered_json;

std::int64_t largest_batch(const ServingReport& report) {
  return sequences_within(report.shape, pages_of_stages(report.shape, report.boundaries, report.kv_bytes));
}

double rate(const ServingReport& report, std::int64_t batch) {
  return tokens_per_second(report.shape, report.speeds, report.boundaries, batch, report.shape.context / 2);
}

// Against as many layers on every stage.
double gain(const ServingReport& report, std::int64_t batch) {
  const StageLayout even = StageLayout::even(static_cast<int>(report.shape.model.layers), report.shape.stages);
  return rate(report, batch) /
         tokens_per_second(report.shape, report.speeds, even.boundaries(), batch, report.shape.context / 2);
}

double first_token(const ServingReport& report) {
  return first_token_seconds(report.shape, report.speeds, report.boundaries, report.prompt, report.passes_per_token);
}

std::string bytes_text(std::int64_t bytes) { return format_bytes(static_cast<double>(bytes)); }

}  // namespace

std::string serving_text(const ServingReport& report) {
  std::string text;
  const auto out = std::back_inserter(text);
  const ServingShape& shape = report.shape;
  fmt::format_to(out, "map {}\nmesh pipeline {} x tensor {}, stages {}\n\n", shape.model.kv_map.explicit_form(),
                 shape.stages, shape.tensor_ranks, report.placement);
  fmt::format_to(out, "{:>5} {:>9} {:>12} {:>12} {:>12} {:>12}\n", "stage", "layers", "weights", "K/V a token",
                 "sent a token", "received");
  const std::vector<ServedStage> stages = served_stages(shape, report.boundaries);
  for (std::size_t index = 0; index < stages.size(); ++index) {
    const ServedStage& stage = stages[index];
    fmt::format_to(out, "{:>5} {:>9} {:>12} {:>12} {:>12} {:>12}\n", index,
                   fmt::format("{}-{}", stage.layers.first, stage.layers.end - 1), bytes_text(stage.weight_bytes),
                   bytes_text(stage.kv_bytes_per_token), bytes_text(stage.sent_bytes),
                   format_bytes(stage.received_bytes));
  }
  text += "\nof one rank; K/V a token: of the sources that its layers read\n\n";
  for (const KvEdge& edge : kv_edges(shape.model.kv_map, report.boundaries)) {
    fmt::format_to(out, "K/V of layer {} from stage {} to stage {}, {}: {} a token\n", edge.source, edge.from, edge.to,
                   edge.is_upward() ? "for the next step" : "within the step",
                   bytes_text(bytes_per_token(shape, edge)));
  }
  const StageBytes sent = bytes_per_token(shape, report.boundaries);
  fmt::format_to(out,
                 "a decoded token: hidden states {}, K/V {} for layers above and {} for layers below, logits {}\n\n",
                 bytes_text(sent.hidden), bytes_text(sent.downward), bytes_text(sent.upward), bytes_text(sent.logits));
  const std::vector<std::int64_t> pages = pages_of_stages(shape, report.boundaries, report.kv_bytes);
  fmt::format_to(out, "{} of a rank for K/V: {} pages of {} tokens; largest batch {} at a context of {}\n",
                 bytes_text(report.kv_bytes), fmt::join(pages, ", "), shape.page_size, largest_batch(report),
                 shape.context);
  fmt::format_to(out, "{:>9} {:>12} {:>14}\n", "batch", "tokens/s", "to even stages");
  for (const std::int64_t batch : report.batches) {
    fmt::format_to(out, "{:>9} {:>12.1f} {:>14.2f}\n", batch, rate(report, batch), gain(report, batch));
  }
  fmt::format_to(out, "first token of a prompt of {}: {:.3g} ms at {:.1f} passes a token\n", report.prompt,
                 first_token(report) * 1e3, report.passes_per_token);
  return text;
}

std::string serving_json(const ServingReport& report) {
  const ServingShape& shape = report.shape;
  Json json = {{"map", shape.model.kv_map.explicit_form()},
               {"pipeline", shape.stages},
               {"tensor", shape.tensor_ranks},
               {"placement", report.placement},
               {"boundaries", report.boundaries}};
  for (const ServedStage& stage : served_stages(shape, report.boundaries)) {
    json["stages"].push_back({{"first_layer", stage.layers.first},
                              {"last_layer", stage.layers.end - 1},
                              {"weight_bytes", stage.weight_bytes},
                              {"kv_bytes_per_token", stage.kv_bytes_per_token},
                              {"sent_bytes_per_token", stage.sent_bytes},
                              {"received_bytes_per_token", stage.received_bytes}});
  }
  json["edges"] = Json::array();
  for (const KvEdge& edge : kv_edges(shape.model.kv_map, report.boundaries)) {
    json["edges"].push_back({{"source", edge.source},
                             {"from", edge.from},
                             {"to", edge.to},
                             {"upward", edge.is_upward()},
                             {"bytes_per_token", bytes_per_token(shape, edge)}});
  }
  const StageBytes sent = bytes_per_token(shape, report.boundaries);
  json["bytes_per_token"] = {
      {"hidden", sent.hidden}, {"downward", sent.downward}, {"upward", sent.upward}, {"logits", sent.logits}};
  json["kv_bytes"] = report.kv_bytes;
  json["pages"] = pages_of_stages(shape, report.boundaries, report.kv_bytes);
  json["context"] = shape.context;
  json["largest_batch"] = largest_batch(report);
  for (const std::int64_t batch : report.batches) {
    json["rates"].push_back(
        {{"batch", batch}, {"tokens_per_second", rate(report, batch)}, {"relative_to_even", gain(report, batch)}});
  }
  json["first_token"] = {{"prompt_tokens", report.prompt},
                         {"passes_per_token", report.passes_per_token},
                         {"seconds", first_token(report)}};
  return json.dump(2) + "\n";
}

}  // namespace kvloom
