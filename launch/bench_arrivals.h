// How times under arrivals at random moments are printed, of an engine and of a server alike.
#pragma once

#include <nlohmann/json.hpp>
#include <ostream>
#include <string>

#include "infer/load/arrivals.h"

namespace kvloom {

nlohmann::ordered_json json_of(const ArrivalResult& result, const ArrivalLoad& load);

void print_arrivals(std::ostream& out, const std::string& name, const ArrivalResult& result, const ArrivalLoad& load);

}  // namespace kvloom
