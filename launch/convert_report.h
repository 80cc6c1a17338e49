// How `kvloom convert` prints what it says of a conversion.
#pragma once

#include <cstdint>

#include "infer/conversion/conversion_report.h"

namespace kvloom {

enum class ReportForm : std::uint8_t {
  kSummary,     // every left-over tensor by reason, the files, the figures
  kEverything,  // also each tensor
  kJson,
};

void print_report(const ConversionReport& report, ReportForm form);

}  // namespace kvloom
