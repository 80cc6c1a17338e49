#include "infer/engine/engine.h"

#include <algorithm>
#include <utility>

#include "core/checksum.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

constexpr std::int64_t kDefaultBytes = std::int64_t{1} << 30;

// Of a sequence, rows under way at most.
std::int64_t rows_ahead(const EngineOptions& options) { return std::max(options.max_chunk, options.grid); }

EngineOptions completed(EngineOptions options, const InferenceModel& model) {
  const ModelConfig& config = model.config();
  if (options.context < 0 || options.context > config.context) {
    reject_input("engine: a context of {}; right is up to the model's {}", options.context, config.context);
  }
  if (options.context == 0) options.context = config.context;
  if (!(options.tolerance >= 0)) reject_input("engine: tolerance {}; right is 0 or more", options.tolerance);
  const std::int64_t one =
      paged_bytes(config, options.kv_format, options.page_size, options.context, rows_ahead(options));
  if (options.kv_bytes == 0) {
    options.kv_bytes = std::max(2 * one, std::min(kDefaultBytes, options.max_sequences * one));
  }
  return options;
}

KvPagesOptions pages_of(const EngineOptions& options, const InferenceModel& model) {
  const ModelConfig& config = model.config();
  KvPagesOptions pages{.format = options.kv_format,
                       .page_size = options.page_size,
                       .kv_heads = model.shard().kv_heads(config).size(),
                       .pages = {},
                       .swap_places = {}};
  pages.pages = pages_within(config, options.kv_format, options.page_size, options.kv_bytes, options.context,
                             rows_ahead(options));
  for (const std::int64_t count : pages.pages) {
    pages.swap_places.push_back(static_cast<std::int64_t>(
        static_cast<double>(count) * static_cast<double>(options.swap_bytes) / static_cast<double>(options.kv_bytes)));
  }
  return pages;
}

// Where chains of page keys start: whatever makes K and V of equal tokens differ.
PageKey identity_of(const EngineOptions& options, const InferenceModel& model) {
  const std::string text =
      fmt::format("{} {} {} {} {} {} {} {} {}", model.config().to_proto().SerializeAsString(), name_of(model.dtype()),
                  static_cast<int>(model.format().weights), name_of(options.kv_format), static_cast<int>(options.guess),
                  options.tolerance, options.window, options.grid, options.prefill_passes);
  return {.high = checksum(std::as_bytes(std::span(text))), .low = 0};
}

SchedulerOptions scheduling_of(const EngineOptions& options, const InferenceModel& model) {
  const KvPagesOptions pages = pages_of(options, model);
  SchedulerOptions scheduling{.groups = {},
                              .page_size = options.page_size,
                              .max_sequences = options.max_sequences,
                              .budget = options.budget,
                              .max_chunk = options.max_chunk,
                              .window = options.window,
                              .grid = options.grid,
                              .prefill_passes = options.prefill_passes,
                              .prefix_cache = options.prefix_cache,
                              .reuse_generated = options.reuse_generated,
                              .identity = identity_of(options, model)};
  const std::vector<ReachGroup> groups = reach_groups(model.config().kv_map);
  for (std::size_t group = 0; group < groups.size(); ++group) {
    scheduling.groups.push_back({groups[group].reach, pages.pages[group], pages.swap_places[group]});
  }
  return scheduling;
}

RunnerOptions running_of(const EngineOptions& options, const InferenceModel& model) {
  return {.pages = pages_of(options, model),
          .forward = {.tolerance = options.tolerance,
                      .guess = options.guess,
                      .context = options.context,
                      .block = options.grid},
          .slots = options.max_sequences};
}

void check_tokens(std::span<const std::int32_t> tokens, std::int64_t vocab, const char* what) {
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= vocab) reject_input("{} {}: right are the ids 0 to {}", what, token, vocab - 1);
  }
}

void check_request(const Request& request, std::int64_t context, std::int64_t vocab) {
  const auto given = std::ssize(request.prompt);
  check_sampling(request.sampling);
  check_tokens(request.prompt, vocab, "prompt: token");
  for (const auto& bias : request.sampling.logit_bias)
    check_tokens(std::span(&bias.first, 1), vocab, "logit_bias: token");
  if (given == 0) reject_input("prompt: has no token; right is one or more");
  if (request.n < 1) reject_input("n: {}; right is 1 or more", request.n);
  if (request.max_new_tokens < 0) reject_input("max_new_tokens: {}; right is 0 or more", request.max_new_tokens);
  if (request.alternatives.value_or(0) < 0) reject_input("logprobs: {}; right is 0 or more", *request.alternatives);
  const std::int64_t room = request.max_new_tokens > 0 ? context - 1 : context;
  if (given > room) {
    reject_input("prompt: {} tokens; the context is {}{}", given, context,
                 request.max_new_tokens > 0 ? ", of which one must be left" : "");
  }
  const bool scores = request.prompt_scores.has_value() && request.prompt_scores->first < given;
  if (request.prompt_scores.has_value() && request.prompt_scores->first < 1) {
    reject_input("prompt_logprobs: from token {} on; right is 1 or more", request.prompt_scores->first);
  }
  if (request.max_new_tokens == 0 && !scores) {
    reject_input("max_new_tokens: 0, and no token of the prompt is to be scored; right is one of the two");
  }
}

}  // namespace

Engine::Engine(const InferenceModel& model, const EngineOptions& options)
    : model_(model),
      options_(completed(options, model)),
      scheduler_(model.config().kv_map, scheduling_of(options_, model)),
      runner_(model, running_of(options_, model)) {}

RequestId Engine::submit(Request request, double now) {
  check_request(request, options_.context, model_.config().vocab);
  const auto given = std::ssize(request.prompt);
  NewSequence sequence{.prompt = request.prompt,
                       .generated = {},
                       .max_tokens = std::min(options_.context, given + request.max_new_tokens),
                       .priority = request.priority,
                       .arrival = now,
                       .score_from = std::nullopt};
  if (request.prompt_scores.has_value()) sequence.score_from = request.prompt_scores->first - 1;
  const SequenceId id = scheduler_.add(std::move(sequence));
  const RequestId request_id = next_request_++;
  texts_[id] = {.request = request_id, .choice = 0, .tokens = request.prompt};
  Active& active = active_[request_id];
  active.request = std::move(request);
  active.sequences[0] = id;
  return request_id;
}

void Engine::cancel(RequestId request) {
  const auto found = active_.find(request);
  if (found == active_.end()) return;
  const std::map<int, SequenceId> sequences = found->second.sequences;
  for (const auto& [choice, sequence] : sequences) forget(sequence);
}

void Engine::cancel(RequestId request, int choice) {
  const auto found = active_.find(request);
  if (found == active_.end()) return;
  // Before the others have begun, the first stands for all.
  const auto sequence = found->second.sequences.find(choice);
  if (sequence != found->second.sequences.end()) forget(sequence->second);
}

std::vector<Event> Engine::step(double now) {
  std::vector<Event> events;
  end_overdue(now, events);
  const StepPlan plan = scheduler_.plan();
  if (plan.is_empty()) return events;
  const StepOutcome outcome = runner_.execute(plan);
  const std::vector<WantedRow> wanted = scheduler_.finish(plan, outcome);
  ++counts_.steps;
  runner_.logits([&](std::int64_t first, const Tensor& logits) {
    take_logits(std::span(wanted).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(logits.size(0))),
                logits, events);
  });
  return events;
}

// What is asked of the rows, then what was answered: rows of one block are answered together.
void Engine::take_logits(std::span<const WantedRow> wanted, const Tensor& logits, std::vector<Event>& events) {
  const auto vocab = static_cast<std::size_t>(logits.size(1));
  std::vector<RowChoice> asked;
  std::vector<std::size_t> first_of_row;
  for (std::size_t row = 0; row < wanted.size(); ++row) {
    first_of_row.push_back(asked.size());
    const Text& text = texts_.at(wanted[row].sequence);
    const Request& request = active_.at(text.request).request;
    RowChoice choice{.logits = logits.as<float>().subspan(row * vocab, vocab), .sampling = &request.sampling};
    if (wanted[row].samples) {
      choice.history = {text.tokens, request.prompt.size()};
      choice.alternatives = request.alternatives;
      const bool is_first = text.choice == 0 && text.tokens.size() == request.prompt.size();
      for (int k = text.choice; k < (is_first ? request.n : text.choice + 1); ++k) {
        choice.seed = seed_of_choice(request.sampling.seed, k);
        asked.push_back(choice);
      }
    } else if (const auto next = static_cast<std::size_t>(wanted[row].position) + 1; next < request.prompt.size()) {
      choice.target = request.prompt[next];
      choice.alternatives = request.prompt_scores->alternatives;
      asked.push_back(choice);
    }
  }
  first_of_row.push_back(asked.size());
  const std::vector<ChosenToken> chosen = choose(asked);
  for (std::size_t row = 0; row < wanted.size(); ++row) {
    const auto of_row = std::span(chosen).subspan(first_of_row[row], first_of_row[row + 1] - first_of_row[row]);
    if (of_row.empty() || !texts_.contains(wanted[row].sequence)) continue;
    if (wanted[row].samples) {
      take_samples(wanted[row].sequence, of_row, events);
    } else {
      take_score(wanted[row], of_row.front(), events);
    }
  }
}

void Engine::take_score(const WantedRow& row, const ChosenToken& chosen, std::vector<Event>& events) {
  Event& event = event_of(row.sequence, events);
  if (chosen.fault) return fail_text(row.sequence, chosen.fault, events);
  const Request& request = active_.at(event.request).request;
  event.prompt_scores.push_back(chosen.score);
  const bool is_last = row.position + 2 == std::ssize(request.prompt);
  if (is_last && request.max_new_tokens == 0) finish(row.sequence, FinishReason::kLength, events);
}

// One token for each text of the request that begins here, else one for this text.
void Engine::take_samples(SequenceId sequence, std::span<const ChosenToken> chosen, std::vector<Event>& events) {
  std::vector<SequenceId> sequences = {sequence};
  if (chosen.size() > 1) {
    const Text parent = texts_.at(sequence);
    for (const SequenceId fork : scheduler_.fork(sequence, static_cast<int>(chosen.size()) - 1)) {
      const int choice = static_cast<int>(sequences.size());
      texts_[fork] = {.request = parent.request, .choice = choice, .tokens = parent.tokens};
      active_.at(parent.request).sequences[choice] = fork;
      sequences.push_back(fork);
    }
  }
  for (std::size_t i = 0; i < chosen.size(); ++i) take_token(sequences[i], chosen[i], events);
}

void Engine::take_token(SequenceId sequence, const ChosenToken& chosen, std::vector<Event>& events) {
  Event& event = event_of(sequence, events);
  if (chosen.fault) return fail_text(sequence, chosen.fault, events);
  event.usage = usage_of(sequence);
  Text& text = texts_.at(sequence);
  const Request& request = active_.at(text.request).request;
  if (std::ranges::find(request.ends, chosen.score.token) != request.ends.end()) {
    event.end = chosen.score;
    return finish(sequence, FinishReason::kStop, events);
  }
  ++counts_.generated_tokens;
  text.tokens.push_back(chosen.score.token);
  event.token = chosen.score;
  const auto length = std::ssize(text.tokens);
  if (length == options_.context || length == std::ssize(request.prompt) + request.max_new_tokens) {
    return finish(sequence, FinishReason::kLength, events);
  }
  scheduler_.append(sequence, chosen.score.token);
}

void Engine::fail_text(SequenceId sequence, const std::exception_ptr& fault, std::vector<Event>& events) {
  try {
    std::rethrow_exception(fault);
  } catch (const Error& error) {
    event_of(sequence, events).message = error.what();
  }
  finish(sequence, FinishReason::kFailed, events);
}

// Before the others have begun, the first text stands for all: they end with it.
void Engine::finish(SequenceId sequence, FinishReason reason, std::vector<Event>& events) {
  Event& event = event_of(sequence, events);
  event.finish = reason;
  event.usage = usage_of(sequence);
  const Active& active = active_.at(event.request);
  const bool stands_for_all = active.sequences.size() == 1 && event.choice == 0 && !event.token && !event.end &&
                              texts_.at(sequence).tokens.size() == active.request.prompt.size();
  Event other = event;
  other.prompt_scores.clear();
  for (other.choice = 1; stands_for_all && other.choice < active.request.n; ++other.choice) events.push_back(other);
  forget(sequence);
}

void Engine::end_overdue(double now, std::vector<Event>& events) {
  std::vector<SequenceId> overdue;
  for (const auto& [sequence, text] : texts_) {
    const std::optional<double>& deadline = active_.at(text.request).request.deadline;
    if (deadline.has_value() && *deadline <= now) overdue.push_back(sequence);
  }
  for (const SequenceId sequence : overdue) finish(sequence, FinishReason::kDeadline, events);
}

void Engine::forget(SequenceId sequence) {
  scheduler_.remove(sequence);
  const auto text = texts_.find(sequence);
  const auto active = active_.find(text->second.request);
  active->second.sequences.erase(text->second.choice);
  if (active->second.sequences.empty()) active_.erase(active);
  texts_.erase(text);
}

// The step's event of this text: its latest, or a new one.
Event& Engine::event_of(SequenceId sequence, std::vector<Event>& events) const {
  const Text& text = texts_.at(sequence);
  for (auto event = events.rbegin(); event != events.rend(); ++event) {
    if (event->request == text.request && event->choice == text.choice) return *event;
  }
  Event event;
  event.request = text.request;
  event.choice = text.choice;
  return events.emplace_back(std::move(event));
}

Usage Engine::usage_of(SequenceId sequence) const {
  const SequenceStatus status = scheduler_.status(sequence);
  const Request& request = active_.at(texts_.at(sequence).request).request;
  return {.prompt_tokens = std::ssize(request.prompt),
          .cached_tokens = status.cached_tokens,
          .passes_per_token = status.passes_per_token,
          .capped = status.capped,
          .preemptions = status.preemptions};
}

EngineCounts Engine::counts() const {
  EngineCounts counts = counts_;
  counts.sequences = scheduler_.counts();
  for (std::size_t group = 0; group < runner_.pages().groups().size(); ++group) {
    counts.pages.push_back(scheduler_.pages(static_cast<int>(group)));
  }
  return counts;
}

}  // namespace kvloom
