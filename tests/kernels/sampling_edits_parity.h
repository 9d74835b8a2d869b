// Mask, biases, penalties and the recorded token of Ops::Sample, for any backend.
#pragma once

#include <limits>

#include "tests/kernels/sampling_parity.h"

namespace shoal {

class SamplingEditsParity : public SamplingParity {
 protected:
  int32_t Between(int32_t first, int32_t last) {
    return std::uniform_int_distribution<int32_t>(first, last)(random_);
  }

  /// Rows with edits of all kinds, each with a slot of its own.
  std::vector<SamplingRow> RandomEdits(int64_t num_rows, int32_t vocab, SamplingContext& context) {
    std::vector<SamplingRow> rows(num_rows);
    context.history.clear();
    for (SamplingRow& row : rows) {
      row.slot = static_cast<int32_t>(context.history.size());
      row.position = Between(0, 30);
      row.num_prompt_tokens = Between(0, static_cast<int32_t>(row.position));
      row.presence_penalty = static_cast<float>(Between(-2, 4)) / 2;
      row.frequency_penalty = static_cast<float>(Between(-2, 4)) / 3;
      row.repetition_penalty = static_cast<float>(Between(2, 8)) / 4;
      std::vector<int32_t>& tokens = context.history.emplace_back();
      for (int64_t i = 0; i < row.position; ++i) tokens.push_back(Between(-2, vocab - 1));
      row.first_bias = static_cast<int32_t>(context.biases.size());
      row.num_biases = Between(0, 3);
      for (int32_t i = 0; i < row.num_biases; ++i) {
        const float bias = i == 2 ? -INFINITY : static_cast<float>(Between(-9, 9)) / 3;
        context.biases.push_back({.token_id = Between(0, vocab - 1), .bias = bias});
      }
      if (Between(0, 1) == 0) continue;
      row.mask = static_cast<int32_t>(context.masks.size());
      std::vector<bool>& mask = context.masks.emplace_back(vocab);
      for (int32_t t = 0; t < vocab; ++t) mask[t] = Between(0, 2) > 0;
    }
    return rows;
  }
};

TEST_P(SamplingEditsParity, GreedyFollowsTheEditedLogits) {
  for (int32_t vocab : {5, 31, 32, 33, 64, 100}) {
    SamplingContext context;
    const std::vector<SamplingRow> rows = RandomEdits(100, vocab, context);
    const std::vector<float> logits = RandomValues(100 * vocab, DType::kFloat32, 2);
    const std::vector<SampledRow> sampled = Sample(logits, vocab, rows, context);
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto first = logits.begin() + static_cast<int64_t>(i) * vocab;
      const std::vector<float> edited = Edited({first, first + vocab}, rows[i], context);
      const auto best = std::max_element(edited.begin(), edited.end());
      const auto expected = static_cast<int32_t>(best - edited.begin());
      EXPECT_EQ(sampled[i].token_id, *best == -INFINITY ? SampledRow::kNoneAllowed : expected)
          << "row " << i << " of " << vocab;
    }
  }
}

TEST_P(SamplingEditsParity, DrawsFollowTheEditedDistribution) {
  const std::vector<float> logits = RandomValues(40, DType::kFloat32, 1.5f);
  SamplingContext context = {.history = {{3, 4, 4, 5, -1, 6, 6, 6, 3}},
                             .biases = {{9, 1.5f}, {10, -2}, {11, -INFINITY}, {12, 40}},
                             .masks = {std::vector<bool>(40, true)}};
  for (int token : {0, 12, 31, 32}) context.masks[0][token] = false;
  ExpectDistribution(logits, {.temperature = 1, .num_biases = 3, .seed = 21}, context);
  ExpectDistribution(logits, {.temperature = 1, .num_biases = 4, .mask = 0, .seed = 22}, context);
  ExpectDistribution(logits,
                     {.temperature = 0.8f,
                      .top_p = 0.9f,
                      .typical_p = 0.9f,
                      .presence_penalty = 0.4f,
                      .frequency_penalty = 0.3f,
                      .repetition_penalty = 1.2f,
                      .num_prompt_tokens = 3,
                      .seed = 23,
                      .position = 9},
                     context);
}

TEST_P(SamplingEditsParity, RepetitionPenaltyAppliesOncePerToken) {
  const SamplingContext context = {.history = {{0, 0, 0}}};
  const SamplingRow row = {.repetition_penalty = 1.2f, .position = 3};
  EXPECT_EQ(SampleOne({2, 1.5f}, row, context).token_id, 0);  // 1.67; thrice would be 1.16
  EXPECT_EQ(SampleOne({2, 1.75f}, row, context).token_id, 1);
  EXPECT_EQ(SampleOne({-2, -2.3f}, row, context).token_id, 1);  // -2.4
}

TEST_P(SamplingEditsParity, PresenceAndFrequencyPenaltiesSeeGeneratedTokensOnly) {
  const SamplingContext context = {.history = {{0, 0, 1}}};
  const SamplingRow prompt = {
      .presence_penalty = 1, .frequency_penalty = 1, .num_prompt_tokens = 3, .position = 3};
  EXPECT_EQ(SampleOne({2, 1.9f}, prompt, context).token_id, 0);
  SamplingRow generated = prompt;
  generated.num_prompt_tokens = 1;  // token 0 was generated once: 2 - 2 against 1.9 - 2
  EXPECT_EQ(SampleOne({2, 1.9f, -0.05f}, generated, context).token_id, 0);
  generated.num_prompt_tokens = 0;  // twice: 2 - 3
  EXPECT_EQ(SampleOne({2, 1.9f, -0.2f}, generated, context).token_id, 1);
}

TEST_P(SamplingEditsParity, HistoryBeyondThePositionAndNegativeEntriesCountForNothing) {
  const SamplingContext context = {.history = {{-1, -2, 0, 0}}};
  EXPECT_EQ(SampleOne({2, 1}, {.presence_penalty = 5, .position = 2}, context).token_id, 0);
  EXPECT_EQ(SampleOne({2, 1}, {.presence_penalty = 5, .position = 3}, context).token_id, 1);
}

TEST_P(SamplingEditsParity, InfinitelyUnlikelyTokensStaySo) {
  const SamplingContext context = {.history = {{0, 1, 2}}, .biases = {{0, 50}}};
  for (float penalty : {0.01f, 100.0f}) {
    const SamplingRow row = {.presence_penalty = -2,
                             .frequency_penalty = -2,
                             .repetition_penalty = penalty,
                             .num_biases = 1,
                             .position = 3};
    EXPECT_EQ(SampleOne({-INFINITY, -INFINITY, -3}, row, context).token_id, 2);
    EXPECT_EQ(SampleOne({-INFINITY, -INFINITY, 3}, row, context).token_id, 2);
  }
}

TEST_P(SamplingEditsParity, ExtremePenaltiesStillLeaveAChoice) {
  constexpr float kMost = std::numeric_limits<float>::max();
  const SamplingContext context = {.history = {{0, 1, 2}}, .biases = {{1, kMost}, {1, kMost}}};
  for (float temperature : {0.0f, 1.0f}) {
    const auto choose = [&](std::vector<float> logits, float penalty, int num_biases) {
      return SampleOne(logits,
                       {.temperature = temperature,
                        .repetition_penalty = penalty,
                        .num_biases = num_biases,
                        .position = 3},
                       context)
          .token_id;
    };
    EXPECT_EQ(choose({-1, 5, -1}, 1e-40f, 0), 1);
    EXPECT_GE(choose({-3, -5, -4}, kMost, 0), 0);
    EXPECT_EQ(choose({1, 1, 1}, 1, 2), 1);
  }
}

TEST_P(SamplingEditsParity, WhereNothingIsAllowedNothingIsChosen) {
  const SamplingContext context = {.biases = {{0, -INFINITY}, {1, -INFINITY}},
                                   .masks = {{false, false}, {true, false}}};
  for (float temperature : {0.0f, 1.0f}) {
    const auto choose = [&](std::vector<float> logits, SamplingRow row) {
      row.temperature = temperature;
      row.top_logprobs = 2;
      return SampleOne(logits, row, context);
    };
    EXPECT_EQ(choose({1, 2}, {.mask = 0}).token_id, SampledRow::kNoneAllowed);
    EXPECT_EQ(choose({1, 2}, {.num_biases = 2}).token_id, SampledRow::kNoneAllowed);
    EXPECT_EQ(choose({1, 2}, {.num_biases = 1, .mask = 1}).token_id, SampledRow::kNoneAllowed);
    EXPECT_EQ(choose({1, 2}, {.mask = 1}).token_id, 0);
    EXPECT_EQ(choose({1, 2}, {.mask = 0}).top_ids, SampledRow::NoTokens());
    EXPECT_EQ(choose({NAN, 2}, {.mask = 0}).token_id, SampledRow::kNotFinite);
    EXPECT_EQ(choose({1, INFINITY}, {.mask = 1}).token_id, SampledRow::kNotFinite);
  }
}

TEST_P(SamplingEditsParity, LogprobsAreOfTheLogitsBeforeAnyEdit) {
  const std::vector<float> logits = RandomValues(50, DType::kFloat32, 2);
  const std::vector<int> order = FallingOrder(logits);
  const SamplingContext context = {.history = {{order[1]}}, .biases = {{order[0], -INFINITY}}};
  const SampledRow plain = SampleOne(logits, {.forced_token = order[2], .top_logprobs = 5});
  const SampledRow edited = SampleOne(
      logits, {.presence_penalty = 50, .top_logprobs = 5, .num_biases = 1, .position = 1}, context);
  EXPECT_EQ(edited.token_id, order[2]);
  EXPECT_EQ(edited.logprob, plain.logprob);
  EXPECT_EQ(edited.top_ids, plain.top_ids);
  EXPECT_EQ(edited.top_logprobs, plain.top_logprobs);
}

TEST_P(SamplingEditsParity, ForcedTokensIgnoreEdits) {
  const SamplingContext context = {.history = {{1}}, .masks = {{true, false, false}}};
  const SampledRow row = SampleOne(
      {1, 2, 3},
      {.presence_penalty = 2, .forced_token = 1, .top_logprobs = 1, .mask = 0, .position = 1},
      context);
  EXPECT_EQ(row.token_id, 1);
  EXPECT_EQ(row.top_ids[0], 2);
}

TEST_P(SamplingEditsParity, RecordsWhatWasChosenAndNothingElse) {
  const SamplingContext context = {.history = {{7, 8}, {9, 7}, {5, 5}, {5, 5}, {5, 5}},
                                   .masks = {std::vector<bool>(3)}};
  const std::vector<float> logits = {0, 0, 1, 1, 0, 0, 0, 1, 0, NAN, 0, 0, 0, 0, 1};
  Sample(logits, 3,
         {{.slot = 0, .recorded = 1, .position = 2},
          {.slot = 1, .recorded = 0, .position = 2},
          {.forced_token = 0, .slot = 2, .recorded = 1, .position = 1},
          {.slot = 3, .recorded = 1, .position = 2},
          {.slot = 4, .mask = 0, .recorded = 1, .position = 0}},
         context);
  EXPECT_EQ(history_,
            (std::vector<int32_t>{7, 8, 2, 9, 7, kUnread, 5, 0, kUnread, 5, 5,
                                  SampledRow::kNotFinite, SampledRow::kNoneAllowed, 5, kUnread}));
}

TEST_P(SamplingEditsParity, RowsDependOnNeitherNeighboursNorEarlierCalls) {
  constexpr int32_t kVocab = 300;
  constexpr int64_t kRows = 64;
  SamplingContext context;
  std::vector<SamplingRow> rows = RandomEdits(kRows, kVocab, context);
  for (int64_t i = 0; i < kRows; ++i) {
    rows[i].temperature = static_cast<float>(i % 3);
    rows[i].typical_p = i % 2 == 0 ? 1 : 0.8f;
    rows[i].seed = i;
    rows[i].top_logprobs = 3;
    rows[i].recorded = 1;
  }
  const std::vector<float> logits = RandomValues(kRows * kVocab, DType::kFloat32, 2);
  const std::vector<SampledRow> together = Sample(logits, kVocab, rows, context);
  const std::vector<int32_t> recorded = history_;
  const auto stride = static_cast<int64_t>(recorded.size()) / kRows;
  for (int64_t i = 0; i < kRows; ++i) {
    const auto first = logits.begin() + i * kVocab;
    const SampledRow alone = SampleOne({first, first + kVocab}, rows[i], context);
    EXPECT_EQ(alone.token_id, together[i].token_id);
    EXPECT_EQ(alone.logprob, together[i].logprob);
    EXPECT_EQ(recorded[i * stride + rows[i].position], together[i].token_id);
  }
}

/// A large vocabulary is shared among threads row by row.
TEST_P(SamplingEditsParity, ManyLargeRowsFollowTheirDefinition) {
  constexpr int32_t kVocab = 70000;
  SamplingContext context;
  std::vector<SamplingRow> rows = RandomEdits(8, kVocab, context);
  const std::vector<float> logits = RandomValues(8 * kVocab, DType::kFloat32, 2);
  for (SamplingRow& row : rows) row.recorded = 1;
  // The most likely tokens are in the history, so that the penalties matter.
  for (int64_t i = 0; i < 8; ++i) {
    const auto first = logits.begin() + i * kVocab;
    const std::vector<int> order = FallingOrder({first, first + kVocab});
    std::copy_n(order.begin(), context.history[i].size() / 2, context.history[i].begin());
  }
  const std::vector<SampledRow> sampled = Sample(logits, kVocab, rows, context);
  for (int64_t i = 0; i < 8; ++i) {
    const auto first = logits.begin() + i * kVocab;
    const std::vector<float> edited = Edited({first, first + kVocab}, rows[i], context);
    EXPECT_EQ(sampled[i].token_id, std::max_element(edited.begin(), edited.end()) - edited.begin());
  }
}

}  // namespace shoal
