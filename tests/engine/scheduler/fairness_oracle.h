// FairnessOracle: whose turn it was, and that everybody's comes.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/scheduler/block_oracle.h"
#include "tests/engine/scheduler/scheduler_fixture.h"
#include "tests/engine/scheduler/watchlist.h"

namespace shoal {

/// Nobody starves, because
///  1. a step that is not empty computes at least one token that is no draft, and there is one
///     while anybody waits or runs;
///  2. nobody is preempted more than K = kMaxPreemptions times, so whoever has begun computes
///     (K + 1) L tokens at most, L being the longest length;
///  3. who has begun goes before all who have not. So at any time there are N = max_num_seqs *
///     max_choices at most who have begun and not ended, and who is passed over, running or
///     preempted, is so by N (K + 1) L steps in a row at most;
///  4. of one tenant nobody begins before his turn, and of two tenants the one served less goes
///     first. So while a request of tenant u waits, any tenant v gets no more service than up to
///     that of u, and N L for those who have begun by then.
/// Each of these is checked, and what follows from all of them for the steps that a request waits.
class FairnessOracle {
 public:
  struct Limits {
    int32_t num_tenants;  // of names "0", "1", ...
    int32_t max_choices;
    int64_t max_length;
  };

  FairnessOracle(const SchedulerFixture& fixture, const Watchlist& watchlist, const Limits& limits)
      : options_(fixture.options),
        scheduler_(fixture.scheduler),
        watchlist_(watchlist),
        num_tenants_(static_cast<size_t>(limits.num_tenants)),
        max_length_(limits.max_length),
        max_begun_(int64_t{limits.max_choices} * options_.max_num_seqs) {}

  /// After it was added.
  void NoteArrival(Watched& watched) {
    watched.steps_before = num_steps_;
    watched.begun_before = num_begun_;
    watched.service_before = Service();
  }

  void BeforeSchedule() {
    service_ = Service();
    work_ = Work();
    for (Watched* const watched : watchlist_.live()) watched->place_before = watched->place;
  }

  /// After the watchlist was brought up to date and `blocks` has seen the step.
  void CheckSchedule(const ScheduledStep& step, std::span<const Sequence* const> running,
                     const BlockOracle& blocks) {
    if (step.empty()) {
      EXPECT_TRUE(scheduler_.num_steps_in_flight() > 0 || scheduler_.idle());
      return;
    }
    ++num_steps_;
    const std::vector<int64_t> service = Service();
    EXPECT_EQ(std::reduce(service.begin(), service.end()) - Work(),
              std::reduce(service_.begin(), service_.end()) - work_);
    CheckTurns(service);
    CheckRunning(running, blocks);
    const bool has_room = step.num_tokens() < options_.max_num_batched_tokens &&
                          std::ssize(running) < options_.max_num_seqs && blocks.HasIdleRank();
    const bool waits = std::ranges::any_of(
        watchlist_.live(), [](const Watched* watched) { return watched->place == Place::kWaits; });
    EXPECT_FALSE(has_room && waits) << "a rank is idle";
  }

  int64_t num_steps() const { return num_steps_; }
  int64_t num_begun() const { return num_begun_; }
  int64_t longest_wait() const { return longest_wait_; }                // steps
  double max_share_of_bound() const { return max_share_of_bound_; }     // of a wait
  int64_t longest_passed_over() const { return longest_passed_over_; }  // steps

 private:
  using Place = Watched::Place;

  std::vector<int64_t> Service() const {
    std::vector<int64_t> service(num_tenants_);
    for (const Tenant& tenant : scheduler_.Tenants()) {
      service[std::stoul(tenant.name)] = tenant.service_tokens;
    }
    return service;
  }

  /// Tokens that steps computed for the first time.
  int64_t Work() const {
    const SchedulerStats stats = scheduler_.stats();
    return stats.prefill_tokens + stats.decode_tokens - stats.recomputed_tokens;
  }

  /// Who begins does so in his turn.
  void CheckTurns(std::span<const int64_t> service) {
    std::vector<const Watched*> began, waiting;  // of each call that had not begun, its first
    int32_t last_call = -1;
    bool waits_again = false;
    for (Watched* const watched : watchlist_.live()) {
      if (watched->place == Place::kEnded) continue;
      if (watched->begun) {
        if (watched->place != Place::kWaits || watched->place_before != Place::kWaits) continue;
        waits_again = true;
        PassOver(*watched);
      } else if (watched->place == Place::kFollows || JustForked(*watched)) {
        last_call = watched->call;
      } else if (std::exchange(last_call, watched->call) != watched->call) {
        (watched->place == Place::kRuns ? began : waiting).push_back(watched);
      }
    }
    EXPECT_FALSE(waits_again && !began.empty()) << "somebody who ran before waits still";
    for (const Watched* const first : began) {
      for (const Watched* const second : waiting) {
        EXPECT_TRUE(GoesFirst(*first, *second, service))
            << "request " << first->number << " before " << second->number;
      }
    }
    for (Watched* const watched : watchlist_.live()) {
      if (watched->place == Place::kRuns && !std::exchange(watched->begun, true)) ++num_begun_;
    }
    for (const Watched* const watched : waiting) CheckWait(*watched, service);
  }

  /// It runs now because its leader has read their prompt.
  static bool JustForked(const Watched& watched) {
    return watched.place == Place::kRuns && watched.place_before == Place::kFollows;
  }

  bool GoesFirst(const Watched& first, const Watched& second,
                 std::span<const int64_t> service) const {
    if (first.tenant != second.tenant) {
      // Somewhere in between, the one had been served as much as the other at most.
      return service_[first.tenant] <= service[second.tenant];
    }
    const auto turn = [this](const Watched& watched) {
      const Request& request = *watched.request;
      return std::pair(request.arrival() + request.scheduling().priority * options_.priority_step,
                       watched.number);
    };
    return turn(first) < turn(second);
  }

  /// What follows from 1 to 4 for a request that has not begun.
  void CheckWait(const Watched& watched, std::span<const int64_t> service) {
    constexpr int64_t kMaxPreemptions = Scheduler::kMaxPreemptions;
    const int64_t own = service[watched.tenant];
    const int64_t num_begun = num_begun_ - watched.begun_before;
    int64_t most = kMaxPreemptions * max_length_ * (max_begun_ + num_begun);  // recomputed
    for (size_t tenant = 0; tenant < service.size(); ++tenant) {
      const int64_t before = watched.service_before[tenant];
      const int64_t level =
          tenant == watched.tenant ? own : std::max(before, own) + max_begun_ * max_length_;
      EXPECT_LE(service[tenant], level) << "tenant " << tenant << " before " << watched.tenant;
      most += level - before;
    }
    const int64_t waited = num_steps_ - watched.steps_before;
    EXPECT_LE(waited, most) << "request " << watched.number << " starves";
    longest_wait_ = std::max(longest_wait_, waited);
    max_share_of_bound_ =
        std::max(max_share_of_bound_, static_cast<double>(waited) / static_cast<double>(most));
  }

  /// Nobody is admitted while somebody who could run does not.
  void CheckRunning(std::span<const Sequence* const> running, const BlockOracle& blocks) {
    const bool admits = std::ranges::any_of(running, [&](const Sequence* sequence) {
      return !sequence->ended && blocks.IsInStep(*sequence) &&
             watchlist_.Of(*sequence).place_before == Place::kWaits;
    });
    for (const Sequence* const sequence : running) {
      Watched& watched = watchlist_.Of(*sequence);
      EXPECT_LE(sequence->num_preemptions, Scheduler::kMaxPreemptions);
      if (blocks.IsInStep(*sequence)) watched.num_passed_over = 0;
      const bool needs_known =
          options_.num_speculative_tokens > 0 || sequence->request->sampling().mask != nullptr;
      const bool can_run = !sequence->ended && watched.place_before == Place::kRuns &&
                           sequence->num_tokens_to_schedule() > 0 &&
                           (sequence->num_chosen_in_flight == 0 || !needs_known);
      if (!can_run || blocks.IsInStep(*sequence)) continue;
      EXPECT_FALSE(admits) << "request " << watched.number << " is passed over";
      PassOver(watched);
    }
  }

  void PassOver(Watched& watched) {
    const int64_t most = max_begun_ * (Scheduler::kMaxPreemptions + 1) * max_length_;
    EXPECT_LE(++watched.num_passed_over, most) << "request " << watched.number << " starves";
    longest_passed_over_ = std::max(longest_passed_over_, watched.num_passed_over);
  }

  const SchedulerFixture::Options& options_;
  const Scheduler& scheduler_;
  const Watchlist& watchlist_;
  const size_t num_tenants_;
  const int64_t max_length_;
  const int64_t max_begun_;
  // Before the last Schedule().
  std::vector<int64_t> service_;  // by tenant
  int64_t work_ = 0;
  int64_t num_steps_ = 0;
  int64_t num_begun_ = 0;
  int64_t longest_wait_ = 0;
  int64_t longest_passed_over_ = 0;
  double max_share_of_bound_ = 0;
};

}  // namespace shoal
