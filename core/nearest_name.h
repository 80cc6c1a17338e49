// What a mistyped name was meant to be.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace kvloom {

// The candidate that takes the fewest changes of single letters (one put in, taken out, exchanged, or two neighbours
// swapped); empty where all take too many for a slip: more than a third of the letters, or more than three.
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);

// "; did you mean 'train'?", or nothing.
std::string did_you_mean(std::string_view name, std::span<const std::string> candidates);

}  // namespace kvloom
