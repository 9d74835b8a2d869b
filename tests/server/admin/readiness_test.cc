#include "server/admin/readiness.h"

#include <gtest/gtest.h>

namespace shoal {
namespace {

TEST(Readiness, GoesFromStartToReadyToDrainAndNeverBack) {
  Readiness readiness;
  EXPECT_EQ(readiness.snapshot().status(), "starting");
  readiness.SetProgress("loading weights", 0.999);
  EXPECT_EQ(readiness.snapshot().phase, "loading weights");
  EXPECT_EQ(readiness.snapshot().percent, 99);
  readiness.SetReady();
  readiness.SetProgress("late news", 0.5);
  EXPECT_TRUE(readiness.snapshot().ready());
  EXPECT_EQ(readiness.snapshot().percent, 100);
  readiness.SetDraining();
  readiness.SetReady();
  EXPECT_FALSE(readiness.snapshot().ready());
  EXPECT_TRUE(readiness.snapshot().started());
}

TEST(Readiness, KeepsPercentInRange) {
  Readiness readiness;
  readiness.SetProgress("x", 7);
  EXPECT_EQ(readiness.snapshot().percent, 100);
  readiness.SetProgress("x", -1);
  EXPECT_EQ(readiness.snapshot().percent, 0);
}

}  // namespace
}  // namespace shoal
