#include "parallel/schedule_drawing.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace kvloom {
namespace {

constexpr std::string_view kMarks = "0123456789abcdefghijklmnopqrstuvwxyz";

// Who fills a column, and for how long.
struct Share {
  Action action;
  int micro_batch;
  double time;
};

// What fills most of the column: nothing, or an action, and of that the micro-batch that does most of it.
std::optional<Share> filler_of(const std::vector<Share>& shares, double width) {
  std::array<double, 2> by_action{};
  std::array<std::optional<Share>, 2> largest;
  for (const Share& share : shares) {
    const std::size_t action = share.action == Action::kForward ? 0 : 1;
    by_action[action] += share.time;
    if (!largest[action] || share.time > largest[action]->time) largest[action] = share;
  }
  const std::size_t most = by_action[0] >= by_action[1] ? 0 : 1;
  const double idle = width - by_action[0] - by_action[1];
  return by_action[most] >= idle ? largest[most] : std::nullopt;
}

std::vector<Share> shares_in(const std::vector<ScheduleTimes::Span>& spans, std::size_t first, double begin,
                             double end) {
  std::vector<Share> shares;
  for (std::size_t i = first; i < spans.size() && spans[i].begin < end; ++i) {
    const double inside = std::min(spans[i].end, end) - std::max(spans[i].begin, begin);
    if (inside <= 0) continue;
    const auto same = std::ranges::find_if(shares, [&](const Share& share) {
      return share.action == spans[i].action && share.micro_batch == spans[i].micro_batch;
    });
    if (same == shares.end()) {
      shares.push_back({spans[i].action, spans[i].micro_batch, inside});
    } else {
      same->time += inside;
    }
  }
  return shares;
}

std::string line_of(const std::vector<ScheduleTimes::Span>& spans, Action action, double makespan, int columns) {
  std::string line(static_cast<std::size_t>(columns), '.');
  if (makespan <= 0) return line;
  const double width = makespan / columns;
  std::size_t next = 0;
  for (int column = 0; column < columns; ++column) {
    const double begin = column * width;
    while (next < spans.size() && spans[next].end <= begin) ++next;
    const auto filler = filler_of(shares_in(spans, next, begin, begin + width), width);
    if (!filler || filler->action != action) continue;
    line[static_cast<std::size_t>(column)] = kMarks[static_cast<std::size_t>(filler->micro_batch) % kMarks.size()];
  }
  return line;
}

constexpr double kSvgWidth = 1600;
constexpr double kSvgLeft = 64;
constexpr double kSvgRow = 36;
constexpr double kSvgBar = kSvgRow - 12;

// Hues far apart for neighbours (the golden angle); backward darker. As #rrggbb: not every program knows hsl().
std::string color_of(const ScheduleTimes::Span& span) {
  const double hue = std::fmod(137.508 * span.micro_batch, 360.0);
  const double lightness = span.action == Action::kForward ? 0.74 : 0.48;
  const double chroma = (1 - std::fabs(2 * lightness - 1)) * 0.6;
  const auto channel = [&](double shift) {
    // How far the hue lies from this channel's own, in sixths of the circle.
    const double away = std::fabs(std::remainder((hue - shift) / 60, 6.0));
    const double part = std::clamp(2 - away, 0.0, 1.0);
    return static_cast<int>(std::lround(255 * (lightness - chroma / 2 + chroma * part)));
  };
  return fmt::format("#{:02x}{:02x}{:02x}", channel(0), channel(120), channel(240));
}

// A round number of seconds between ticks, about ten of them.
double tick_of(double makespan) {
  const double rough = makespan / 10;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double step : {1.0, 2.0, 5.0}) {
    if (rough <= step * power) return step * power;
  }
  return 10 * power;
}

// The drawing's measures and what it consists of so far.
class Drawing {
 public:
  Drawing(const ChunkChain& chain, const ScheduleTimes& times)
      : chain_(chain), times_(times), scale_(times.makespan > 0 ? (kSvgWidth - kSvgLeft - 8) / times.makespan : 0) {}

  std::string draw() {
    const double height = top(times_.spans.size()) + 40;
    add("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:g} {:g}\" font-family=\"sans-serif\" "
        "font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        kSvgWidth, height);
    add_ticks(height - 36);
    for (std::size_t rank = 0; rank < times_.spans.size(); ++rank) add_rank(rank);
    for (const Edge& edge : chain_.edges) add_messages(edge);
    add("<text x=\"{:g}\" y=\"{:g}\">{:.4g} s; idle {:.1f}%; light: forward, dark: backward; lines: hidden states "
        "(grey) and K/V (red) between ranks</text>\n</svg>\n",
        kSvgLeft, height - 6, times_.makespan, 100 * times_.idle_share());
    return std::move(svg_);
  }

 private:
  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(svg_), format, std::forward<Args>(args)...);
  }

  static double top(std::size_t rank) { return kSvgRow * static_cast<double>(rank) + 4; }
  double x_of(double time) const { return kSvgLeft + time * scale_; }

  void add_ticks(double bottom) {
    if (times_.makespan <= 0) return;
    const double tick = tick_of(times_.makespan);
    for (int i = 0; i * tick <= times_.makespan; ++i) {
      const double x = x_of(i * tick);
      add("<line x1=\"{:.2f}\" y1=\"4\" x2=\"{:.2f}\" y2=\"{:g}\" stroke=\"#dddddd\"/>\n", x, x, bottom);
      add("<text x=\"{:.2f}\" y=\"{:g}\" text-anchor=\"middle\" fill=\"#555555\">{:.4g} s</text>\n", x, bottom + 12,
          i * tick);
    }
  }

  void add_rank(std::size_t rank) {
    add("<text x=\"4\" y=\"{:g}\">rank {}</text>\n", top(rank) + kSvgRow / 2, rank);
    for (const ScheduleTimes::Span& span : times_.spans[rank]) {
      const double left = x_of(span.begin);
      const double width = (span.end - span.begin) * scale_;
      add("<rect x=\"{:.2f}\" y=\"{:g}\" width=\"{:.2f}\" height=\"{:g}\" fill=\"{}\" stroke=\"#ffffff\" "
          "stroke-width=\"0.4\"><title>{}</title></rect>\n",
          left, top(rank), width, kSvgBar, color_of(span),
          describe(chain_, {span.action, span.micro_batch, span.chunk}));
      if (width < 14) continue;
      add("<text x=\"{:.2f}\" y=\"{:g}\" text-anchor=\"middle\">{}</text>\n", left + width / 2, top(rank) + kSvgRow / 2,
          span.micro_batch);
    }
  }

  // From the end of what makes it to the start of the first that uses it, for each micro-batch.
  void add_messages(const Edge& edge) {
    if (edge.readers.empty()) return;
    const int reader = edge.readers.front();
    for (const ScheduleTimes::Span& made : times_.spans[static_cast<std::size_t>(edge.from_rank)]) {
      if (made.chunk != edge.from_chunk || made.action != Action::kForward) continue;
      for (const ScheduleTimes::Span& used : times_.spans[static_cast<std::size_t>(edge.to_rank)]) {
        const bool is_reader = used.chunk == reader && used.action == Action::kForward;
        if (!is_reader || used.micro_batch != made.micro_batch) continue;
        const bool down = edge.to_rank > edge.from_rank;
        const double from = top(static_cast<std::size_t>(edge.from_rank)) + (down ? kSvgBar : 0);
        const double to = top(static_cast<std::size_t>(edge.to_rank)) + (down ? 0 : kSvgBar);
        add("<line x1=\"{:.2f}\" y1=\"{:g}\" x2=\"{:.2f}\" y2=\"{:g}\" stroke=\"{}\" stroke-width=\"0.6\"><title>{}, "
            "micro-batch {}</title></line>\n",
            x_of(made.end), from, x_of(used.begin), to, edge.kind == EdgeKind::kHidden ? "#888888" : "#cc3333",
            describe(edge), made.micro_batch);
      }
    }
  }

  const ChunkChain& chain_;
  const ScheduleTimes& times_;
  double scale_;
  std::string svg_;
};

}  // namespace

std::string text_gantt(const ScheduleTimes& times, int columns) {
  std::string text;
  for (std::size_t rank = 0; rank < times.spans.size(); ++rank) {
    text += fmt::format("rank {:>3}  forward  |{}|\n", rank,
                        line_of(times.spans[rank], Action::kForward, times.makespan, columns));
    text += fmt::format("          backward |{}|\n",
                        line_of(times.spans[rank], Action::kBackward, times.makespan, columns));
  }
  return text;
}

std::string svg_gantt(const ChunkChain& chain, const ScheduleTimes& times) { return Drawing(chain, times).draw(); }

}  // namespace kvloom
