// ContextModel: ranks without maths, for tests of the scheduler.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/scheduler/scheduled_batch.h"

namespace shoal {

/// Every token that it gives depends on each token before it, as read from its cache through the
/// block table, and, where a row has penalties, as read from the token history. So a sequence comes
/// out as when it runs alone only if the scheduler keeps cache and history right. As in a real
/// cache, the entry of a token depends on all tokens before it, too.
class ContextModel {
 public:
  static constexpr int32_t kVocabSize = 50;

  ContextModel(int32_t num_ranks, int32_t num_blocks, int32_t block_size, int32_t num_slots)
      : block_size_(block_size),
        ranks_(static_cast<size_t>(num_ranks),
               Rank{std::vector<uint64_t>(static_cast<size_t>(num_blocks * block_size), kNothing),
                    std::vector<std::vector<int32_t>>(
                        static_cast<size_t>(num_slots),
                        std::vector<int32_t>(static_cast<size_t>(num_blocks * block_size), -1))}) {}

  StepResult Run(const ScheduledStep& step) {
    StepResult result;
    result.rows.resize(ranks_.size());
    EXPECT_EQ(step.ranks.size(), ranks_.size());
    for (size_t rank = 0; rank < ranks_.size(); ++rank) {
      RunBatch(step.ranks[rank], ranks_[rank], result.rows[rank]);
    }
    return result;
  }

  /// Makes the cache entry of a token non-finite, and all that follows from it.
  void Poison(int32_t token_id) { poison_ = token_id; }
  int32_t poison() const { return poison_; }

  /// Forgets all that the caches hold.
  void Clear() {
    for (Rank& rank : ranks_) std::ranges::fill(rank.cache, kNothing);
  }

  // What it computes.
  static constexpr uint64_t kStart = 1;
  static constexpr uint64_t kNonFinite = 0;

  /// The cache entry of a token, given that of the token before or kStart.
  uint64_t Entry(uint64_t before, int32_t token_id) const {
    if (before == kNonFinite || token_id == poison_) return kNonFinite;
    return Mix(before, static_cast<uint64_t>(token_id));
  }

  /// What a row sees: all entries up to its own, beginning with kStart.
  static uint64_t See(uint64_t seen, uint64_t entry) {
    return seen == kNonFinite || entry == kNonFinite ? kNonFinite : Mix(seen, entry);
  }

  /// The random number that chooses the token after `tokens`. Penalties look at them again.
  static uint64_t RandomNumber(uint64_t seen, const SamplingRow& row,
                               std::span<const int32_t> tokens) {
    uint64_t random = Mix(seen, row.seed);
    if (row.presence_penalty == 0) return random;
    for (size_t i = 0; i < tokens.size(); ++i) {
      const bool is_generated = std::cmp_greater_equal(i, row.num_prompt_tokens);
      random = Mix(random, static_cast<uint64_t>(tokens[i]) + (is_generated ? 1000 : 0));
    }
    return random;
  }

  /// The first allowed token from a random one on. Every other time a small one, so that sequences
  /// repeat themselves.
  static int32_t Choose(uint64_t random, const auto& is_allowed) {
    const auto first = static_cast<int32_t>((random >> 20) % (random >> 40 & 1 ? kVocabSize : 3));
    for (int32_t i = 0; i < kVocabSize; ++i) {
      const int32_t id = (first + i) % kVocabSize;
      if (is_allowed(id)) return id;
    }
    return SampledRow::kNoneAllowed;
  }

  static float Logprob(uint64_t seen, int32_t token_id) {
    return -1 - static_cast<float>(Mix(seen, static_cast<uint64_t>(token_id)) >> 50);
  }

 private:
  static constexpr uint64_t kNothing = ~uint64_t{0};

  struct Rank {
    std::vector<uint64_t> cache;                // by block * block_size + offset
    std::vector<std::vector<int32_t>> history;  // by slot
  };
  /// What the row of a token has to go by.
  struct Row {
    int64_t position;
    uint64_t seen;
  };

  static uint64_t Mix(uint64_t state, uint64_t value) {
    state = (state + value + 1) * 0x9E3779B97F4A7C15u;
    return (state ^ (state >> 29)) | 1;
  }

  void RunBatch(const ScheduledBatch& batch, Rank& rank, std::vector<SampledRow>& rows) {
    for (const HistoryTokens& tokens : batch.history) {
      std::ranges::copy(tokens.token_ids,
                        rank.history.at(static_cast<size_t>(tokens.slot)).begin());
    }
    for (const BlockCopy& copy : batch.block_copies) {
      std::ranges::copy(BlockOf(rank, copy.source), BlockOf(rank, copy.target).begin());
    }
    Write(batch, rank);
    const std::vector<Row> tokens = Read(batch, rank);
    ASSERT_EQ(batch.logits_rows.size(), batch.sampling.size());
    ASSERT_TRUE(std::ranges::is_sorted(batch.logits_rows));
    for (size_t i = 0; i < batch.sampling.size(); ++i) {
      const Row& token = tokens.at(static_cast<size_t>(batch.logits_rows[i]));
      ASSERT_EQ(batch.sampling[i].position, token.position + 1);
      rows.push_back(Sample(batch, batch.sampling[i], token.seen, rank));
    }
    for (size_t i = 0; i < batch.sampling.size(); ++i) {
      const SamplingRow& row = batch.sampling[i];
      if (row.recorded == 0) continue;
      rank.history.at(static_cast<size_t>(row.slot)).at(static_cast<size_t>(row.position)) =
          rows[i].token_id;
    }
  }

  std::span<uint64_t> BlockOf(Rank& rank, int32_t block) const {
    const auto size = static_cast<size_t>(block_size_);
    return std::span(rank.cache).subspan(static_cast<size_t>(block) * size, size);
  }

  /// Calls `visit` with each sequence of the batch, the indices in the cache of its positions and
  /// the index of its first token in the batch.
  void ForEachSequence(const ScheduledBatch& batch, const Rank& rank, const auto& visit) const {
    size_t first_token = 0, first_block = 0;
    std::vector<size_t> entries;
    for (const ScheduledSequence& sequence : batch.sequences) {
      const auto num_blocks = static_cast<size_t>(sequence.num_blocks);
      entries.clear();
      for (const int32_t block : std::span(batch.block_tables).subspan(first_block, num_blocks)) {
        const size_t first = static_cast<size_t>(block) * static_cast<size_t>(block_size_);
        ASSERT_LT(first, rank.cache.size());
        for (size_t i = 0; i < static_cast<size_t>(block_size_); ++i) entries.push_back(first + i);
      }
      const auto end = static_cast<size_t>(sequence.first_position + sequence.num_tokens);
      ASSERT_LE(end, entries.size());
      entries.resize(end);
      visit(sequence, entries, first_token);
      first_token += static_cast<size_t>(sequence.num_tokens);
      first_block += num_blocks;
    }
    ASSERT_EQ(first_token, batch.token_ids.size());
    ASSERT_EQ(first_block, batch.block_tables.size());
  }

  /// Writes the cache entry and the history of each token.
  void Write(const ScheduledBatch& batch, Rank& rank) const {
    ForEachSequence(batch, rank, [&](const auto& sequence, const auto& entries, size_t token) {
      std::vector<int32_t>& history = rank.history.at(static_cast<size_t>(sequence.slot));
      auto position = static_cast<size_t>(sequence.first_position);
      uint64_t before = position == 0 ? kStart : rank.cache[entries[position - 1]];
      for (; position < entries.size(); ++position) {
        int32_t token_id = batch.token_ids.at(token++);
        if (token_id == ScheduledBatch::kInFlightToken) token_id = history.at(position);
        history.at(position) = token_id;
        rank.cache[entries[position]] = before = Entry(before, token_id);
      }
    });
  }

  /// What each token sees.
  std::vector<Row> Read(const ScheduledBatch& batch, const Rank& rank) const {
    std::vector<Row> tokens;
    ForEachSequence(batch, rank, [&](const auto& sequence, const auto& entries, size_t) {
      uint64_t seen = kStart;
      for (size_t position = 0; position < entries.size(); ++position) {
        const uint64_t entry = rank.cache[entries[position]];
        ASSERT_NE(entry, kNothing) << "read before it was written";
        seen = See(seen, entry);
        const auto at = static_cast<int64_t>(position);
        if (at >= sequence.first_position) tokens.push_back({at, seen});
      }
    });
    return tokens;
  }

  static SampledRow Sample(const ScheduledBatch& batch, const SamplingRow& sampling, uint64_t seen,
                           const Rank& rank) {
    if (seen == kNonFinite) return {};
    const std::span history = rank.history.at(static_cast<size_t>(sampling.slot));
    const auto before = history.first(static_cast<size_t>(sampling.position));
    const auto is_allowed = [&](int32_t id) { return IsAllowed(batch, sampling, id); };
    SampledRow row;
    row.token_id = sampling.forced_token >= 0
                       ? sampling.forced_token
                       : Choose(RandomNumber(seen, sampling, before), is_allowed);
    row.logprob = Logprob(seen, row.token_id);
    for (int i = 0; i < kMaxTopLogprobs; ++i) row.top_ids[static_cast<size_t>(i)] = i;
    return row;
  }

  static bool IsAllowed(const ScheduledBatch& batch, const SamplingRow& row, int32_t id) {
    for (int32_t i = row.first_bias; i < row.first_bias + row.num_biases; ++i) {
      const LogitBias& bias = batch.biases.at(static_cast<size_t>(i));
      if (bias.token_id == id && std::isinf(bias.bias)) return false;
    }
    if (row.mask < 0) return true;
    constexpr size_t kWords = (kVocabSize + 31) / 32;
    const size_t word = static_cast<size_t>(row.mask) * kWords + static_cast<size_t>(id / 32);
    return batch.masks.at(word) >> (id % 32) & 1;
  }

  const int32_t block_size_;
  int32_t poison_ = -1;
  std::vector<Rank> ranks_;
};

}  // namespace shoal
