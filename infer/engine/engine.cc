#include "infer/engine/engine.h"

#include <algorithm>
#include <utility>

#include "kernels/error.h"

namespace kvloom {
Engine::Engine(const InferenceModel& model, const EngineOptions& options)
    : model_(model),
      options_(completed(options, model)),
      own_runner_(std::make_unique<Runner>(model, running_of(options_, model))),
      runner_(own_runner_.get()),
      scheduler_(model.config().kv_map, scheduling_of(options_, model, runner_->pages().options())) {}

Engine::Engine(const InferenceModel& model, const EngineOptions& options, StepRunner& runner)
    : model_(model),
      options_(options),
      runner_(&runner),
      scheduler_(model.config().kv_map, scheduling_of(options_, model, runner.pages().options())) {}

RequestId Engine::submit(Request request, double now) {
  check_request(request, options_.context, model_.config().vocab);
  const auto given = std::ssize(request.prompt);
  NewSequence sequence{.prompt = request.prompt,
                       .generated = {},
                       .max_tokens = std::min(options_.context, given + request.max_new_tokens),
                       .priority = request.priority,
                       .arrival = now,
                       .score_from = std::nullopt};
  if (request.prompt_scores.has_value() && request.prompt_scores->first <= given) {
    sequence.score_from = request.prompt_scores->first - 1;
  }
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
  while (scheduler_.can_plan()) {
    StepPlan plan = scheduler_.plan();
    if (plan.is_empty()) break;
    under_way_.push_back(std::move(plan));
    runner_->start(under_way_.back());
  }
  if (under_way_.empty()) return events;
  const StepPlan plan = std::move(under_way_.front());
  under_way_.pop_front();
  const std::vector<WantedRow> wanted = scheduler_.finish(plan, runner_->outcome());
  ++counts_.steps;
  runner_->logits([&](std::int64_t first, const Tensor& logits) {
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
    // A prompt that is only scored ends with its last score; rows behind that are nobody's.
    if (!texts_.contains(wanted[row].sequence)) continue;
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
  for (std::size_t group = 0; group < runner_->pages().groups().size(); ++group) {
    counts.pages.push_back(scheduler_.pages(static_cast<int>(group)));
  }
  return counts;
}

}  // namespace kvloom
