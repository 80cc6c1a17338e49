#include "train/replica_check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/checksum.h"
#include "kernels/error.h"

namespace kvloom {
namespace {

struct Fingerprint {
  std::string name;
  std::string place;  // of the part held here in the whole parameter: "8,0"
  std::uint64_t value;
};

std::vector<Fingerprint> fingerprints(const Model& model, std::uint64_t step) {
  std::vector<Fingerprint> prints = {{"step", "", step}};
  for (const Parameter& parameter : model.layout().all()) {
    const Tensor values = model.master().view(parameter.offset, parameter.shape);
    const std::vector<float> on_host = values.values<float>();
    prints.push_back({parameter.name, fmt::format("{}", fmt::join(parameter.global_offset, ",")),
                      checksum(std::as_bytes(std::span(on_host)))});
  }
  return prints;
}

[[noreturn]] void report(const std::string& one, const std::string& other, std::vector<std::string> different,
                         std::size_t compared) {
  const std::size_t count = different.size();
  if (count > 4) different.resize(4);
  fail("replicas: {} and {} differ in {} of {} values, first {}", one, other, count, compared,
       fmt::join(different, ", "));
}

// Every data rank brings prints of the same names.
void compare_data_ranks(MeshRanks& ranks, const std::vector<Fingerprint>& prints) {
  Communicator& group = ranks.data();
  if (group.size() == 1) return;
  std::vector<std::int64_t> own;
  for (const Fingerprint& print : prints) own.push_back(static_cast<std::int64_t>(print.value));
  std::vector<std::int64_t> all(own.size() * static_cast<std::size_t>(group.size()));
  group.all_gather(std::span<const std::int64_t>(own), std::span(all));
  const auto name = [&](int data) {
    MeshPlace place = ranks.place();
    place.data = data;
    return fmt::format("rank {} (data rank {})", ranks.mesh().rank_of(place), data);
  };
  for (int rank = 1; rank < group.size(); ++rank) {
    std::vector<std::string> different;
    for (std::size_t i = 0; i < own.size(); ++i) {
      if (all[i] != all[static_cast<std::size_t>(rank) * own.size() + i]) different.push_back(prints[i].name);
    }
    if (!different.empty()) report(name(0), name(rank), std::move(different), own.size());
  }
}

// Parts of the same name and place are copies, whichever ranks hold them.
std::string to_lines(const std::vector<Fingerprint>& prints) {
  std::string text;
  for (const Fingerprint& print : prints) text += fmt::format("{}@{} {}\n", print.name, print.place, print.value);
  return text;
}

std::map<std::string, std::uint64_t> from_lines(const std::string& text) {
  std::map<std::string, std::uint64_t> values;
  std::istringstream lines(text);
  std::uint64_t value = 0;
  for (std::string key; lines >> key >> value;) values[key] = value;
  return values;
}

void compare_copies(MeshRanks& ranks, const std::vector<Fingerprint>& prints) {
  Communicator& group = ranks.model();
  if (group.size() == 1) return;
  std::vector<std::map<std::string, std::uint64_t>> held;
  for (const std::string& lines : all_gather_bytes(group, to_lines(prints))) held.push_back(from_lines(lines));
  const auto name = [&](std::size_t rank) {
    const int tensor = ranks.mesh().tensor;
    const MeshPlace place{ranks.place().data, static_cast<int>(rank) / tensor, static_cast<int>(rank) % tensor};
    return fmt::format("rank {} (pipeline rank {}, tensor rank {})", ranks.mesh().rank_of(place), place.pipeline,
                       place.tensor);
  };
  for (std::size_t rank = 1; rank < held.size(); ++rank) {
    for (std::size_t before = 0; before < rank; ++before) {
      std::size_t shared = 0;
      std::vector<std::string> different;
      for (const auto& [key, value] : held[rank]) {
        const auto found = held[before].find(key);
        if (found == held[before].end()) continue;
        ++shared;
        if (found->second != value) different.push_back(key.substr(0, key.find('@')));
      }
      if (!different.empty()) report(name(before), name(rank), std::move(different), shared);
    }
  }
}

}  // namespace

void check_replicas(MeshRanks& ranks, const Model& model, std::uint64_t step) {
  const std::vector<Fingerprint> prints = fingerprints(model, step);
  compare_data_ranks(ranks, prints);
  compare_copies(ranks, prints);
}

}  // namespace kvloom
