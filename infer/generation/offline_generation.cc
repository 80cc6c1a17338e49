#include "infer/generation/offline_generation.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/error.h"

namespace kvloom {
namespace {

class Generation {
 public:
  Generation(Engine& engine, const TextModel& model, const OfflineOptions& options, const OfflineCalls& calls)
      : engine_(engine), model_(model), options_(options), calls_(calls), first_(options.first) {}

  OfflineCounts run() {
    while (true) {
      read_ahead();
      write_finished();
      if (lines_.empty() && at_end_) return counts_;
      if (lines_.empty()) continue;  // all that were read could not be used
      for (Event& event : engine_.step()) take(event);
      write_finished();
      calls_.progress(counts_);
    }
  }

 private:
  struct Line {
    std::unique_ptr<TextRun> run;  // while its texts are under way
    TextResult result;
    std::string known;  // the result, from a run before
  };

  void read_ahead() {
    while (!at_end_ && std::ssize(lines_) < options_.lines_ahead && texts_ < options_.texts_ahead) {
      std::optional<OfflinePrompt> prompt = calls_.next();
      if (!prompt.has_value()) {
        at_end_ = true;
        return;
      }
      lines_.push_back({});
      if (!prompt->known.empty()) {
        lines_.back().known = std::move(prompt->known);
      } else if (prompt->request.has_value()) {
        submit(*prompt);
      } else {
        refuse(std::move(prompt->problem));
      }
    }
  }

  void submit(const OfflinePrompt& prompt) {
    try {
      auto run = std::make_unique<TextRun>(model_, *prompt.request);
      const RequestId id = engine_.submit(run->take_request());
      line_of_[id] = first_ + std::ssize(lines_) - 1;
      texts_ += run->under_way();
      lines_.back().run = std::move(run);
    } catch (const InputError& error) {
      refuse(fmt::format("{}: {}", prompt.place, error.what()));
    }
  }

  void refuse(std::string why) {
    lines_.back().result.message = std::move(why);
    at_end_ = at_end_ || options_.bad_lines == BadLines::kStop;
  }

  void take(Event& event) {
    const auto found = line_of_.find(event.request);
    Line& line = lines_[static_cast<std::size_t>(found->second - first_)];
    TextUpdate update = line.run->push(event, engine_);
    if (event.token.has_value()) ++counts_.new_tokens;
    const bool ended = update.finish != FinishReason::kNone;
    add_update(std::move(update), *line.run, line.result);
    if (!ended) return;
    --texts_;
    if (line.run->under_way() > 0) return;
    counts_.prompt_tokens += line.result.prompt_tokens;
    line.run.reset();
    ended_.push_back(found->second);
    line_of_.erase(found);
  }

  void write_finished() {
    for (; !lines_.empty() && !lines_.front().run; lines_.pop_front(), ++first_) write(lines_.front());
    for (const std::int64_t line : ended_) {
      if (line < first_ || !calls_.ended_early) continue;
      calls_.ended_early(line, lines_[static_cast<std::size_t>(line - first_)].result);
    }
    ended_.clear();
  }

  void write(const Line& line) {
    const TextResult& result = line.result;
    const bool bad = !result.message.empty();
    if (bad && options_.bad_lines == BadLines::kStop) reject_input("{}", result.message);
    ++counts_.lines;
    if (!line.known.empty()) return calls_.write_known(line.known);
    calls_.write(first_, result);
    counts_.bad_lines += bad ? 1 : 0;
    counts_.failed += std::ranges::count(result.choices, FinishReason::kFailed, &TextAnswer::finish);
    counts_.capped += std::ranges::any_of(result.choices, [](const TextAnswer& text) { return text.usage.capped; });
  }

  Engine& engine_;
  const TextModel& model_;
  OfflineOptions options_;
  const OfflineCalls& calls_;
  std::deque<Line> lines_;  // read and not written
  std::int64_t first_;      // the number of the first of them
  std::unordered_map<RequestId, std::int64_t> line_of_;
  std::vector<std::int64_t> ended_;  // lines whose texts have ended since the last writing
  std::int64_t texts_ = 0;           // with the engine
  bool at_end_ = false;
  OfflineCounts counts_;
};

}  // namespace

OfflineCounts generate_offline(Engine& engine, const TextModel& model, const OfflineOptions& options,
                               const OfflineCalls& calls) {
  return Generation(engine, model, options, calls).run();
}

}  // namespace kvloom
