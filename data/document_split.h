// Which documents are held out for validation: pure arithmetic over their sizes, so that neither threads nor the order
// of work can change it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvloom {

// For each document of `sizes` bytes, how many of its first bytes are for training; what follows is for validation.
//
// Documents are taken whole, in an order drawn from the seed and their index, while they fit into `fraction` of all
// bytes. Where they make up less than half of that (a single document, or a few large ones), the tail of the next
// document makes up the rest. Thus validation has half to all of the fraction, and at most one document is in both
// parts. `fraction` is in [0, 0.5].
std::vector<std::uint64_t> split_documents(std::span<const std::uint64_t> sizes, double fraction, std::uint64_t seed);

// Which of `count` documents, of sizes that nobody knows yet, are held out: those for which draw_of lies below what
// this returns. That is `fraction` of them, rounded down, but at least one of several; of more than a million, so many
// on average. `fraction` is in [0, 0.5].
double held_out_below(std::uint64_t count, double fraction, std::uint64_t seed);
double draw_of(std::uint64_t document, std::uint64_t seed);  // in [0, 1)

}  // namespace kvloom
