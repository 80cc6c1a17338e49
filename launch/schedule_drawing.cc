#include "launch/schedule_drawing.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string_view>
#include <vector>

namespace kvloom {
namespace {

constexpr std::string_view kMarks = "0123456789abcdefghijklmnopqrstuvwxyz";

std::string line_of(const std::vector<ScheduleTimes::Span>& spans, Action action, double makespan, int columns) {
  std::string line(static_cast<std::size_t>(columns), '.');
  if (makespan <= 0) return line;
  const double width = makespan / columns;
  std::size_t next = 0;
  for (int column = 0; column < columns; ++column) {
    const double begin = column * width;
    double longest = 0;
    while (next < spans.size() && spans[next].end <= begin) ++next;
    for (std::size_t i = next; i < spans.size() && spans[i].begin < begin + width; ++i) {
      const double inside = std::min(spans[i].end, begin + width) - std::max(spans[i].begin, begin);
      if (inside <= longest) continue;
      longest = inside;
      const auto mark = kMarks[static_cast<std::size_t>(spans[i].micro_batch) % kMarks.size()];
      line[static_cast<std::size_t>(column)] = spans[i].action == action ? mark : '.';
    }
    if (longest < width / 2) line[static_cast<std::size_t>(column)] = '.';
  }
  return line;
}

constexpr double kSvgWidth = 1600;
constexpr double kSvgLeft = 64;
constexpr double kSvgRow = 36;

// Hues far apart for neighbours (the golden angle); backward darker.
std::string color_of(const ScheduleTimes::Span& span) {
  const int hue = static_cast<int>(137.508 * span.micro_batch) % 360;
  return fmt::format("hsl({},60%,{}%)", hue, span.action == Action::kForward ? 74 : 48);
}

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

std::string svg_gantt(const ChunkChain& chain, const ScheduleTimes& times) {
  std::string svg;
  const auto out = std::back_inserter(svg);
  const double height = kSvgRow * static_cast<double>(times.spans.size()) + 24;
  const double scale = times.makespan > 0 ? (kSvgWidth - kSvgLeft - 8) / times.makespan : 0;
  fmt::format_to(out,
                 "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:g} {:g}\" font-family=\"sans-serif\" "
                 "font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
                 kSvgWidth, height);
  for (std::size_t rank = 0; rank < times.spans.size(); ++rank) {
    const double top = kSvgRow * static_cast<double>(rank) + 4;
    fmt::format_to(out, "<text x=\"4\" y=\"{:g}\">rank {}</text>\n", top + kSvgRow / 2, rank);
    for (const ScheduleTimes::Span& span : times.spans[rank]) {
      const double left = kSvgLeft + span.begin * scale;
      const double width = (span.end - span.begin) * scale;
      fmt::format_to(out,
                     "<rect x=\"{:.2f}\" y=\"{:g}\" width=\"{:.2f}\" height=\"{:g}\" fill=\"{}\" stroke=\"white\" "
                     "stroke-width=\"0.4\"><title>{}</title></rect>\n",
                     left, top, width, kSvgRow - 6, color_of(span),
                     describe(chain, {span.action, span.micro_batch, span.chunk}));
      if (width < 14) continue;
      fmt::format_to(out, "<text x=\"{:.2f}\" y=\"{:g}\" text-anchor=\"middle\">{}</text>\n", left + width / 2,
                     top + kSvgRow / 2, span.micro_batch);
    }
  }
  fmt::format_to(out, "<text x=\"{:g}\" y=\"{:g}\">{:.4g} s; idle {:.1f}%; light: forward, dark: backward</text>\n",
                 kSvgLeft, height - 6, times.makespan, 100 * times.idle_share());
  svg += "</svg>\n";
  return svg;
}

}  // namespace kvloom
