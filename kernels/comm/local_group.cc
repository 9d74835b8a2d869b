#include "kernels/comm/local_group.h"

#include <algorithm>
#include <atomic>
#include <string_view>
#include <utility>

#include "kernels/comm/collective.h"
#include "kernels/status.h"

namespace shoal {
namespace {

/// What a rank shows to the others while it is in a collective.
struct Call {
  std::string_view name;
  Tensor rows;
  std::span<const int64_t> counts;
  int experts_per_rank = 0;

  bool AgreesWith(const Call& other) const {
    return name == other.name && SameRowShape(rows, other.rows) &&
           std::ranges::equal(counts, other.counts) && experts_per_rank == other.experts_per_rank;
  }
};

class LocalGroup {
 public:
  explicit LocalGroup(int size) : calls_(size) {}

  int size() const { return static_cast<int>(calls_.size()); }

  /// Begins a collective: once it returns, every rank's call may be read until End().
  void Begin(int rank, const Call& call) {
    calls_[rank] = call;
    Wait();
    for (int other = 0; other < size(); ++other) {
      SHOAL_CHECK(call.AgreesWith(calls_[other]),
                  "rank {} is in {} with counts {}, rank {} in {} with counts {}, or the shapes of "
                  "their rows differ",
                  rank, call.name, fmt::join(call.counts, ", "), other, calls_[other].name,
                  fmt::join(calls_[other].counts, ", "));
    }
  }

  /// Ends it: once it returns, nobody reads this rank's rows any more.
  void End() { Wait(); }

  const Call& call(int rank) const { return calls_[rank]; }

 private:
  /// Returns when all ranks have called it equally often. Waiting is left to the operating system,
  /// because the core may be another rank's.
  void Wait() {
    const uint32_t round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < size()) {
      return round_.wait(round, std::memory_order_acquire);
    }
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    round_.notify_all();
  }

  std::vector<Call> calls_;  // by rank
  std::atomic<int> arrived_ = 0;
  std::atomic<uint32_t> round_ = 0;
};

class LocalRank final : public Communicator {
 public:
  LocalRank(std::shared_ptr<LocalGroup> group, int rank) : group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }

  void AllGather(const Tensor& local, std::span<const int64_t> counts, const Tensor& all) override {
    CheckAllGather({rank_, counts}, size(), local, all);
    group_->Begin(rank_, {.name = "AllGather", .rows = local, .counts = counts});
    auto* to = all.as<std::byte>();
    for (int rank = 0; rank < size(); ++rank) {
      const Tensor& rows = group_->call(rank).rows;
      CopyBytes(rows.data, rows.size_bytes(), to);
      to += rows.size_bytes();
    }
    group_->End();
  }

  void ReturnRows(const Tensor& rows, const Tensor& expert_ids, int experts_per_rank,
                  std::span<const int64_t> counts, const Tensor& out) override {
    const RowCounts row_counts = {rank_, counts};
    CheckReturnRows(row_counts, size(), rows, expert_ids, out);
    group_->Begin(rank_, {.name = "ReturnRows",
                          .rows = rows,
                          .counts = counts,
                          .experts_per_rank = experts_per_rank});
    const int64_t row_bytes = rows.shape[2] * SizeOf(rows.dtype);
    const int64_t first = row_counts.first() * rows.shape[1];
    const auto* ids = expert_ids.as<const int32_t>();
    auto* to = out.as<std::byte>();
    for (int64_t i = 0; i < expert_ids.num_elements(); ++i) {
      SHOAL_CHECK(ids[i] >= 0 && ids[i] < int64_t{experts_per_rank} * size(),
                  "expert {} of {} ranks with {} each", ids[i], size(), experts_per_rank);
      const auto* from = group_->call(ids[i] / experts_per_rank).rows.as<const std::byte>();
      CopyBytes(from + (first + i) * row_bytes, row_bytes, to + i * row_bytes);
    }
    group_->End();
  }

 private:
  const std::shared_ptr<LocalGroup> group_;
  const int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeLocalGroup(int size) {
  SHOAL_CHECK(size >= 1, "a group of {} ranks", size);
  const auto group = std::make_shared<LocalGroup>(size);
  std::vector<std::unique_ptr<Communicator>> ranks;
  ranks.reserve(size);
  for (int rank = 0; rank < size; ++rank) {
    ranks.push_back(std::make_unique<LocalRank>(group, rank));
  }
  return ranks;
}

}  // namespace shoal
