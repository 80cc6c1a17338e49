// The ways in which `meet` (rendezvous.h) brings ranks together.
#pragma once

#include <string>
#include <vector>

#include "parallel/rendezvous.h"

namespace kvloom {

std::string gather_at_socket(const MeetingPlace& place, const std::string& bytes);  // rank 0
std::string come_to_socket(const MeetingPlace& place);                              // the others
std::string meet_at_file(const MeetingPlace& place, const std::string& bytes);

// "rendezvous at head:29500: rank 3 of 4 has not come within 300 s" and its like, for all ways.
std::string not_all_came(const std::string& where, const std::vector<int>& missing, const MeetingPlace& place);
std::string sizes_differ(const std::string& where, int rank, int says, int world_size);

}  // namespace kvloom
