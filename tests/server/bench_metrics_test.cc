#include "server/bench_metrics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/model/roofline.h"

namespace shoal {
namespace {

Clock::time_point At(double milliseconds) {
  return Clock::time_point() + std::chrono::duration_cast<Clock::duration>(
                                   std::chrono::duration<double, std::milli>(milliseconds));
}

/// A request of 10 prompt tokens whose tokens come at these times.
RequestTrace Trace(double sent, double first_scheduled, std::vector<double> tokens) {
  RequestTrace trace = {.num_input_tokens = 10,
                        .sent = At(sent),
                        .first_scheduled = At(first_scheduled),
                        .completed = true};
  for (double token : tokens) trace.tokens.push_back(At(token));
  return trace;
}

TEST(Distribution, InterpolatesBetweenRanks) {
  const Distribution values = Distribution::Of({4, 1, 3, 2});
  EXPECT_DOUBLE_EQ(values.mean, 2.5);
  EXPECT_DOUBLE_EQ(values.median, 2.5);
  EXPECT_DOUBLE_EQ(values.std, std::sqrt(1.25));
  EXPECT_DOUBLE_EQ(values.p99, 3.97);
  EXPECT_DOUBLE_EQ(Distribution::Of({7}).p99, 7);
  EXPECT_DOUBLE_EQ(Distribution::Of({7}).std, 0);
  EXPECT_DOUBLE_EQ(Distribution::Of({}).mean, 0);
}

TEST(BenchMetrics, CountsWhatCompleted) {
  RequestTrace failed = Trace(0, 1, {5});
  failed.completed = false;
  const RequestTrace traces[] = {Trace(0, 1, {100, 150, 250}), Trace(50, 100, {150, 250}), failed};
  const BenchMetrics metrics = BenchMetrics::Of(traces);
  EXPECT_EQ(metrics.completed, 2);
  EXPECT_EQ(metrics.failed, 1);
  EXPECT_EQ(metrics.total_input_tokens, 20);
  EXPECT_EQ(metrics.total_output_tokens, 5);
  EXPECT_DOUBLE_EQ(metrics.duration, 0.25);
  EXPECT_DOUBLE_EQ(metrics.request_throughput, 8);
  EXPECT_DOUBLE_EQ(metrics.output_throughput, 20);
  EXPECT_DOUBLE_EQ(metrics.total_token_throughput, 100);
  EXPECT_DOUBLE_EQ(metrics.ttft_ms.mean, 100);
  EXPECT_DOUBLE_EQ(metrics.e2el_ms.mean, 225);
  EXPECT_DOUBLE_EQ(metrics.tpot_ms.mean, (75 + 100) / 2.0);
  EXPECT_DOUBLE_EQ(metrics.itl_ms.median, 100);
}

TEST(BenchMetrics, OfNothingIsZero) {
  EXPECT_EQ(BenchMetrics::Of({}).completed, 0);
  EXPECT_EQ(BenchMetrics::Of({}).output_throughput, 0);
}

class DecodeStepsTest : public testing::Test {
 protected:
  DecodeSteps Of(std::vector<RequestTrace> traces) {
    return DecodeSteps::Of(traces, model_, DType::kBFloat16);
  }
  double Bytes(int64_t num_sequences, int64_t context) {
    return ForwardBytes(model_, DType::kBFloat16, DecodeWork(model_, num_sequences, context));
  }

  const ModelConfig model_ = PresetModelConfig("tiny").value();
};

TEST_F(DecodeStepsTest, AreThoseInWhichEverybodyGoesOn) {
  const DecodeSteps steps = Of({Trace(0, 1, {100, 150, 160}), Trace(0, 1, {100, 150})});
  EXPECT_EQ(steps.count, 2);
  EXPECT_DOUBLE_EQ(steps.seconds, 0.06);
  EXPECT_DOUBLE_EQ(steps.bytes, Bytes(2, 11 + 11) + Bytes(1, 12));
}

TEST_F(DecodeStepsTest, DoNotReadPromptsBesides) {
  // The second prompt is read while the first request gets its second and third token.
  const DecodeSteps steps = Of({Trace(0, 1, {100, 150, 200, 210}), Trace(0, 120, {200, 210})});
  EXPECT_EQ(steps.count, 1);
  EXPECT_DOUBLE_EQ(steps.seconds, 0.01);
  EXPECT_DOUBLE_EQ(steps.bytes, Bytes(2, 13 + 11));
}

TEST_F(DecodeStepsTest, DoNotSpanAPause) {
  // The first request is preempted while the second one runs.
  EXPECT_EQ(Of({Trace(0, 1, {100, 200}), Trace(0, 1, {100, 150})}).count, 1);
}

TEST_F(DecodeStepsTest, GiveTheFractionOfTheTimeThatReadingTakes) {
  const DecodeSteps steps = Of({Trace(0, 1, {100, 200})});
  ASSERT_EQ(steps.count, 1);
  EXPECT_DOUBLE_EQ(steps.FractionOfRoofline(10 * steps.bytes).value(), 1);
  EXPECT_DOUBLE_EQ(steps.FractionOfRoofline(20 * steps.bytes).value(), 0.5);
  EXPECT_FALSE(Of({Trace(0, 1, {100})}).FractionOfRoofline(1).has_value());
}

}  // namespace
}  // namespace shoal
