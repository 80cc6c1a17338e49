#include <google/protobuf/text_format.h>

#include "core/convert/plan.h"
#include "core/message_text.h"

namespace kvloom {

proto::ConversionPlan parse_plan(const std::string& text, const std::string& where) {
  proto::ConversionPlan plan;
  parse_message_text(where, text, plan);
  return plan;
}

std::string to_text(const proto::ConversionPlan& plan) {
  std::string text;
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseShortRepeatedPrimitives(true);
  printer.PrintToString(plan, &text);
  return text;
}

}  // namespace kvloom
