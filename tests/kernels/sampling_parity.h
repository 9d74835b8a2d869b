// Sampling against sorted lists in double precision, for any backend.
#pragma once

#include <algorithm>
#include <map>
#include <numeric>

#include "tests/kernels/ops_fixture.h"

namespace shoal {

class SamplingParity : public OpsParity {
 protected:
  std::vector<SampledRow> Sample(const std::vector<float>& logits, int64_t vocab,
                                 const std::vector<SamplingRow>& rows) {
    const auto num_rows = static_cast<int64_t>(rows.size());
    const Tensor x = Upload(logits, DType::kFloat32, {num_rows, vocab});
    const Tensor in = Zeros(DType::kByte, {num_rows * static_cast<int64_t>(sizeof(SamplingRow))});
    const Tensor out = Zeros(DType::kByte, {num_rows * static_cast<int64_t>(sizeof(SampledRow))});
    device().CopyFromHost(rows.data(), in);
    ops().Sample(x, in, out);
    return DownloadRaw<SampledRow>(out);
  }
  SampledRow SampleOne(const std::vector<float>& logits, const SamplingRow& row) {
    return Sample(logits, static_cast<int64_t>(logits.size()), {row})[0];
  }

  /// Ids by falling logit, ties by rising id.
  static std::vector<int> FallingOrder(const std::vector<float>& logits) {
    std::vector<int> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
    return order;
  }

  /// Probabilities after temperature, min_p, top_k and top_p, by definition.
  static std::vector<double> Filtered(const std::vector<float>& logits, const SamplingRow& row) {
    const double highest = *std::max_element(logits.begin(), logits.end());
    std::vector<double> p(logits.size());
    for (size_t i = 0; i < p.size(); ++i) {
      p[i] = std::exp((logits[i] - highest) / row.temperature);
      if (p[i] < row.min_p) p[i] = 0;
    }
    const std::vector<int> order = FallingOrder(logits);
    if (row.top_k > 0) {
      for (size_t i = row.top_k; i < order.size(); ++i) p[order[i]] = 0;
    }
    double total = std::accumulate(p.begin(), p.end(), 0.0), sum = 0;
    for (int id : order) {
      if (row.top_p < 1 && sum >= row.top_p * total) p[id] = 0;
      sum += p[id];
    }
    total = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& value : p) value /= total;
    return p;
  }

  /// Draws `count` tokens at consecutive positions and holds their counts against the filtered
  /// probabilities: the 99.99 % quantile of chi-square with v degrees of freedom is near
  /// v + 3.72 sqrt(2 v) + 9 (Wilson-Hilferty, rounded up).
  void ExpectDistribution(const std::vector<float>& logits, SamplingRow row,
                          int64_t count = 20000) {
    const auto vocab = static_cast<int64_t>(logits.size());
    const std::vector<double> p = Filtered(logits, row);
    std::vector<double> seen(vocab);
    constexpr int64_t kBatch = 500;
    std::vector<float> batch;
    for (int64_t i = 0; i < kBatch; ++i) batch.insert(batch.end(), logits.begin(), logits.end());
    for (int64_t done = 0; done < count; done += kBatch) {
      std::vector<SamplingRow> rows(kBatch, row);
      for (SamplingRow& each : rows) each.position = row.position++;
      for (const SampledRow& sampled : Sample(batch, vocab, rows)) {
        ASSERT_GE(sampled.token_id, 0);
        ASSERT_LT(sampled.token_id, vocab);
        ++seen[sampled.token_id];
      }
    }
    double chi_square = 0;
    int degrees = -1;
    for (int64_t id = 0; id < vocab; ++id) {
      const double expected = p[id] * static_cast<double>(count);
      if (p[id] == 0) {
        EXPECT_EQ(seen[id], 0) << "token " << id << " was dropped";
      } else {
        chi_square += (seen[id] - expected) * (seen[id] - expected) / expected;
        ++degrees;
      }
    }
    EXPECT_LT(chi_square, degrees + 3.72 * std::sqrt(2.0 * degrees) + 9);
  }
};

TEST_P(SamplingParity, GreedyTakesTheHighestAndTheLowerOfTwoAlike) {
  EXPECT_EQ(SampleOne({1, 3, 2}, {}).token_id, 1);
  EXPECT_EQ(SampleOne({1, 3, 2, 3, -INFINITY}, {}).token_id, 1);
  EXPECT_EQ(SampleOne({-5}, {}).token_id, 0);
  std::vector<float> logits = RandomValues(1003, DType::kFloat32);
  logits[1002] = 100;
  EXPECT_EQ(SampleOne(logits, {}).token_id, 1002);
}

TEST_P(SamplingParity, BadLogitsChooseNothing) {
  for (float bad : {NAN, INFINITY, -NAN}) {
    for (int at : {0, 15, 16, 36}) {
      std::vector<float> logits(37, 1.0f);
      logits[at] = bad;
      EXPECT_EQ(SampleOne(logits, {}).token_id, -1);
      EXPECT_EQ(SampleOne(logits, {.temperature = 1}).token_id, -1);
      EXPECT_EQ(SampleOne(logits, {.forced_token = 3}).token_id, -1);
    }
  }
  EXPECT_EQ(SampleOne(std::vector<float>(20, -INFINITY), {.temperature = 1}).token_id, -1);
}

TEST_P(SamplingParity, LogprobsAreOfTheUnscaledLogits) {
  const std::vector<float> logits = RandomValues(333, DType::kFloat32, 3);
  double total = 0;
  for (float logit : logits) total += std::exp(double{logit});
  const std::vector<int> order = FallingOrder(logits);
  const SampledRow row =
      SampleOne(logits, {.temperature = 0.3f, .top_k = 2, .forced_token = 77, .top_logprobs = 20});
  EXPECT_EQ(row.token_id, 77);
  EXPECT_NEAR(row.logprob, logits[77] - std::log(total), 1e-5);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(row.top_ids[i], order[i]);
    EXPECT_NEAR(row.top_logprobs[i], logits[order[i]] - std::log(total), 1e-5);
  }
}

TEST_P(SamplingParity, TopLogprobsTiesGoToTheLowerId) {
  const SampledRow row = SampleOne({0, 2, 1, 2, 1, 2}, {.top_logprobs = 4});
  EXPECT_EQ((std::vector<int32_t>(row.top_ids.begin(), row.top_ids.begin() + 4)),
            (std::vector<int32_t>{1, 3, 5, 2}));
  EXPECT_EQ(row.top_ids[4], -1);
  EXPECT_EQ(row.top_logprobs[4], 0);
}

TEST_P(SamplingParity, WithoutLogprobsNoneAreGiven) {
  EXPECT_EQ(SampleOne({0, 2, 1}, {}).logprob, 0);
  EXPECT_LT(SampleOne({0, 2, 1}, {.top_logprobs = 0}).logprob, 0);
}

TEST_P(SamplingParity, BorderTiesGoToTheLowerId) {
  const std::vector<float> alike(40, 1.5f);
  std::map<int32_t, int> seen;
  for (int64_t i = 0; i < 200; ++i) {
    ++seen[SampleOne(alike, {.temperature = 1, .top_k = 3, .seed = 1, .position = i}).token_id];
    ++seen[SampleOne(alike, {.temperature = 1, .top_p = 0.074f, .seed = 2, .position = i})
               .token_id];
  }
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen.rbegin()->first, 2);
}

TEST_P(SamplingParity, ZerosOfBothSignsAreAlike) {
  for (int64_t i = 0; i < 20; ++i) {
    EXPECT_EQ(SampleOne({-0.0f, 0.0f}, {.temperature = 1, .top_k = 1, .position = i}).token_id, 0);
  }
}

TEST_P(SamplingParity, OneTokenIsAlwaysLeft) {
  const std::vector<float> logits = {1, 2, 5, 3};
  EXPECT_EQ(SampleOne(logits, {.temperature = 1, .top_p = 0}).token_id, 2);
  EXPECT_EQ(SampleOne(logits, {.temperature = 1, .min_p = 1}).token_id, 2);
  EXPECT_EQ(SampleOne(logits, {.temperature = 1e-30f}).token_id, 2);
}

TEST_P(SamplingParity, DrawsFollowTheFilteredDistribution) {
  const std::vector<float> logits = RandomValues(50, DType::kFloat32, 1.5f);
  ExpectDistribution(logits, {.temperature = 1, .seed = 11});
  ExpectDistribution(logits, {.temperature = 0.5f, .top_k = 7, .seed = 12});
  ExpectDistribution(logits, {.temperature = 1.3f, .top_p = 0.8f, .seed = 13});
  ExpectDistribution(logits, {.temperature = 1, .min_p = 0.05f, .seed = 14, .position = 1 << 20});
  ExpectDistribution(logits,
                     {.temperature = 0.9f, .top_k = 20, .top_p = 0.9f, .min_p = 0.02f, .seed = 15});
}

TEST_P(SamplingParity, DrawDependsOnSeedAndPositionAlone) {
  const std::vector<float> logits = RandomValues(64, DType::kFloat32);
  std::vector<float> batch = RandomValues(64, DType::kFloat32);
  batch.insert(batch.end(), logits.begin(), logits.end());
  std::map<int32_t, int> seen;
  for (int64_t i = 0; i < 50; ++i) {
    const SamplingRow row = {.temperature = 1, .seed = 5, .position = i};
    const int32_t alone = SampleOne(logits, row).token_id;
    EXPECT_EQ(Sample(batch, 64, {{.temperature = 2}, row})[1].token_id, alone);
    ++seen[alone];
  }
  EXPECT_GT(seen.size(), 10u);
}

TEST_P(SamplingParity, LargeVocabularyKeepsTheSameSetAsSorting) {
  const std::vector<float> logits = RandomValues(102400, DType::kBFloat16, 2);  // many ties
  for (const SamplingRow& filter :
       {SamplingRow{.temperature = 1, .top_k = 50}, SamplingRow{.temperature = 0.7f, .top_p = 0.9f},
        SamplingRow{.temperature = 1, .top_k = 1000, .top_p = 0.95f, .min_p = 0.001f}}) {
    const std::vector<double> p = Filtered(logits, filter);
    for (int64_t i = 0; i < 10; ++i) {
      SamplingRow row = filter;
      row.position = i;
      EXPECT_GT(p[SampleOne(logits, row).token_id], 0);
    }
  }
}

}  // namespace shoal
