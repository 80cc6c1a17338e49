// How fast tokenizers encode on one core, bytes a second, in pieces of 64 KiB as `kvloom tokenize` hands them out.
// tokenizer_bench TEXT TOKENIZER...: the text is repeated up to 32 MiB; a tokenizer is a tokenizer.json or its folder.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "infer/tokenizer.h"

namespace kvloom {
namespace {

constexpr std::size_t kText = std::size_t{32} << 20;
constexpr std::size_t kPiece = 65536;

std::string repeated(const std::string& text) {
  std::string all;
  all.reserve(kText + text.size());
  while (all.size() < kText) all += text;
  return all;
}

void encode(benchmark::State& state, const std::string& text, const Tokenizer& tokenizer) {
  std::vector<std::int32_t> ids;
  std::size_t tokens = 0;
  for (auto _ : state) {
    tokens = 0;
    for (std::size_t at = 0; at < text.size();) {
      std::size_t end = std::min(at + kPiece, text.size());
      if (end < text.size()) end = text.rfind('\n', end - 1) + 1;
      ids.clear();
      tokenizer.encode(std::string_view(text).substr(at, end - at), ids);
      tokens += ids.size();
      at = end;
    }
    benchmark::DoNotOptimize(tokens);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(text.size()) * state.iterations());
  state.counters["bytes_per_token"] = static_cast<double>(text.size()) / static_cast<double>(tokens);
}

}  // namespace
}  // namespace kvloom

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc < 3) {
    std::fprintf(stderr, "usage: tokenizer_bench TEXT TOKENIZER...\n");
    return 2;
  }
  try {
    const std::string text = kvloom::repeated(kvloom::read_file(argv[1], std::uint64_t{1} << 30));
    std::vector<std::unique_ptr<kvloom::Tokenizer>> tokenizers;
    for (int i = 2; i < argc; ++i) {
      tokenizers.push_back(kvloom::load_huggingface(argv[i]));
      benchmark::RegisterBenchmark(argv[i], [&text, tokenizer = tokenizers.back().get()](benchmark::State& state) {
        kvloom::encode(state, text, *tokenizer);
      })->Unit(benchmark::kMillisecond);
    }
    benchmark::RunSpecifiedBenchmarks();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
