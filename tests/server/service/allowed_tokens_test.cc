#include "server/service/allowed_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace shoal {
namespace {

TEST(AllowedTokens, SetsTheBitsOfItsTokensAndClearsTheRest) {
  AllowedTokens mask(std::vector<int32_t>{31, 33, 0, 33});
  for (const std::vector<int32_t>& generated : {std::vector<int32_t>{}, {5, 6}}) {
    std::vector<int32_t> words(4, -1);
    EXPECT_TRUE(mask.Allow(generated, words));
    EXPECT_THAT(words, testing::ElementsAre(static_cast<int32_t>(0x80000001), 2, 0, 0));
  }
}

}  // namespace
}  // namespace shoal
