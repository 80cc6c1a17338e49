#include "infer/load/load.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <unordered_map>

#include "kernels/error.h"

namespace kvloom {
namespace {

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

Request greedy(std::vector<std::int32_t> prompt, std::int64_t new_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_new_tokens = new_tokens;
  request.sampling.temperature = 0;
  return request;
}

void submit_all(Engine& engine, std::int64_t sequences, const LoadShape& shape, std::int64_t new_tokens) {
  const std::int64_t vocab = engine.model().config().vocab;
  for (std::int64_t i = 0; i < sequences; ++i) {
    engine.submit(greedy(random_prompt(shape.prompt_tokens, vocab, static_cast<std::uint64_t>(i)), new_tokens));
  }
}

struct Drained {
  double seconds = 0;
  double passes_per_token = 1;
  std::int64_t steps = 0;
};

Drained drain(Engine& engine) {
  const Stopwatch watch;
  Drained result;
  double passes = 0;
  std::int64_t finished = 0;
  while (!engine.is_idle()) {
    ++result.steps;
    for (const Event& event : engine.step()) {
      if (event.finish == FinishReason::kNone) continue;
      if (event.finish == FinishReason::kFailed) fail("load: {}", event.message);
      passes += event.usage.passes_per_token;
      ++finished;
    }
  }
  result.seconds = watch.seconds();
  if (finished > 0) result.passes_per_token = passes / static_cast<double>(finished);
  return result;
}

// Until every sequence has had its first token, then `steps` timed tokens of each.
double time_decoding(Engine& engine, std::int64_t sequences, std::int64_t steps) {
  std::int64_t first_tokens = 0;
  std::unordered_map<RequestId, bool> seen;
  while (first_tokens < sequences) {
    if (engine.is_idle())
      fail("load: {} sequences do not decode together; right is a smaller batch or more memory for K/V", sequences);
    for (const Event& event : engine.step()) {
      if (event.token.has_value() && seen.try_emplace(event.request, true).second) ++first_tokens;
    }
  }
  if (engine.counts().sequences.running < sequences) {
    fail("load: {} of {} sequences have their K/V in memory; right is a smaller batch or more memory for K/V",
         engine.counts().sequences.running, sequences);
  }
  const Stopwatch watch;
  std::int64_t tokens = 0;
  while (tokens < sequences * steps && !engine.is_idle()) {
    for (const Event& event : engine.step()) tokens += event.token.has_value() ? 1 : 0;
  }
  const double seconds = watch.seconds();
  if (tokens < sequences * steps) {
    fail("load: a context of {} ends texts after {} of {} timed tokens; right is a longer one, or fewer steps",
         engine.options().context, tokens, sequences * steps);
  }
  return seconds;
}

}  // namespace

BatchResult measure_batch(Engine& engine, std::int64_t sequences, const LoadShape& shape, WholeRun whole) {
  BatchResult result{.sequences = sequences};
  const std::int64_t before = engine.counts().sequences.preemptions;
  submit_all(engine, sequences, shape, 1);
  const Drained prefill = drain(engine);
  result.prefill_seconds = prefill.seconds;
  result.passes_per_token = prefill.passes_per_token;
  // Those whose prompts come first decode while the others' are computed.
  const std::int64_t room = engine.options().context - shape.prompt_tokens;
  submit_all(engine, sequences, shape, std::min(room, prefill.steps + 2 + shape.new_tokens));
  result.decode_steps = shape.new_tokens;
  result.decode_seconds = time_decoding(engine, sequences, shape.new_tokens);
  drain(engine);
  if (whole == WholeRun::kYes) {
    submit_all(engine, sequences, shape, shape.new_tokens);
    result.total_seconds = drain(engine).seconds;
  }
  result.preemptions = engine.counts().sequences.preemptions - before;
  return result;
}

FirstTokenResult measure_first_token(Engine& engine, std::int64_t prompt_tokens) {
  submit_all(engine, 1, {.prompt_tokens = prompt_tokens}, 1);
  const Drained drained = drain(engine);
  return {.prompt_tokens = prompt_tokens, .seconds = drained.seconds, .passes_per_token = drained.passes_per_token};
}

ArrivalResult measure_arrivals(Engine& engine, const ArrivalLoad& load) {
  const std::vector<double> arrivals = arrival_times(load);
  std::unordered_map<RequestId, TextTimes> texts;
  ArrivalTimes times;
  double passes = 0;
  std::int64_t most_running = 0;
  std::size_t sent = 0;
  const Stopwatch watch;
  while (sent < arrivals.size() || !engine.is_idle()) {
    for (; sent < arrivals.size() && arrivals[sent] <= watch.seconds(); ++sent) {
      auto prompt = arrival_prompt(load, static_cast<std::int64_t>(sent), engine.model().config().vocab);
      const RequestId id = engine.submit(greedy(std::move(prompt), load.shape.new_tokens), arrivals[sent]);
      texts[id] = {.arrival = arrivals[sent]};
    }
    if (engine.is_idle()) {
      std::this_thread::sleep_for(std::chrono::duration<double>(std::max(0.0, arrivals[sent] - watch.seconds())));
      continue;
    }
    const std::vector<Event> events = engine.step(watch.seconds());
    const double now = watch.seconds();
    most_running = std::max(most_running, engine.counts().sequences.running);
    for (const Event& event : events) {
      TextTimes& text = texts.at(event.request);
      if (event.token.has_value()) times.add_tokens(text, 1, now);
      if (event.finish == FinishReason::kNone) continue;
      if (event.finish == FinishReason::kFailed) fail("load: {}", event.message);
      times.add_end(text, now);
      passes += event.usage.passes_per_token;
    }
  }
  ArrivalResult result = times.result(watch.seconds());
  result.passes_per_token = passes / static_cast<double>(load.requests);
  result.most_running = most_running;
  return result;
}

}  // namespace kvloom
