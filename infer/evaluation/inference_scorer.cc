#include <algorithm>

#include "core/forward_run.h"
#include "core/ops.h"
#include "infer/evaluation/scorer.h"

namespace kvloom {
namespace {

constexpr std::int64_t kPageSize = 32;

std::int64_t length_of(const ScoredText& text) { return std::ssize(text.tokens); }

std::int64_t longest_of(std::span<const ScoredText> texts) {
  std::int64_t longest = 0;
  for (const ScoredText& text : texts) longest = std::max(longest, length_of(text));
  return longest;
}

std::int64_t pages_of(const ScoredText& text) { return (length_of(text) + kPageSize - 1) / kPageSize; }

// A target, and the row of a step's logits that it is scored by.
struct AskedRow {
  std::int64_t row;
  std::int32_t token;
  std::size_t index;  // of the target among all
};

// Whole texts through the forward executor, each in a slot and in pages of its own.
class TextRun {
 public:
  TextRun(const InferenceModel& model, KvFormat kv_format, std::span<const ScoredText> texts)
      : model_(model),
        texts_(texts),
        longest_(longest_of(texts)),
        pages_(model.config(), pages_for(model, kv_format, texts), model.allocator()),
        tables_(pages_.groups().size(), std::ssize(texts), (longest_ + kPageSize - 1) / kPageSize),
        forward_(
            model, pages_,
            {.guess = StartingGuess::kZeros, .settling = Settling::kForced, .context = longest_, .block = longest_}) {
    std::int32_t page = 0;
    std::size_t targets = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      for (std::int64_t index = 0; index < pages_of(texts[i]); ++index, ++page) {
        for (std::size_t group = 0; group < pages_.groups().size(); ++group) {
          tables_.set(static_cast<std::int32_t>(i), static_cast<std::int32_t>(group), static_cast<std::int32_t>(index),
                      page);
        }
      }
      targets += texts[i].targets.size();
    }
    scores_.resize(targets);
  }

  // As many passes of iterated segments as `passes` has, and no more than the longest text has positions.
  std::vector<TargetScore> in_passes(const Passes& passes) {
    const std::int64_t all = std::int64_t{passes.without_gradient} + passes.with_gradient;
    for (const Segment& segment : segments_of(model_.config().kv_map)) {
      const std::int64_t count = segment.iterated ? std::min(all, longest_) : 1;
      for (std::int64_t pass = 0; pass < count; ++pass) {
        forward_.run(rows_of(segment, pass == 0, pass + 1 == count), tables_);
      }
    }
    std::vector<AskedRow> asked;
    std::int64_t first_row = 0;
    std::size_t index = 0;
    for (const ScoredText& text : texts_) {
      const std::int64_t from = wanted_from(text);
      for (const Target& target : text.targets) {
        asked.push_back({first_row + target.position - from, target.token, index++});
      }
      first_row += length_of(text) - from;
    }
    std::ranges::stable_sort(asked, {}, &AskedRow::row);
    score(asked);
    return std::move(scores_);
  }

  std::vector<TargetScore> token_by_token() {
    for (std::int64_t position = 0; position < longest_; ++position) {
      StepRows rows;
      std::vector<AskedRow> asked;
      std::int64_t row = 0;
      std::size_t index = 0;
      for (std::size_t i = 0; i < texts_.size(); ++i) {
        const ScoredText& text = texts_[i];
        const std::size_t before = asked.size();
        for (const Target& target : text.targets) {
          if (target.position == position) asked.push_back({row, target.token, index});
          ++index;
        }
        const bool is_wanted = asked.size() > before;
        if (is_wanted) ++row;
        if (position >= length_of(text)) continue;
        rows.runs.push_back({.slot = static_cast<std::int32_t>(i),
                             .kind = RowKind::kDecode,
                             .layers = {0, static_cast<int>(model_.config().layers)},
                             .first_position = position,
                             .rows = 1,
                             .wanted_from = is_wanted ? position : position + 1});
        rows.tokens.push_back(text.tokens[static_cast<std::size_t>(position)]);
      }
      forward_.run(rows, tables_);
      score(asked);
    }
    return std::move(scores_);
  }

 private:
  static KvPagesOptions pages_for(const InferenceModel& model, KvFormat format, std::span<const ScoredText> texts) {
    std::int64_t pages = 0;
    for (const ScoredText& text : texts) pages += pages_of(text);
    const ModelConfig& config = model.config();
    return {.format = format,
            .page_size = kPageSize,
            .kv_heads = config.kv_heads,
            .pages = std::vector<std::int64_t>(reach_groups(config.kv_map).size(), pages),
            .swap_places = {}};
  }

  static std::int64_t wanted_from(const ScoredText& text) {
    std::int64_t first = length_of(text);
    for (const Target& target : text.targets) first = std::min(first, target.position);
    return first;
  }

  // A pass of all texts through a segment. Rows leave it after its last pass alone; before, what it was given stays.
  StepRows rows_of(const Segment& segment, bool is_first, bool is_last) const {
    StepRows rows;
    for (std::size_t i = 0; i < texts_.size(); ++i) {
      const auto length = static_cast<std::int32_t>(length_of(texts_[i]));
      rows.runs.push_back({.slot = static_cast<std::int32_t>(i),
                           .kind = segment.iterated ? RowKind::kWavefront : RowKind::kChunk,
                           .layers = {segment.first, segment.last + 1},
                           .rows = length,
                           .wanted_from = wanted_from(texts_[i]),
                           .entering = is_first ? length : 0,
                           .forced = is_last ? length : 0});
      if (segment.first == 0) rows.tokens.insert(rows.tokens.end(), texts_[i].tokens.begin(), texts_[i].tokens.end());
    }
    return rows;
  }

  // From the last step's logits; `asked` ascends by row.
  void score(std::span<const AskedRow> asked) {
    if (asked.empty()) return;
    auto next = asked.begin();
    forward_.logits([&](std::int64_t first, const Tensor& logits) {
      const auto begin = next;
      while (next != asked.end() && next->row < first + logits.size(0)) ++next;
      if (begin != next) score_rows({begin, next}, first, logits);
    });
  }

  void score_rows(std::span<const AskedRow> asked, std::int64_t first, const Tensor& logits) {
    std::vector<std::int32_t> tokens;
    bool is_each_row = std::ssize(asked) == logits.size(0);
    for (std::size_t i = 0; i < asked.size(); ++i) {
      tokens.push_back(asked[i].token);
      is_each_row = is_each_row && asked[i].row == first + static_cast<std::int64_t>(i);
    }
    const Tensor rows = is_each_row ? logits : gathered(asked, first, logits);
    const std::vector<TargetScore> found = target_scores(
        rows, Tensor::of<std::int32_t>(model_.allocator(), {std::ssize(tokens)}, tokens), model_.allocator());
    for (std::size_t i = 0; i < asked.size(); ++i) scores_[asked[i].index] = found[i];
  }

  Tensor gathered(std::span<const AskedRow> asked, std::int64_t first, const Tensor& logits) const {
    Tensor rows = Tensor::empty(model_.allocator(), {std::ssize(asked), logits.size(1)}, DType::kF32);
    for (std::size_t i = 0; i < asked.size(); ++i) {
      copy_rows(logits, asked[i].row - first, rows, static_cast<std::int64_t>(i), 1);
    }
    return rows;
  }

  const InferenceModel& model_;
  std::span<const ScoredText> texts_;
  std::int64_t longest_;
  KvPages pages_;
  PageTables tables_;
  ForwardRun forward_;
  std::vector<TargetScore> scores_;  // by target, text by text
};

class InferenceScorer final : public Scorer {
 public:
  InferenceScorer(const InferenceModel& model, KvFormat kv_format) : model_(model), kv_format_(kv_format) {}

  const ModelConfig& config() const override { return model_.config(); }

  std::string format() const override {
    std::string text(name_of(model_.dtype()));
    if (model_.format().weights == WeightFormat::kInt8) text += ", weights int8";
    if (kv_format_ != kv_format_of(model_.dtype())) text += fmt::format(", K/V {}", name_of(kv_format_));
    return text;
  }

  std::vector<TargetScore> score(std::span<const ScoredText> texts, const ScoringOptions& options) const override {
    TextRun run(model_, kv_format_, texts);
    return options.form == ScoringForm::kSequential ? run.token_by_token() : run.in_passes(options.passes);
  }

 private:
  const InferenceModel& model_;
  KvFormat kv_format_;
};

}  // namespace

std::unique_ptr<Scorer> make_scorer(const InferenceModel& model, KvFormat kv_format) {
  return std::make_unique<InferenceScorer>(model, kv_format);
}

}  // namespace kvloom
