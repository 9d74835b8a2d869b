// BlockOracle: who owns which block, counted from the tables of all who run.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "tests/engine/scheduler/scheduler_fixture.h"
#include "tests/engine/scheduler/watchlist.h"

namespace shoal {

/// Holds block pools, slots and steps against the tables. What blocks hold is the business of
/// ContextModel.
class BlockOracle {
 public:
  BlockOracle(const SchedulerFixture& fixture, const Watchlist& watchlist)
      : options_(fixture.options), pools_(fixture.pools), watchlist_(watchlist) {
    const auto num_blocks = static_cast<size_t>(options_.num_blocks);
    ranks_.resize(pools_.size(), std::vector<Block>(num_blocks));
    for (int32_t block = 0; block < options_.num_blocks; ++block) all_.push_back(block);
  }

  /// Counts the owners of all blocks. `running`: all who have blocks.
  void Check(std::span<const Sequence* const> running) {
    by_slot_.assign(static_cast<size_t>(options_.max_num_seqs), nullptr);
    for (auto& blocks : ranks_) {
      for (Block& block : blocks) block.num_owners = 0;
    }
    for (const Sequence* const sequence : running) CountBlocks(*sequence);
    for (size_t rank = 0; rank < pools_.size(); ++rank) CheckPool(pools_[rank], ranks_[rank]);
  }

  /// After Check(): what the step just scheduled reads and writes.
  void CheckStep(const ScheduledStep& step) {
    is_in_step_.assign(by_slot_.size(), false);
    for (size_t rank = 0; rank < step.ranks.size(); ++rank) {
      CheckBatch(step.ranks[rank], static_cast<int32_t>(rank));
      CheckCopies(step.ranks[rank], ranks_[rank]);
    }
    for (const ScheduledBatch& batch : step.ranks) {
      for (const ScheduledSequence& scheduled : batch.sequences) CheckBlocks(scheduled);
    }
    EXPECT_LE(step.num_tokens(), options_.max_num_batched_tokens);
  }

  /// For a sequence that has just got a token, if the prefix cache was never reset: every full
  /// block that this token saw can be found.
  void CheckPublished(const Sequence& sequence) const {
    if (!options_.enable_prefix_caching) return;
    const BlockPool& pool = pools_[static_cast<size_t>(sequence.rank)];
    const int64_t num_seen = sequence.num_known_tokens() - 1;
    EXPECT_EQ(
        pool.FindPrefix(sequence.request->scheduling().cache_domain, sequence.token_ids, num_seen),
        num_seen / options_.block_size * options_.block_size);
  }

  /// Nothing is found that was computed from non-finite logits.
  void CheckNotPublished(const Watched& watched, int32_t poison) const {
    Tokens tokens = watched.request->prompt_token_ids();
    for (const TokenOutput& output : watched.stream().tokens()) tokens.push_back(output.token_id);
    const int64_t num_good = std::ranges::find(tokens, poison) - tokens.begin();
    for (const BlockPool& pool : pools_) {
      EXPECT_LE(
          pool.FindPrefix(watched.request->scheduling().cache_domain, tokens, std::ssize(tokens)),
          num_good);
    }
  }

  bool IsInStep(const Sequence& sequence) const {
    return is_in_step_[static_cast<size_t>(sequence.slot)];
  }
  bool HasIdleRank() const {
    return std::ranges::any_of(ranks_, [](const auto& blocks) {
      return std::ranges::all_of(blocks, [](const Block& block) { return block.num_owners == 0; });
    });
  }

 private:
  struct Block {
    int32_t num_owners = 0;
    const Sequence* last_owner = nullptr;
    int32_t domain = -1;  // of the sequence that wrote it
  };

  void CountBlocks(const Sequence& sequence) {
    ASSERT_LT(static_cast<size_t>(sequence.slot), by_slot_.size());
    const Sequence*& in_slot = by_slot_[static_cast<size_t>(sequence.slot)];
    EXPECT_EQ(in_slot, nullptr) << "two sequences in slot " << sequence.slot;
    in_slot = &sequence;
    // What is in flight keeps its blocks, even if it has ended.
    EXPECT_GE(std::ssize(sequence.block_table) * options_.block_size,
              sequence.num_scheduled_tokens);
    for (const int32_t number : sequence.block_table) {
      Block& block = BlockOf(sequence.rank, number);
      EXPECT_FALSE(block.num_owners > 0 && block.last_owner == &sequence) << "twice in one table";
      block.last_owner = &sequence;
      ++block.num_owners;
    }
  }

  /// The pool tells free, owned and shared blocks apart.
  void CheckPool(const BlockPool& pool, std::span<const Block> blocks) {
    BlockTable alone, shared;
    for (const int32_t number : all_) {
      const int32_t num_owners = blocks[static_cast<size_t>(number)].num_owners;
      if (num_owners == 1) alone.push_back(number);
      if (num_owners > 1) shared.push_back(number);
    }
    const BlockPoolStats stats = pool.stats();
    EXPECT_EQ(stats.num_free + std::ssize(alone) + std::ssize(shared), options_.num_blocks);
    EXPECT_EQ(stats.num_shared, std::ssize(shared));
    EXPECT_LE(stats.num_cached, stats.num_free);
    EXPECT_EQ(pool.NumOwnedAlone(all_), std::ssize(alone));
    EXPECT_EQ(pool.NumOwnedAlone(alone), std::ssize(alone));
    for (int64_t i = 0; i < std::ssize(shared); ++i) {
      EXPECT_TRUE(pool.NeedsCopy(shared, i * options_.block_size)) << "block " << shared[i];
    }
  }

  /// All copies are made at once, before the step writes anything.
  void CheckCopies(const ScheduledBatch& batch, std::span<Block> blocks) {
    for (const BlockCopy& copy : batch.block_copies) {
      for (const BlockCopy& other : batch.block_copies) {
        EXPECT_NE(copy.source, other.target);
        EXPECT_TRUE(&copy == &other || copy.target != other.target);
      }
      blocks[static_cast<size_t>(copy.target)].domain =
          blocks[static_cast<size_t>(copy.source)].domain;
    }
  }

  /// Whoever runs is there once at most, on its rank, with its blocks.
  void CheckBatch(const ScheduledBatch& batch, int32_t rank) {
    size_t first_block = 0;
    for (const ScheduledSequence& scheduled : batch.sequences) {
      const auto slot = static_cast<size_t>(scheduled.slot);
      const Sequence* const sequence = by_slot_.at(slot);
      ASSERT_TRUE(sequence != nullptr && !sequence->ended) << "nobody runs in slot " << slot;
      EXPECT_FALSE(is_in_step_[slot]) << "twice in one step";
      is_in_step_[slot] = true;
      EXPECT_EQ(sequence->rank, rank);
      const auto num_blocks = static_cast<size_t>(scheduled.num_blocks);
      EXPECT_TRUE(std::ranges::equal(std::span(batch.block_tables).subspan(first_block, num_blocks),
                                     sequence->block_table));
      first_block += num_blocks;
    }
  }

  /// Blocks that are read were written for the same domain; one that is written belongs to the
  /// sequence alone, and to forks that the step makes.
  void CheckBlocks(const ScheduledSequence& scheduled) {
    const Sequence& sequence = *by_slot_.at(static_cast<size_t>(scheduled.slot));
    const int32_t domain = watchlist_.Of(sequence).domain;
    const int64_t end = scheduled.first_position + scheduled.num_tokens;
    ASSERT_LE(end, std::ssize(sequence.block_table) * options_.block_size);
    for (int64_t first = 0; first < end; first += options_.block_size) {
      const int32_t number = sequence.block_table[static_cast<size_t>(first / options_.block_size)];
      Block& block = BlockOf(sequence.rank, number);
      if (first < scheduled.first_position) EXPECT_EQ(block.domain, domain);
      if (first + options_.block_size <= scheduled.first_position) continue;
      block.domain = domain;
      const int32_t num_others = block.num_owners - 1;
      if (num_others > 0) EXPECT_EQ(num_others, NumForksOwning(sequence, number));
    }
  }

  /// Of the forks of `leader` that the step makes: they run, but are not in it.
  int64_t NumForksOwning(const Sequence& leader, int32_t block) const {
    return std::ranges::count_if(by_slot_, [&](const Sequence* sequence) {
      if (sequence == nullptr || sequence->rank != leader.rank || IsInStep(*sequence)) return false;
      const Watched& watched = watchlist_.Of(*sequence);
      return watched.place_before != Watched::Place::kRuns &&
             watched.call == watchlist_.Of(leader).call &&
             std::ranges::find(sequence->block_table, block) != sequence->block_table.end();
    });
  }

  Block& BlockOf(int32_t rank, int32_t block) {
    return ranks_[static_cast<size_t>(rank)].at(static_cast<size_t>(block));
  }

  const SchedulerFixture::Options& options_;
  const std::vector<BlockPool>& pools_;
  const Watchlist& watchlist_;
  std::vector<std::vector<Block>> ranks_;
  BlockTable all_;                        // every block
  std::vector<const Sequence*> by_slot_;  // null: free
  std::vector<bool> is_in_step_;          // by slot
};

}  // namespace shoal
