#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <numeric>
#include <utility>
#include <vector>

#include "tests/engine/scheduler/block_oracle.h"
#include "tests/engine/scheduler/fairness_oracle.h"
#include "tests/engine/scheduler/random_calls.h"
#include "tests/engine/scheduler/scheduler_fixture.h"
#include "tests/engine/scheduler/stream_oracle.h"
#include "tests/engine/scheduler/watchlist.h"

namespace shoal {
namespace {

#if defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
constexpr int64_t kNumOperations = 100'000;  // the sanitizers look for other faults, and are slow
#else
constexpr int64_t kNumOperations = 1'000'000;
#endif
#else
constexpr int64_t kNumOperations = 1'000'000;
#endif
constexpr int64_t kOperationsPerRound = 2000;

enum Operation { kAdd, kSchedule, kUpdate, kCancel, kExpire, kReset, kAbort, kFail };
constexpr std::array kOperationNames = {"add",    "schedule",    "update", "cancel",
                                        "expire", "reset cache", "abort",  "device failure"};

/// What all rounds did.
struct Counts {
  std::array<int64_t, kOperationNames.size()> operations = {};
  StreamOracle::Ends ends = {};
  int64_t steps = 0, step_tokens = 0, begun = 0, forks = 0, copies = 0;
  int64_t preemptions = 0, recomputed_tokens = 0, accepted_tokens = 0, cached_tokens = 0;
  int64_t longest_wait = 0, longest_passed_over = 0;
  double max_share_of_bound = 0;
};

/// Random operations on a scheduler with random options; everything is checked after each.
class Round {
 public:
  Round(uint32_t seed, Counts& counts)
      : random_(seed),
        options_(RandomOptions(random_)),
        fixture_(options_.scheduler),
        caller_(options_, random_),
        blocks_(fixture_, watchlist_),
        fairness_(fixture_, watchlist_,
                  {options_.num_tenants, options_.max_choices, options_.max_length}),
        streams_(fixture_.options),
        counts_(counts) {
    if (options_.has_poison) fixture_.model.Poison(Caller::kPoison);
  }

  void Run() {
    for (int64_t i = 0; i < kOperationsPerRound && !testing::Test::HasFailure(); ++i) {
      Do(PickOperation());
    }
    for (int64_t i = 0; !fixture_.scheduler.idle() && !testing::Test::HasFailure(); ++i) {
      ASSERT_LT(i, 1'000'000) << "no progress";
      Do(CanSchedule() && !(last_was_empty_ && CanUpdate()) ? kSchedule : kUpdate);
    }
    if (testing::Test::HasFailure()) return;
    CheckEnd();
    AddCounts();
  }

 private:
  /// A sequence's part in a step in flight.
  struct Flight {
    const Watched* watched;
    int64_t num_tokens;
    int64_t num_drafts;
  };

  bool CanSchedule() const {
    return std::ssize(steps_) <= options_.max_ahead && !fixture_.scheduler.idle();
  }
  bool CanUpdate() const { return !steps_.empty(); }

  Operation PickOperation() {
    const int32_t number = random_.Below(10'000);
    const bool has_live = !watchlist_.live().empty();
    if (number < 8) return kFail;
    if (number < 12) return kAbort;
    if (number < 60) return kReset;
    if (number < 100 && has_live && options_.has_deadlines) return kExpire;
    if (number < 300 && has_live) return kCancel;
    if (number < 3000 && watchlist_.live().size() < options_.max_live) return kAdd;
    if (CanSchedule() && (number < 6500 || !CanUpdate())) return kSchedule;
    return CanUpdate() ? kUpdate : kAdd;
  }

  void Do(Operation operation) {
    ++counts_.operations[operation];
    switch (operation) {
      case kAdd:
        return Add();
      case kSchedule:
        return Schedule();
      case kUpdate:
        return Update();
      case kCancel:
        AnyOne().request->Cancel();
        return Check();
      case kExpire:
        return Expire();
      case kReset:
        ResetPrefixCache();
        return Check();
      case kAbort:
      case kFail:
        return Abort(operation == kFail);
    }
  }

  Watched& AnyOne() {
    const auto& live = watchlist_.live();
    return *live[static_cast<size_t>(random_.Below(static_cast<int32_t>(live.size())))];
  }

  void Add() {
    const auto choices = caller_.Call(watchlist_.next_seed());
    watchlist_.Add(fixture_.model, choices);
    fixture_.scheduler.Add(choices);
    const auto& live = watchlist_.live();
    for (auto it = live.end() - std::ssize(choices); it != live.end(); ++it) {
      fairness_.NoteArrival(**it);
    }
    Check();
  }

  void Schedule() {
    fairness_.BeforeSchedule();
    const Clock::time_point now = Clock::now();
    ScheduledStep step = fixture_.scheduler.Schedule();
    last_was_empty_ = step.empty();
    running_ = fixture_.scheduler.Running();
    watchlist_.Locate(running_);
    for (const Watched* const watched : watchlist_.live()) StreamOracle::CheckDue(*watched, now);
    blocks_.Check(running_);
    blocks_.CheckStep(step);
    fairness_.CheckSchedule(step, running_, blocks_);
    if (!step.empty()) Depart(std::move(step));
    Check();
  }

  void Depart(ScheduledStep step) {
    std::vector<Flight>& flights = flights_.emplace_back();
    for (const ScheduledBatch& batch : step.ranks) {
      counts_.copies += std::ssize(batch.block_copies);
      for (const ScheduledSequence& scheduled : batch.sequences) {
        const auto sequence = *std::ranges::find(running_, scheduled.slot, &Sequence::slot);
        const Watched& watched = watchlist_.Of(*sequence);
        flights.push_back({&watched, scheduled.num_tokens, std::ssize(sequence->drafts)});
        const bool is_new = watched.place_before == Watched::Place::kWaits;
        const bool may_find =
            fixture_.options.enable_prefix_caching && num_updates_since_reset_ > 0;
        if (is_new && !may_find) EXPECT_EQ(scheduled.first_position, 0);
      }
    }
    for (const Sequence* const sequence : running_) {
      const bool is_new = watchlist_.Of(*sequence).place_before != Watched::Place::kRuns;
      counts_.forks += is_new && !blocks_.IsInStep(*sequence) ? 1 : 0;
    }
    step_tokens_ += step.num_tokens();
    steps_.push_back(std::move(step));
  }

  void Update() {
    for (const Flight& flight : flights_.front()) {
      discarded_tokens_ += flight.watched->ended() ? flight.num_tokens : flight.num_drafts;
    }
    const int64_t num_accepted = fixture_.scheduler.stats().accepted_tokens;
    fixture_.scheduler.Update(fixture_.model.Run(steps_.front()));
    discarded_tokens_ -= fixture_.scheduler.stats().accepted_tokens - num_accepted;
    steps_.pop_front();
    flights_.pop_front();
    ++num_updates_since_reset_;
    for (const Sequence* const sequence : fixture_.scheduler.Running()) {
      const Watched& watched = watchlist_.Of(*sequence);
      const bool is_new = watched.stream().tokens().size() > watched.num_checked;
      if (is_new && !watched.ended() && !was_reset_) blocks_.CheckPublished(*sequence);
    }
    Check();
  }

  /// Waits until somebody's deadline has passed, if anybody has one.
  void Expire() {
    for (const Watched* const watched : watchlist_.live()) {
      const Clock::time_point deadline = watched->request->scheduling().deadline;
      if (deadline == Clock::time_point::max()) continue;
      while (Clock::now() < deadline) continue;
      break;
    }
    Check();
  }

  void ResetPrefixCache() {
    for (BlockPool& pool : fixture_.pools) pool.ResetPrefixCache();
    num_updates_since_reset_ = 0;
    was_reset_ = true;
  }

  /// `fails`: the device does, and what its cache held is lost.
  void Abort(bool fails) {
    fixture_.scheduler.AbortAll(absl::UnavailableError("gone"), fails);
    if (fails) {
      steps_.clear();
      flights_.clear();
      fixture_.model.Clear();
      ResetPrefixCache();
    }
    Check(/*aborting=*/true);
    EXPECT_TRUE(watchlist_.live().empty());
    if (fails) EXPECT_TRUE(fixture_.scheduler.idle());
  }

  void Check(bool aborting = false) {
    running_ = fixture_.scheduler.Running();
    watchlist_.Locate(running_);
    blocks_.Check(running_);
    for (Watched* const watched : watchlist_.live()) {
      streams_.Check(*watched, aborting);
      if (watched->ended()) blocks_.CheckNotPublished(*watched, fixture_.model.poison());
    }
    CheckTenants();
    CheckStats();
    watchlist_.DropEnded();
  }

  void CheckTenants() {
    std::vector<Tenant> counted(static_cast<size_t>(options_.num_tenants));
    for (const Sequence* const sequence : running_) {
      Tenant& tenant = counted[watchlist_.Of(*sequence).tenant];
      ++tenant.num_running;
      tenant.num_blocks += std::ssize(sequence->block_table);
    }
    for (const Watched* const watched : watchlist_.live()) {
      if (watched->waits()) ++counted[watched->tenant].num_waiting;
    }
    for (const Tenant& tenant : fixture_.scheduler.Tenants()) {
      Tenant& count = counted[std::stoul(tenant.name)];
      EXPECT_EQ(tenant.num_waiting, std::exchange(count.num_waiting, 0));
      EXPECT_EQ(tenant.num_running, std::exchange(count.num_running, 0));
      EXPECT_EQ(tenant.num_blocks, std::exchange(count.num_blocks, 0));
    }
    for (const Tenant& left_over : counted) {
      EXPECT_EQ(left_over.num_waiting + left_over.num_running, 0) << "an unknown tenant";
    }
  }

  void CheckStats() {
    int64_t num_waiting = 0, num_waiting_tokens = 0;
    for (const Watched* const watched : watchlist_.live()) {
      if (!watched->waits()) continue;
      ++num_waiting;
      num_waiting_tokens +=
          std::ssize(watched->request->prompt_token_ids()) + std::ssize(watched->stream().tokens());
    }
    const SchedulerStats stats = fixture_.scheduler.stats();
    EXPECT_EQ(stats.num_waiting, num_waiting);
    EXPECT_EQ(stats.num_waiting_tokens, num_waiting_tokens);
    EXPECT_EQ(stats.num_running, std::ssize(running_));
    EXPECT_EQ(stats.num_ended, streams_.num_ended());
    EXPECT_EQ(stats.generation_tokens, streams_.num_tokens());
    EXPECT_EQ(
        stats.prefill_tokens + stats.decode_tokens - stats.accepted_tokens + stats.drafted_tokens,
        step_tokens_);
    if (!options_.has_poison) EXPECT_EQ(stats.discarded_tokens, discarded_tokens_);
    EXPECT_EQ(fixture_.scheduler.num_steps_in_flight(), std::ssize(steps_));
    EXPECT_EQ(fixture_.scheduler.idle(), num_waiting + stats.num_running + std::ssize(steps_) == 0);
  }

  void CheckEnd() {
    EXPECT_TRUE(fixture_.scheduler.idle());
    EXPECT_TRUE(watchlist_.live().empty());
    EXPECT_EQ(streams_.num_ended(), watchlist_.next_seed());
    EXPECT_EQ(fixture_.num_free(), options_.scheduler.num_ranks * options_.scheduler.num_blocks);
  }

  void AddCounts() const {
    const SchedulerStats stats = fixture_.scheduler.stats();
    for (const auto& [end, count] : streams_.ends()) counts_.ends[end] += count;
    counts_.steps += fairness_.num_steps();
    counts_.step_tokens += step_tokens_;
    counts_.begun += fairness_.num_begun();
    counts_.preemptions += stats.num_preemptions;
    counts_.recomputed_tokens += stats.recomputed_tokens;
    counts_.accepted_tokens += stats.accepted_tokens;
    counts_.cached_tokens += streams_.num_cached_tokens();
    counts_.longest_wait = std::max(counts_.longest_wait, fairness_.longest_wait());
    counts_.longest_passed_over =
        std::max(counts_.longest_passed_over, fairness_.longest_passed_over());
    counts_.max_share_of_bound =
        std::max(counts_.max_share_of_bound, fairness_.max_share_of_bound());
  }

  Random random_;
  const RoundOptions options_;
  SchedulerFixture fixture_;
  Caller caller_;
  Watchlist watchlist_;
  BlockOracle blocks_;
  FairnessOracle fairness_;
  StreamOracle streams_;
  Counts& counts_;
  std::vector<const Sequence*> running_;
  std::deque<ScheduledStep> steps_;  // in flight
  std::deque<std::vector<Flight>> flights_;
  bool last_was_empty_ = false;  // the last step scheduled
  int64_t num_updates_since_reset_ = 0;
  bool was_reset_ = false;
  int64_t step_tokens_ = 0;
  int64_t discarded_tokens_ = 0;
};

TEST(Safety, HoldsAfterEachOfAMillionRandomOperations) {
  Counts counts;
  int64_t num_operations = 0;
  for (uint32_t seed = 0; num_operations < kNumOperations; ++seed) {
    SCOPED_TRACE(fmt::format("round {}", seed));
    Round(seed, counts).Run();
    if (HasFailure()) return;
    num_operations =
        std::accumulate(counts.operations.begin(), counts.operations.end(), int64_t{0});
  }
  fmt::print("{} operations:", num_operations);
  for (size_t i = 0; i < kOperationNames.size(); ++i) {
    fmt::print(" {} {},", counts.operations[i], kOperationNames[i]);
  }
  fmt::print("\n{} steps of {} tokens; {} requests began, {} of them as forks, {} blocks copied\n",
             counts.steps, counts.step_tokens, counts.begun, counts.forks, counts.copies);
  fmt::print("{} preemptions, {} tokens recomputed, {} drafts accepted, {} tokens cached\nended:",
             counts.preemptions, counts.recomputed_tokens, counts.accepted_tokens,
             counts.cached_tokens);
  for (const auto& [end, count] : counts.ends) fmt::print(" {} {},", count, end);
  fmt::print("\nlongest wait {} steps, at most {:.0f} % of what is proved; passed over {} steps\n",
             counts.longest_wait, 100 * counts.max_share_of_bound, counts.longest_passed_over);
}

}  // namespace
}  // namespace shoal
