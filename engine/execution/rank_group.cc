#include "engine/execution/rank_group.h"

#include <algorithm>
#include <mutex>
#include <numeric>
#include <string>
#include <utility>

#include "kernels/comm/local_group.h"

namespace shoal {
namespace {

/// Adds up what the ranks have loaded.
class GroupProgress {
 public:
  GroupProgress(int num_ranks, LoadProgress report)
      : report_(std::move(report)), done_bytes_(num_ranks), total_bytes_(num_ranks) {}

  /// Reports the sum, once every rank has said how much it will load.
  void Add(int rank, int64_t done_bytes, int64_t total_bytes) {
    const std::lock_guard lock(mutex_);
    done_bytes_[rank] = done_bytes;
    total_bytes_[rank] = total_bytes;
    if (!report_ || std::ranges::find(total_bytes_, 0) != total_bytes_.end()) return;
    report_(std::reduce(done_bytes_.begin(), done_bytes_.end()),
            std::reduce(total_bytes_.begin(), total_bytes_.end()));
  }

 private:
  const LoadProgress report_;
  std::mutex mutex_;  // held during a report
  std::vector<int64_t> done_bytes_;
  std::vector<int64_t> total_bytes_;
};

/// `status`, saying whose it is if there are several ranks.
absl::Status OfRank(size_t rank, size_t num_ranks, const absl::Status& status) {
  if (status.ok() || num_ranks == 1) return status;
  return absl::Status(status.code(),
                      fmt::format("rank {}: {}", rank, std::string(status.message())));
}

}  // namespace

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Start(const WorkerConfig& config,
                                                            LoadProgress progress) {
  const int num_ranks = config.num_ranks;
  ASSIGN_OR_RETURN(
      const ExpertPlacement placement,
      ExpertPlacement::Create(config.runner.model, num_ranks, config.num_redundant_experts));
  const auto group_progress = std::make_shared<GroupProgress>(num_ranks, std::move(progress));
  auto communicators = MakeLocalGroup(num_ranks);
  std::unique_ptr<RankGroup> group(new RankGroup);
  for (int rank = 0; rank < num_ranks; ++rank) {
    ASSIGN_OR_RETURN(
        auto worker,
        Worker::Launch(config, placement, std::move(communicators[rank]),
                       [group_progress, rank](int64_t done_bytes, int64_t total_bytes) {
                         group_progress->Add(rank, done_bytes, total_bytes);
                       }));
    group->workers_.push_back(std::move(worker));
  }
  absl::Status status;
  for (size_t rank = 0; rank < group->workers_.size(); ++rank) {
    const absl::StatusOr<MemoryPlan> plan = group->workers_[rank]->WaitUntilReady();
    status.Update(OfRank(rank, group->workers_.size(), plan.status()));
    group->memory_plans_.push_back(plan.value_or(MemoryPlan()));
    group->num_kv_blocks_.push_back(group->memory_plans_.back().num_kv_blocks);
  }
  RETURN_IF_ERROR(status);
  return group;
}

// The workers run until they have no step left, one ends after the other.
RankGroup::~RankGroup() = default;

void RankGroup::Post(ScheduledStep step) {
  SHOAL_CHECK(step.ranks.size() == workers_.size(), "a step of {} ranks, of which there are {}",
              step.ranks.size(), workers_.size());
  for (size_t rank = 0; rank < workers_.size(); ++rank) {
    workers_[rank]->Post(std::move(step.ranks[rank]));
  }
}

StepResult RankGroup::Take() {
  StepResult result;
  for (const auto& worker : workers_) worker->Ask();
  for (size_t rank = 0; rank < workers_.size(); ++rank) {
    absl::StatusOr<std::vector<SampledRow>> rows = workers_[rank]->Take();
    result.status.Update(OfRank(rank, workers_.size(), rows.status()));
    result.rows.push_back(rows.ok() ? *std::move(rows) : std::vector<SampledRow>());
  }
  return result;
}

}  // namespace shoal
