#include "core/nearest_name.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvloom {
namespace {

const std::vector<std::string> kVerbs = {"tokenize", "train",   "eval",  "generate",
                                         "convert",  "inspect", "kvmap", "plan"};

TEST(NearestName, IsTheOneOfFewestChanges) {
  EXPECT_EQ(nearest_name("tran", kVerbs), "train");
  EXPECT_EQ(nearest_name("trian", kVerbs), "train") << "two neighbours swapped are one change";
  EXPECT_EQ(nearest_name("genrate", kVerbs), "generate");
  EXPECT_EQ(nearest_name("tokenise", kVerbs), "tokenize");
  EXPECT_EQ(nearest_name("plna", kVerbs), "plan");
  EXPECT_EQ(nearest_name("train", kVerbs), "train");
}

TEST(NearestName, IsNoneWhereTooMuchWouldChange) {
  EXPECT_EQ(nearest_name("serve", kVerbs), "");
  EXPECT_EQ(nearest_name("x", kVerbs), "");
  EXPECT_EQ(nearest_name("", kVerbs), "");
  EXPECT_EQ(nearest_name("train", {}), "");
  EXPECT_EQ(did_you_mean("xyz", kVerbs), "");
  EXPECT_EQ(did_you_mean("tran", kVerbs), "; did you mean 'train'?");
}

}  // namespace
}  // namespace kvloom
