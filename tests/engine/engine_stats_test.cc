#include "engine/engine_stats.h"

#include <gtest/gtest.h>

namespace shoal {
namespace {

using std::chrono_literals::operator""ms;
using std::chrono_literals::operator""s;

TEST(Histogram, CountsAValueThatEqualsABoundBelowIt) {
  Histogram histogram = Histogram::Exponential(1, 2, 3);
  EXPECT_EQ(histogram.bounds, (std::vector<double>{1, 2, 4}));
  for (const double value : {0.5, 1.0, 1.5, 4.0, 5.0}) histogram.Add(value);
  EXPECT_EQ(histogram.counts, (std::vector<int64_t>{2, 1, 1, 1}));
  EXPECT_EQ(histogram.sum, 12);
}

TEST(DrainRate, IsRightFromTheFirstMomentOn) {
  DrainRate rate;
  Clock::time_point now = Clock::now();
  rate.Resume(now);
  for (int64_t i = 1; i <= 100; ++i) {
    now += 100ms;
    EXPECT_NEAR(rate.Update(now, 15 * i), 150, 1e-6);
  }
}

TEST(DrainRate, DoesNotCountTimeWithoutWork) {
  DrainRate rate;
  Clock::time_point now = Clock::now();
  rate.Resume(now);
  rate.Update(now += 1s, 10);
  rate.Resume(now += 1000s);
  EXPECT_NEAR(rate.Update(now += 1s, 20), 10, 1e-6);
}

TEST(DrainRate, FallsWhileNothingEnds) {
  DrainRate rate;
  Clock::time_point now = Clock::now();
  rate.Resume(now);
  EXPECT_NEAR(rate.Update(now += 1s, 10), 10, 1e-6);
  EXPECT_LT(rate.Update(now += 5s, 10), 2);
  EXPECT_LT(rate.Update(now += 20s, 10), 0.1);
}

}  // namespace
}  // namespace shoal
