// The choice of tokens against that of the CPU backend, at the sizes of real vocabularies and where
// the kernel works differently.
#include "kernels/cuda/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cpu/sampling.h"
#include "kernels/philox.h"
#include "tests/kernels/cuda/kernel_fixture.h"

namespace shoal::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Rows of logits and all that a call reads beside them, on the host.
struct Batch {
  int64_t vocab = 0;
  std::vector<float> logits = {};  // [rows.size(), vocab]
  std::vector<SamplingRow> rows = {};
  int64_t max_model_len = 1;
  std::vector<int32_t> history = {0};  // [num_slots, max_model_len]
  std::vector<LogitBias> biases = {};
  std::vector<int32_t> masks = {};  // [num_masks, ceil(vocab / 32)]

  SamplingInputs inputs() const {
    const auto tensor = [](const auto& values, DType dtype, std::vector<int64_t> shape) {
      return values.empty()
                 ? Tensor()
                 : Tensor(const_cast<void*>(static_cast<const void*>(values.data())), dtype, shape);
    };
    const int64_t words = (vocab + 31) / 32;
    return {
        .rows = {},
        .history =
            tensor(history, DType::kInt32, {std::ssize(history) / max_model_len, max_model_len}),
        .biases = tensor(biases, DType::kByte, {std::ssize(biases) * int64_t{sizeof(LogitBias)}}),
        .masks = tensor(masks, DType::kInt32, {std::ssize(masks) / words, words})};
  }
  std::span<const float> LogitsOf(int64_t row) const {
    return std::span(logits).subspan(row * vocab, vocab);
  }
  void AddRow(const SamplingRow& row, const std::vector<float>& values) {
    rows.push_back(row);
    logits.insert(logits.end(), values.begin(), values.end());
    vocab = std::ssize(values);
  }
};

/// The choice by definition, as far as it can be told from sums in double precision.
struct Definition {
  std::vector<double> probabilities;

  /// The distribution function at the tokens before `id`, and with it.
  std::pair<double, double> IntervalOf(int32_t id) const {
    const double before = std::accumulate(probabilities.begin(), probabilities.begin() + id, 0.0);
    return {before, before + probabilities[id]};
  }
};

class SamplingTest : public KernelTest {
 protected:
  std::vector<SampledRow> Sample(Batch& batch) {
    const DeviceArray<float> logits(batch.logits);
    const DeviceArray<SamplingRow> rows(batch.rows);
    const DeviceArray<int32_t> history(batch.history), masks(batch.masks);
    const DeviceArray<LogitBias> biases(batch.biases);
    const DeviceArray<SampledRow> out(batch.rows.size(), SampledRow{.token_id = -77});
    const auto num_rows = std::ssize(batch.rows);
    const size_t bytes = SampleWorkspaceBytes(num_rows, batch.vocab);
    const DeviceArray<unsigned char> workspace(bytes, 0xff);
    cuda::Sample({.logits = logits.data(),
                  .rows = rows.data(),
                  .history = history.data(),
                  .biases = biases.data(),
                  .masks = masks.data(),
                  .out = out.data(),
                  .num_rows = num_rows,
                  .vocab = batch.vocab,
                  .max_model_len = batch.max_model_len,
                  .workspace = workspace.data()},
                 nullptr);
    std::vector<SampledRow> sampled = out.Read();
    batch.history = history.Read();
    return sampled;
  }

  SampledRow Reference(const Batch& batch, int64_t row) {
    return reference_.Sample(BestIsa(), batch.LogitsOf(row).data(), batch.vocab, batch.rows[row],
                             batch.inputs());
  }

  /// Probabilities after edits and filters, by sorting.
  Definition Define(const Batch& batch, int64_t i) {
    const SamplingRow& row = batch.rows[i];
    std::span<const float> logits = batch.LogitsOf(i);
    if (LogitEditor::HasEdits(row)) {
      logits = {editor_.Edit(BestIsa(), logits.data(), batch.vocab, row, batch.inputs()),
                logits.size()};
    }
    const double highest = *std::max_element(logits.begin(), logits.end());
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    SortBy(order, [&](int32_t t) { return -logits[t]; });
    std::vector<double> p(logits.size());
    for (size_t t = 0; t < p.size(); ++t) {
      p[t] = std::exp((logits[t] - highest) / row.temperature);
      if (p[t] < row.min_p) p[t] = 0;
    }
    for (size_t k = row.top_k; k < order.size() && row.top_k > 0; ++k) p[order[k]] = 0;
    KeepShare(order, row.top_p, p);
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    double entropy = 0;
    for (double q : p) entropy -= q > 0 ? q / total * std::log(q / total) : 0;
    const auto distance = [&](int32_t t) {
      return static_cast<float>(std::abs(-std::log(p[t] / total) - entropy));
    };
    std::erase_if(order, [&](int32_t t) { return p[t] == 0; });
    SortBy(order, distance);
    KeepShare(order, row.typical_p, p);
    const double kept = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& q : p) q /= kept;
    return {std::move(p)};
  }

  /// By rising key, ties by rising id.
  template <typename Key>
  static void SortBy(std::vector<int32_t>& ids, const Key& key) {
    std::sort(ids.begin(), ids.end(),
              [&](int32_t a, int32_t b) { return std::pair(key(a), a) < std::pair(key(b), b); });
  }

  static void KeepShare(const std::vector<int32_t>& order, double share, std::vector<double>& p) {
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    double sum = 0;
    for (int32_t t : order) {
      if (share < 1 && sum >= share * total) p[t] = 0;
      sum += p[t];
    }
  }

  static double LogTotal(std::span<const float> logits) {
    double total = 0;
    for (float logit : logits) total += std::exp(double{logit});
    return std::log(total);
  }

  /// Every row's token is the reference's, except, for at most `share` of the rows, where a sum is
  /// within rounding of the random number.
  void ExpectReference(Batch batch, double share) {
    const std::vector<SampledRow> sampled = Sample(batch);
    int64_t num_others = 0;
    for (int64_t i = 0; i < std::ssize(sampled); ++i) {
      const SampledRow expected = Reference(batch, i);
      const SampledRow& actual = sampled[i];
      if (actual.token_id != expected.token_id) {
        ++num_others;
        ASSERT_GE(actual.token_id, 0) << "row " << i << ", not " << expected.token_id;
        ASSERT_GT(batch.rows[i].temperature, 0)
            << "row " << i << ": " << actual.token_id << ", not " << expected.token_id;
        const auto [begin, end] = Define(batch, i).IntervalOf(actual.token_id);
        const double uniform = PhiloxUniform(batch.rows[i].seed, batch.rows[i].position);
        EXPECT_NEAR(std::clamp(uniform, begin, end), uniform, 2e-5)
            << "row " << i << ": " << actual.token_id << ", not " << expected.token_id;
      }
      ASSERT_EQ(actual.top_ids, expected.top_ids) << "row " << i;
      if (batch.rows[i].top_logprobs < 0 || actual.token_id < 0) continue;
      const std::span<const float> logits = batch.LogitsOf(i);
      const double log_total = LogTotal(logits);
      EXPECT_NEAR(actual.logprob, logits[actual.token_id] - log_total, 5e-6);
      for (int k = 0; k < kMaxTopLogprobs && actual.top_ids[k] >= 0; ++k) {
        const double logprob = logits[actual.top_ids[k]] - log_total;
        if (actual.top_logprobs[k] != logprob) ASSERT_NEAR(actual.top_logprobs[k], logprob, 5e-6);
      }
    }
    EXPECT_LE(num_others, std::ceil(share * static_cast<double>(sampled.size())))
        << "of " << sampled.size();
  }

  /// Any filters, or none.
  SamplingRow RandomFilters() {
    SamplingRow row;
    const auto sometimes = [&](auto value, auto otherwise) {
      return Between(0, 2) == 0 ? value : otherwise;
    };
    row.temperature = Between(0, 7) == 0 ? 0 : static_cast<float>(Between(2, 20)) / 10;
    row.top_k = sometimes(Between(1, 60), 0);
    row.top_p = sometimes(static_cast<float>(Between(1, 99)) / 100, 1.0f);
    row.min_p = sometimes(static_cast<float>(Between(1, 30)) / 100, 0.0f);
    row.typical_p = sometimes(static_cast<float>(Between(5, 95)) / 100, 1.0f);
    row.top_logprobs = Between(-1, kMaxTopLogprobs);
    row.seed = random_();
    row.position = Between(0, 30);
    return row;
  }

  /// Edits of all kinds for the last row, whose slot is new.
  void AddRandomEdits(Batch& batch) {
    SamplingRow& row = batch.rows.back();
    const auto last = static_cast<int>(batch.vocab - 1);
    row.slot = static_cast<int32_t>(batch.history.size() / batch.max_model_len);
    for (int64_t i = 0; i < batch.max_model_len; ++i) {
      // Few different ones, so that they come again.
      batch.history.push_back(Between(0, 9) == 0 ? -1 : Between(0, 99) * last / 99);
    }
    row.num_prompt_tokens = Between(0, static_cast<int>(row.position));
    if (Between(0, 2) > 0) {
      row.presence_penalty = static_cast<float>(Between(-2, 4)) / 2;
      row.frequency_penalty = static_cast<float>(Between(-2, 4)) / 8;
      row.repetition_penalty = static_cast<float>(Between(4, 8)) / 5;
    }
    row.recorded = Between(0, 1);
    row.first_bias = static_cast<int32_t>(batch.biases.size());
    row.num_biases = Between(0, 12);
    for (int i = 0; i < row.num_biases; ++i) {
      const float bias = i % 5 == 4 ? -kInfinity : static_cast<float>(Between(-9, 9)) / 3;
      batch.biases.push_back({.token_id = Between(0, std::min(last, 6)) * last / 6, .bias = bias});
    }
    if (Between(0, 1) == 0) return;
    const int64_t words = (batch.vocab + 31) / 32;
    row.mask = static_cast<int32_t>(std::ssize(batch.masks) / words);
    for (int64_t i = 0; i < words; ++i) {
      batch.masks.push_back(static_cast<int32_t>(random_() | random_()));
    }
  }

 private:
  UsedBytes used_{0};
  RowSampler reference_{&used_};
  LogitEditor editor_{&used_};
};

TEST_P(SamplingTest, AgreesWithTheReference) {
  for (int vocab : {1, 2, 31, 100, 511, 512, 513, 1000, 4099}) {
    Batch batch;
    for (int i = 0; i < 40; ++i) {
      batch.AddRow(RandomFilters(), RandomFloats(vocab, i % 2 == 0 ? 2 : 5));
    }
    ExpectReference(batch, 0);
  }
}

TEST_P(SamplingTest, EditedRowsAgreeWithTheReference) {
  for (int vocab : {7, 64, 1000, 20001}) {
    Batch batch = {.max_model_len = 200};
    for (int i = 0; i < 16; ++i) {
      batch.AddRow(RandomFilters(), RandomFloats(vocab, 3));
      batch.rows.back().position = Between(0, 199);
      AddRandomEdits(batch);
    }
    ExpectReference(batch, 0);
  }
}

TEST_P(SamplingTest, LargeVocabulariesAgreeWithTheReference) {
  constexpr int kVocab = 102400;
  Batch batch;
  for (SamplingRow row : {SamplingRow{.temperature = 1}, SamplingRow{.temperature = 1, .top_k = 50},
                          SamplingRow{.temperature = 0.7f, .top_p = 0.9f},
                          SamplingRow{.temperature = 1.3f, .min_p = 0.02f},
                          SamplingRow{.temperature = 1, .top_p = 0.98f, .typical_p = 0.5f},
                          SamplingRow{.temperature = 1,
                                      .top_k = 20000,
                                      .top_p = 0.95f,
                                      .min_p = 0.001f,
                                      .typical_p = 0.9f,
                                      .top_logprobs = 20}}) {
    row.seed = random_();
    batch.AddRow(row, RandomFloats(kVocab, 2));
    row.seed = random_();
    std::vector<float> peaked = RandomFloats(kVocab, 3);
    for (int i = 0; i < 5; ++i) peaked[Between(0, kVocab - 1)] += 15;
    batch.AddRow(row, peaked);
  }
  // A step of the distribution function is 10^-5 of it.
  ExpectReference(batch, 0.2);
}

/// Many more tokens are alike than the kernel's list of candidates has room for.
TEST_P(SamplingTest, TiesGoToTheLowerId) {
  for (int vocab : {600, 3000, 9001}) {
    for (int levels : {1, 2, 3}) {
      Batch batch;
      for (int i = 0; i < 12; ++i) {
        std::vector<float> logits(vocab);
        for (float& logit : logits) logit = static_cast<float>(Between(0, levels - 1)) / 4;
        SamplingRow row = RandomFilters();
        row.temperature = 1;
        row.top_k = i % 3 == 0 ? Between(1, vocab) : 0;
        row.top_p = i % 3 == 1 ? static_cast<float>(Between(1, 999)) / 1000 : 1;
        row.min_p = 0;
        row.typical_p = i % 3 == 2 ? static_cast<float>(Between(1, 999)) / 1000 : 1;
        batch.AddRow(row, logits);
      }
      ExpectReference(batch, 0.1);
    }
  }
}

TEST_P(SamplingTest, TopLogprobsReachThroughImpossibleTokens) {
  for (int num_possible : {1, 7, 19, 20, 700}) {
    std::vector<float> logits(2000, -kInfinity);
    for (int i = 0; i < num_possible; ++i) {
      // Far below the most likely one, and many alike.
      logits[Between(0, 1999)] = static_cast<float>(Between(-40, 0)) * 3;
    }
    logits[1234] = 5;
    Batch batch;
    for (int count : {0, 1, 5, 19, 20}) batch.AddRow({.top_logprobs = count}, logits);
    ExpectReference(batch, 0);
  }
}

TEST_P(SamplingTest, ExtremeTemperaturesAndLogitsAgreeWithTheReference) {
  constexpr float kMost = std::numeric_limits<float>::max();
  Batch batch;
  for (float temperature : {1e-45f, 1e-38f, 1e-30f, 1e-3f, 1e3f, 1e6f}) {
    for (float typical_p : {0.3f, 1.0f}) {
      SamplingRow row = {.temperature = temperature, .typical_p = typical_p, .seed = random_()};
      batch.AddRow(row, {1, 2, 5, 3});
      batch.AddRow(row, {5, 2, 5, 5});
      if (temperature < 1) batch.AddRow(row, {-kMost, 0, kMost, kMost});
    }
  }
  ExpectReference(batch, 0);
}

TEST_P(SamplingTest, LongHistoriesAndManyBiasesAgreeWithTheReference) {
  constexpr int kVocab = 30000, kLength = 5000, kBiases = 1056;
  Batch batch = {.max_model_len = kLength};
  batch.history.clear();
  for (int i = 0; i < 4; ++i) {
    SamplingRow row = RandomFilters();
    row.position = kLength - 1;
    row.slot = i;
    row.num_prompt_tokens = kLength / 2;
    row.repetition_penalty = 1.1f;
    row.presence_penalty = 0.2f;
    row.frequency_penalty = 0.05f;
    row.first_bias = i * kBiases;
    row.num_biases = kBiases;
    batch.AddRow(row, RandomFloats(kVocab, 2));
    for (int t = 0; t < kLength; ++t)
      batch.history.push_back(Between(-1, 1) * Between(0, kVocab - 1));
    for (int b = 0; b < kBiases; ++b) {
      batch.biases.push_back({.token_id = Between(0, 2000) * 14,
                              .bias = b % 50 == 0 ? -kInfinity : RandomFloats(1)[0]});
    }
  }
  ExpectReference(batch, 0.25);
}

TEST_P(SamplingTest, RowsDependOnNeitherNeighboursNorWhereTheyLie) {
  for (int vocab : {333, 512, 5000}) {
    Batch batch = {.max_model_len = 50};
    for (int i = 0; i < 20; ++i) {
      batch.AddRow(RandomFilters(), RandomFloats(vocab, 2));
      if (i % 2 == 0) AddRandomEdits(batch);
    }
    const Batch before = batch;
    const std::vector<SampledRow> together = Sample(batch);
    Batch recorded = before;
    for (int64_t i = 0; i < std::ssize(together); ++i) {
      const SamplingRow& row = before.rows[i];
      Batch alone = before;
      alone.rows = {row};
      alone.logits = {before.LogitsOf(i).begin(), before.LogitsOf(i).end()};
      const SampledRow sampled = Sample(alone)[0];
      EXPECT_EQ(sampled.token_id, together[i].token_id);
      EXPECT_EQ(sampled.logprob, together[i].logprob);
      EXPECT_EQ(sampled.top_ids, together[i].top_ids);
      EXPECT_EQ(sampled.top_logprobs, together[i].top_logprobs);
      if (row.recorded != 0) {
        recorded.history[row.slot * before.max_model_len + row.position] = sampled.token_id;
      }
    }
    EXPECT_EQ(batch.history, recorded.history);
  }
}

INSTANTIATE_TEST_SUITE_P(Schedules, SamplingTest, KernelTest::Seeds());

}  // namespace
}  // namespace shoal::cuda
