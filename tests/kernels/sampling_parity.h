// Sampling against sorted lists in double precision, for any backend. The edits of the logits are
// tested in sampling_edits_parity.h.
#pragma once

#include <algorithm>
#include <map>
#include <numeric>

#include "tests/kernels/ops_fixture.h"

namespace shoal {

/// All that a call reads beside logits and rows, on the host.
struct SamplingContext {
  std::vector<std::vector<int32_t>> history = {{}};  // by slot: the tokens up to the row's position
  std::vector<LogitBias> biases = {};
  std::vector<std::vector<bool>> masks = {};  // by mask, token
};

class SamplingParity : public OpsParity {
 protected:
  /// Behind the history's tokens: no token, and not to be read.
  static constexpr int32_t kUnread = 1 << 30;

  template <typename T>
  Tensor UploadBytes(const std::vector<T>& values) {
    const Tensor tensor = Zeros(DType::kByte, {std::ssize(values) * int64_t{sizeof(T)}});
    device().CopyFromHost(values.data(), tensor);
    EXPECT_TRUE(device().Synchronize().ok());
    return tensor;
  }
  /// [num_slots, longest + 1].
  Tensor UploadHistory(const std::vector<std::vector<int32_t>>& history) {
    size_t longest = 0;
    for (const auto& tokens : history) longest = std::max(longest, tokens.size());
    std::vector<int32_t> entries;
    for (std::vector<int32_t> tokens : history) {
      tokens.resize(longest + 1, kUnread);
      entries.insert(entries.end(), tokens.begin(), tokens.end());
    }
    return UploadInts(entries, {std::ssize(history), static_cast<int64_t>(longest + 1)});
  }
  Tensor UploadMasks(const std::vector<std::vector<bool>>& masks, int64_t vocab) {
    if (masks.empty()) return {};
    const int64_t num_words = (vocab + 31) / 32;
    std::vector<int32_t> words(masks.size() * num_words);
    for (size_t m = 0; m < masks.size(); ++m) {
      for (int64_t t = 0; t < vocab; ++t) {
        if (masks[m][t]) words[m * num_words + t / 32] |= static_cast<int32_t>(1u << t % 32);
      }
    }
    return UploadInts(words, {std::ssize(masks), num_words});
  }

  /// Leaves what was recorded in `history_`.
  std::vector<SampledRow> Sample(const std::vector<float>& logits, int64_t vocab,
                                 const std::vector<SamplingRow>& rows,
                                 const SamplingContext& context = {}) {
    const auto num_rows = static_cast<int64_t>(rows.size());
    const Tensor x = Upload(logits, DType::kFloat32, {num_rows, vocab});
    const Tensor out = Zeros(DType::kByte, {num_rows * int64_t{sizeof(SampledRow)}});
    const Tensor history = UploadHistory(context.history);
    ops().Sample(x,
                 {.rows = UploadBytes(rows),
                  .history = history,
                  .biases = context.biases.empty() ? Tensor() : UploadBytes(context.biases),
                  .masks = UploadMasks(context.masks, vocab)},
                 out);
    history_ = DownloadRaw<int32_t>(history);
    return DownloadRaw<SampledRow>(out);
  }
  SampledRow SampleOne(const std::vector<float>& logits, const SamplingRow& row,
                       const SamplingContext& context = {}) {
    return Sample(logits, static_cast<int64_t>(logits.size()), {row}, context)[0];
  }

  /// The logits after mask, biases and penalties, by definition.
  static std::vector<float> Edited(std::vector<float> logits, const SamplingRow& row,
                                   const SamplingContext& context) {
    for (size_t t = 0; t < logits.size() && row.mask >= 0; ++t) {
      if (!context.masks[row.mask][t]) logits[t] = -INFINITY;
    }
    for (int32_t i = 0; i < row.num_biases; ++i) {
      const LogitBias& bias = context.biases[row.first_bias + i];
      logits[bias.token_id] += bias.bias;
    }
    std::map<int32_t, int> uses, generated;
    for (int64_t i = 0; i < row.position; ++i) {
      const int32_t token =
          row.slot < std::ssize(context.history) && i < std::ssize(context.history[row.slot])
              ? context.history[row.slot][i]
              : -1;
      if (token < 0) continue;
      ++uses[token];
      if (i >= row.num_prompt_tokens) ++generated[token];
    }
    for (const auto& [token, count] : uses) {
      float& logit = logits[token];
      logit *= logit > 0 ? 1 / row.repetition_penalty : row.repetition_penalty;
    }
    for (const auto& [token, count] : generated) {
      logits[token] -= row.frequency_penalty * static_cast<float>(count) + row.presence_penalty;
    }
    return logits;
  }

  /// Ids by falling logit, ties by rising id.
  static std::vector<int> FallingOrder(const std::vector<float>& logits) {
    std::vector<int> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
    return order;
  }

  /// Keeps the first of `order` whose probabilities add up to `share` of all.
  static void KeepShare(const std::vector<int>& order, double share, std::vector<double>& p) {
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    double sum = 0;
    for (int id : order) {
      if (share < 1 && sum >= share * total) p[id] = 0;
      sum += p[id];
    }
  }

  /// Ids by rising distance of their information from the entropy, ties by rising id.
  static std::vector<int> TypicalOrder(const std::vector<double>& p) {
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    double entropy = 0;
    for (double q : p) entropy -= q > 0 ? q / total * std::log(q / total) : 0;
    std::vector<std::pair<double, int>> order_by_distance;
    for (int id = 0; id < std::ssize(p); ++id) {
      if (p[id] > 0)
        order_by_distance.emplace_back(std::abs(-std::log(p[id] / total) - entropy), id);
    }
    std::sort(order_by_distance.begin(), order_by_distance.end());
    std::vector<int> order;
    for (const auto& [distance, id] : order_by_distance) order.push_back(id);
    return order;
  }

  /// Probabilities after temperature, min_p, top_k, top_p and typical_p, by definition.
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
    KeepShare(order, row.top_p, p);
    KeepShare(TypicalOrder(p), row.typical_p, p);
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& value : p) value /= total;
    return p;
  }

  /// Holds the counts of drawn tokens against their probabilities. Tokens expected less than 5
  /// times count as one. The 99.99 % quantile of chi-square with v degrees of freedom is near
  /// v + 3.72 sqrt(2 v) + 9 (Wilson-Hilferty, rounded up).
  static void ExpectCounts(const std::vector<double>& seen, const std::vector<double>& p) {
    const double num_draws = std::accumulate(seen.begin(), seen.end(), 0.0);
    double chi_square = 0, rare_seen = 0, rare_expected = 0;
    int degrees = -1;
    const auto add = [&](double count, double expected) {
      chi_square += (count - expected) * (count - expected) / expected;
      ++degrees;
    };
    for (size_t id = 0; id < p.size(); ++id) {
      const double expected = p[id] * num_draws;
      if (p[id] == 0) {
        EXPECT_EQ(seen[id], 0) << "token " << id << " was dropped";
      } else if (expected < 5) {
        rare_seen += seen[id];
        rare_expected += expected;
      } else {
        add(seen[id], expected);
      }
    }
    if (rare_expected > 0) add(rare_seen, rare_expected);
    EXPECT_LT(chi_square, degrees + 3.72 * std::sqrt(2.0 * degrees) + 9);
  }

  /// Draws tokens at consecutive positions and holds them against the filtered probabilities. Where
  /// there is a history, the seed counts instead of the position, which is its length.
  void ExpectDistribution(const std::vector<float>& logits, SamplingRow row,
                          const SamplingContext& context = {}) {
    const int64_t num_draws = GetParam().num_draws;
    const auto vocab = static_cast<int64_t>(logits.size());
    const bool has_history = !context.history[0].empty();
    const std::vector<double> p = Filtered(Edited(logits, row, context), row);
    std::vector<double> seen(vocab);
    const int64_t batch_size = std::min<int64_t>(500, num_draws);
    std::vector<float> batch;
    for (int64_t i = 0; i < batch_size; ++i) {
      batch.insert(batch.end(), logits.begin(), logits.end());
    }
    for (int64_t done = 0; done < num_draws; done += batch_size) {
      std::vector<SamplingRow> rows(batch_size, row);
      for (SamplingRow& each : rows) {
        each.position = has_history ? row.position : row.position++;
        each.seed = has_history ? row.seed++ : row.seed;
      }
      for (const SampledRow& sampled : Sample(batch, vocab, rows, context)) {
        ASSERT_GE(sampled.token_id, 0);
        ASSERT_LT(sampled.token_id, vocab);
        ++seen[sampled.token_id];
      }
    }
    ExpectCounts(seen, p);
  }

  std::vector<int32_t> history_;
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

/// One token of probability 0.3 tells 1.2 nats, seventy of 0.01 tell 4.6; the entropy is 3.6.
TEST_P(SamplingParity, TypicalSamplingDropsTheMostLikelyTokenIfItTellsTooLittle) {
  std::vector<float> logits(71, std::log(0.01f));
  logits[5] = std::log(0.3f);
  const std::vector<double> p = Filtered(logits, {.temperature = 1, .typical_p = 0.095f});
  EXPECT_EQ(std::count_if(p.begin(), p.end(), [](double value) { return value > 0; }), 10);
  ExpectDistribution(logits, {.temperature = 1, .typical_p = 0.095f, .seed = 18});
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
  EXPECT_GE(SampleOne(logits, {.temperature = 1, .typical_p = 0}).token_id, 0);
  EXPECT_EQ(SampleOne(logits, {.temperature = 1e-30f, .typical_p = 0.1f}).token_id, 2);
}

TEST_P(SamplingParity, DrawsFollowTheFilteredDistribution) {
  const std::vector<float> logits = RandomValues(50, DType::kFloat32, 1.5f);
  ExpectDistribution(logits, {.temperature = 1, .seed = 11});
  ExpectDistribution(logits, {.temperature = 0.5f, .top_k = 7, .seed = 12});
  ExpectDistribution(logits, {.temperature = 1.3f, .top_p = 0.8f, .seed = 13});
  ExpectDistribution(logits, {.temperature = 1, .min_p = 0.05f, .seed = 14, .position = 1 << 20});
  ExpectDistribution(logits,
                     {.temperature = 0.9f, .top_k = 20, .top_p = 0.9f, .min_p = 0.02f, .seed = 15});
  ExpectDistribution(logits, {.temperature = 1, .typical_p = 0.6f, .seed = 16});
  ExpectDistribution(logits, {.temperature = 1.2f, .top_p = 0.9f, .typical_p = 0.7f, .seed = 17});
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
        SamplingRow{.temperature = 1, .top_k = 1000, .top_p = 0.95f, .min_p = 0.001f},
        SamplingRow{.temperature = 1, .top_p = 0.98f, .typical_p = 0.5f}}) {
    const std::vector<double> p = Filtered(logits, filter);
    for (int64_t i = 0; i < 10; ++i) {
      SamplingRow row = filter;
      row.position = i;
      EXPECT_GT(p[SampleOne(logits, row).token_id], 0);
    }
  }
}

}  // namespace shoal
