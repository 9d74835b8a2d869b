// ContextModel: ranks without maths, for tests of the scheduler.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "engine/scheduler/scheduled_batch.h"

namespace shoal {

/// Every token that it gives depends on each token before it, as read from its cache through the
/// block table, and, where a row has penalties, as read from the token history. So a sequence comes
/// out as when it runs alone only if the scheduler keeps cache and history right.
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

 private:
  static constexpr uint64_t kNonFinite = 0;
  static constexpr uint64_t kNothing = ~uint64_t{0};

  struct Rank {
    std::vector<uint64_t> cache;                // by block * block_size + offset
    std::vector<std::vector<int32_t>> history;  // by slot
  };
  struct Row {
    const ScheduledSequence* sequence;
    std::vector<int64_t> slots;  // of the cache, of positions [0, that of the row]
    int64_t position;
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
      for (int32_t i = 0; i < block_size_; ++i) {
        rank.cache.at(static_cast<size_t>(copy.target * block_size_ + i)) =
            rank.cache.at(static_cast<size_t>(copy.source * block_size_ + i));
      }
    }
    const std::vector<Row> tokens = Write(batch, rank);
    ASSERT_EQ(batch.logits_rows.size(), batch.sampling.size());
    ASSERT_TRUE(std::ranges::is_sorted(batch.logits_rows));
    for (size_t i = 0; i < batch.sampling.size(); ++i) {
      const Row& token = tokens.at(static_cast<size_t>(batch.logits_rows[i]));
      ASSERT_EQ(batch.sampling[i].position, token.position + 1);
      rows.push_back(Sample(batch, batch.sampling[i], token, rank));
    }
    for (size_t i = 0; i < batch.sampling.size(); ++i) {
      const SamplingRow& row = batch.sampling[i];
      if (row.recorded == 0) continue;
      rank.history.at(static_cast<size_t>(row.slot)).at(static_cast<size_t>(row.position)) =
          rows[i].token_id;
    }
  }

  /// Writes the cache entry of each token; says what a row of each can see.
  std::vector<Row> Write(const ScheduledBatch& batch, Rank& rank) {
    std::vector<Row> tokens;
    size_t next_token = 0, next_block = 0;
    for (const ScheduledSequence& sequence : batch.sequences) {
      std::vector<int32_t>& history = rank.history.at(static_cast<size_t>(sequence.slot));
      const auto slot = [&](int64_t position) {
        EXPECT_LT(position / block_size_, sequence.num_blocks);
        const size_t block = next_block + static_cast<size_t>(position / block_size_);
        return batch.block_tables.at(block) * int64_t{block_size_} + position % block_size_;
      };
      std::vector<int64_t> slots;
      for (int64_t position = 0; position < sequence.first_position; ++position) {
        slots.push_back(slot(position));
      }
      for (int32_t i = 0; i < sequence.num_tokens; ++i) {
        const int64_t position = sequence.first_position + i;
        int32_t token_id = batch.token_ids.at(next_token++);
        int32_t& recorded = history.at(static_cast<size_t>(position));
        if (token_id == ScheduledBatch::kInFlightToken) token_id = recorded;
        recorded = token_id;
        slots.push_back(slot(position));
        rank.cache.at(static_cast<size_t>(slots.back())) =
            token_id == poison_ ? kNonFinite : static_cast<uint64_t>(token_id + 1);
        tokens.push_back({&sequence, slots, position});
      }
      next_block += static_cast<size_t>(sequence.num_blocks);
    }
    EXPECT_EQ(next_token, batch.token_ids.size());
    EXPECT_EQ(next_block, batch.block_tables.size());
    return tokens;
  }

  SampledRow Sample(const ScheduledBatch& batch, const SamplingRow& sampling, const Row& token,
                    const Rank& rank) const {
    uint64_t state = 1;
    for (const int64_t slot : token.slots) {
      const uint64_t entry = rank.cache.at(static_cast<size_t>(slot));
      EXPECT_NE(entry, kNothing) << "read before it was written";
      if (entry == kNonFinite) return {};
      state = Mix(state, entry);
    }
    uint64_t draw = Mix(state, sampling.seed);
    if (sampling.presence_penalty != 0) {
      const auto& history = rank.history.at(static_cast<size_t>(sampling.slot));
      for (int64_t p = 0; p < sampling.position; ++p) {
        draw = Mix(draw, static_cast<uint64_t>(history.at(static_cast<size_t>(p))) +
                             (p < sampling.num_prompt_tokens ? 0 : 1000));
      }
    }
    SampledRow row;
    row.token_id = sampling.forced_token >= 0 ? sampling.forced_token : Draw(batch, sampling, draw);
    row.logprob = -1 - static_cast<float>(Mix(state, static_cast<uint64_t>(row.token_id)) >> 50);
    for (int i = 0; i < kMaxTopLogprobs; ++i) row.top_ids[static_cast<size_t>(i)] = i;
    return row;
  }

  /// The first token from a drawn one on that mask and biases allow. Every other time a small one,
  /// so that sequences repeat themselves.
  static int32_t Draw(const ScheduledBatch& batch, const SamplingRow& row, uint64_t draw) {
    const auto first = static_cast<int32_t>((draw >> 20) % (draw >> 40 & 1 ? kVocabSize : 3));
    for (int32_t i = 0; i < kVocabSize; ++i) {
      const int32_t id = (first + i) % kVocabSize;
      bool allowed = true;
      for (int32_t b = row.first_bias; b < row.first_bias + row.num_biases; ++b) {
        const LogitBias& bias = batch.biases.at(static_cast<size_t>(b));
        allowed = allowed && !(bias.token_id == id && std::isinf(bias.bias));
      }
      constexpr size_t kWords = (kVocabSize + 31) / 32;
      if (row.mask >= 0) {
        const size_t word = static_cast<size_t>(row.mask) * kWords + static_cast<size_t>(id / 32);
        allowed = allowed && (batch.masks.at(word) >> (id % 32) & 1);
      }
      if (allowed) return id;
    }
    return SampledRow::kNoneAllowed;
  }

  const int32_t block_size_;
  int32_t poison_ = -1;
  std::vector<Rank> ranks_;
};

}  // namespace shoal
