// GoogleTest's main with a flag more: --target=<name> keeps vectorised kernels to one instruction set.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdio>
#include <string_view>

namespace {

bool keep_to(std::string_view name) {
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (name != hwy::TargetName(target)) continue;
    hwy::SetSupportedTargetsForTest(target);
    return true;
  }
  std::fprintf(stderr, "--target: this processor or this build knows no '%s'\n", name.data());
  return false;
}

}  // namespace

int main(int count, char** arguments) {
  ::testing::InitGoogleTest(&count, arguments);
  for (int i = 1; i < count; ++i) {
    constexpr std::string_view kFlag = "--target=";
    const std::string_view argument = arguments[i];
    if (argument.starts_with(kFlag) && !keep_to(argument.substr(kFlag.size()))) return 2;
  }
  return RUN_ALL_TESTS();
}
