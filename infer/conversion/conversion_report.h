// What a conversion tells its user: what became what, what stayed over, and what the model costs before and after.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "core/convert/plan_models.h"

namespace kvloom {

struct ConversionRate {
  std::uint64_t bytes;  // of tensors, written
  double seconds;
};

struct ConversionReport {
  nlohmann::ordered_json content;
  bool fits = true;  // nothing is missing, nothing unclaimed

  // Loss of the model before and after on the validation part of a token file, over at most `limit` sequences. Both are
  // computed in f32.
  void add_perplexity(const ModelSource& source, PlannedConversion& conversion, const std::string& data,
                      std::int64_t limit);
  void add_rate(const ConversionRate& rate);
};

ConversionReport describe_conversion(const ModelSource& source, const TargetModel& target,
                                     const proto::ConversionPlan& plan);

}  // namespace kvloom
