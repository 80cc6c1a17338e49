#include "infer/evaluation/evaluation.h"

#include <algorithm>
#include <set>
#include <utility>

#include "kernels/error.h"

namespace kvloom {
namespace {

// All requests of all tasks, and which item and query each belongs to.
struct Requests {
  struct Owner {
    std::size_t task;
    std::size_t item;
    std::size_t query;
  };
  std::vector<TokenRequest> requests;
  std::vector<Owner> owners;
};

std::size_t items_of(const Task& task, const EvaluationOptions& options) {
  const auto all = static_cast<std::int64_t>(task.items.size());
  return static_cast<std::size_t>(std::min(all, options.limit.value_or(all)));
}

void check_vocabulary(const Requests& requests, std::int64_t vocab) {
  for (const TokenRequest& request : requests.requests) {
    for (const std::int32_t token : request.tokens) {
      if (token >= vocab) reject_input("the tokenizer gives token {}; the model's vocabulary is {}", token, vocab);
    }
  }
}

Requests make_requests(std::span<const Task> tasks, const RequestEncoder& encoder, const EvaluationOptions& options) {
  Requests all;
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    const Task& task = tasks[t];
    for (std::size_t i = 0; i < items_of(task, options); ++i) {
      const TaskItem& item = task.items[i];
      for (std::size_t q = 0; q < item.queries.size(); ++q) {
        std::vector<TokenRequest> requests;
        if (task.kind == TaskKind::kLogLikelihoodRolling) {
          requests = encoder.windows(item.queries[q].continuation);
        } else {
          requests.push_back(encoder.pair(item.queries[q], fmt::format("{}, line {}", task.path, item.line)));
        }
        all.owners.insert(all.owners.end(), requests.size(), {t, i, q});
        std::ranges::move(requests, std::back_inserter(all.requests));
      }
    }
  }
  return all;
}

// Of a needle, what is cut off may be the needle.
void warn_of_cut_items(std::span<const Task> tasks, const Requests& all, std::int64_t context,
                       const EvaluationOptions& options) {
  std::vector<std::set<std::size_t>> cut(tasks.size());
  for (std::size_t i = 0; i < all.requests.size(); ++i) {
    if (all.requests[i].cut > 0) cut[all.owners[i].task].insert(all.owners[i].item);
  }
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    if (cut[t].empty() || !options.warn) continue;
    options.warn(
        fmt::format("{}: {} of {} items are longer than the model's context of {} tokens; their beginning is "
                    "cut off",
                    tasks[t].path, cut[t].size(), items_of(tasks[t], options), context));
  }
}

nlohmann::ordered_json identity_of(std::span<const Task> tasks, const Scorer& scorer, const EvaluationOptions& options,
                                   std::size_t requests) {
  nlohmann::ordered_json files = nlohmann::ordered_json::array();
  for (const Task& task : tasks) files.push_back({{"task", task.name}, {"checksum", task.checksum}});
  const bool parallel = options.scoring.form == ScoringForm::kParallel;
  return {{"model", options.model_identity},
          {"tasks", files},
          {"form", parallel ? "parallel" : "sequential"},
          {"passes", parallel ? options.scoring.passes.without_gradient + options.scoring.passes.with_gradient : 0},
          {"precision", scorer.format()},
          {"context", scorer.config().context},
          {"batch_tokens", options.batch_tokens},
          {"requests", requests}};
}

// Tokens that the model reads for a batch, with what fills it up.
std::int64_t tokens_of(const RequestBatch& batch, std::span<const TokenRequest> requests) {
  std::size_t longest = 0;
  for (const SharedInput& input : batch) longest = std::max(longest, requests[input.requests.front()].tokens.size());
  return static_cast<std::int64_t>(longest * batch.size());
}

// This rank's share: every so manieth batch, so that ranks get long and short ones alike, without those whose scores
// are known.
std::vector<RequestBatch> own_batches(const std::vector<RequestBatch>& batches, const ProgressLog& log,
                                      const Communicator& world) {
  std::vector<RequestBatch> open;
  for (const RequestBatch& batch : batches) {
    const auto is_known = [&](std::size_t request) { return log.known().contains(request); };
    if (!std::ranges::all_of(requests_of(batch), is_known)) open.push_back(batch);
  }
  std::vector<RequestBatch> own;
  for (auto i = static_cast<std::size_t>(world.rank()); i < open.size(); i += static_cast<std::size_t>(world.size())) {
    own.push_back(std::move(open[i]));
  }
  return own;
}

// Scores of this rank's batches, as lines of progress.
std::string score_own(const Scorer& scorer, const Requests& requests, const std::vector<RequestBatch>& batches,
                      const EvaluationOptions& options, ProgressLog& log) {
  EvaluationProgress progress{.done = 0, .total = 0, .batches_done = 0, .batches = batches.size()};
  for (const RequestBatch& batch : batches) progress.total += tokens_of(batch, requests.requests);
  std::string lines;
  for (const RequestBatch& batch : batches) {
    const std::vector<Score> scores = score_batch(scorer, options.scoring, requests.requests, batch);
    const std::vector<std::size_t> indices = requests_of(batch);
    log.add(indices, scores);
    lines += progress_lines(indices, scores);
    progress.done += tokens_of(batch, requests.requests);
    ++progress.batches_done;
    if (options.on_batch) options.on_batch(progress);
  }
  return lines;
}

void read_lines(const std::string& lines, std::map<std::size_t, Score>& scores) {
  for (std::size_t begin = 0; begin < lines.size();) {
    const std::size_t end = lines.find('\n', begin);
    read_progress_line(lines.substr(begin, end - begin), "evaluation: a rank's scores", scores);
    begin = end + 1;
  }
}

std::vector<TaskResult> results_of(std::span<const Task> tasks, const Requests& requests,
                                   const std::map<std::size_t, Score>& scores, const EvaluationOptions& options) {
  std::vector<TaskResult> results;
  for (const Task& task : tasks) {
    TaskResult& result = results.emplace_back(TaskResult{.task = &task});
    result.items.resize(items_of(task, options));
    for (std::size_t i = 0; i < result.items.size(); ++i) {
      result.items[i].scores.assign(task.items[i].queries.size(), {.log_likelihood = 0, .greedy = true});
    }
  }
  for (std::size_t index = 0; index < requests.requests.size(); ++index) {
    const Requests::Owner& owner = requests.owners[index];
    const Score& score = scores.at(index);
    ItemResult& item = results[owner.task].items[owner.item];
    item.scores[owner.query].log_likelihood += score.log_likelihood;
    item.scores[owner.query].greedy = item.scores[owner.query].greedy && score.greedy;
    item.tokens += requests.requests[index].targets;
  }
  for (TaskResult& result : results) {
    result.metrics = task_metrics(*result.task, result.items);
    if (result.task->grid.has_value()) result.grid = grid_result(*result.task, result.items);
  }
  return results;
}

}  // namespace

std::vector<TaskResult> evaluate_tasks(const Scorer& scorer, const Tokenizer& tokenizer, std::span<const Task> tasks,
                                       const EvaluationOptions& options, Communicator& world) {
  const RequestEncoder encoder(tokenizer, scorer.config().context);
  const Requests requests = make_requests(tasks, encoder, options);
  check_vocabulary(requests, scorer.config().vocab);
  warn_of_cut_items(tasks, requests, scorer.config().context, options);
  const std::vector<RequestBatch> batches = make_batches(requests.requests, options.batch_tokens);
  ProgressLog log;
  if (!options.output.empty()) {
    log = ProgressLog(options.output, identity_of(tasks, scorer, options, requests.requests.size()), options.start,
                      world);
  }
  std::map<std::size_t, Score> scores = log.known();
  const std::string lines = score_own(scorer, requests, own_batches(batches, log, world), options, log);
  for (const std::string& of_rank : all_gather_bytes(world, lines)) read_lines(of_rank, scores);
  return results_of(tasks, requests, scores, options);
}

}  // namespace kvloom
