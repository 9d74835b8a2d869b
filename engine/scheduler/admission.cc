// The scheduler's way in and out: when sequences begin to run, where, and how they end.

#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/scheduler/scheduler.h"

namespace shoal {
namespace {

/// The first of `forks`, which leads the others from now on.
std::unique_ptr<Sequence> Lead(std::vector<std::unique_ptr<Sequence>> forks, Tenant* tenant) {
  std::unique_ptr<Sequence> leader = std::move(forks.front());
  forks.erase(forks.begin());
  leader->forks = std::move(forks);
  leader->tenant = tenant;
  return leader;
}

}  // namespace

/// Begins to run whose turn it is, on the rank with the most room. Null if there is none, or no
/// room for it: then nobody overtakes it.
Sequence* Scheduler::Admit(StepBuilder& step) {
  Sequence* const next = waiting_.Front();
  if (next == nullptr || free_slots_.empty()) return nullptr;
  if (next->id == blocked_id_ && num_releases_ == blocked_at_) return nullptr;
  for (const int32_t rank : RanksByRoom(*next)) {
    if (!TakeBlocks(*next, rank)) continue;
    running_.push_back(waiting_.PopFront());
    BeginRunning(*next);
    CountFollowers(*next, 1);
    if (next->request->sampling().needs_history() && next->num_computed_tokens > 0) {
      step.AddHistory(*next, next->num_computed_tokens);
    }
    return next;
  }
  blocked_id_ = next->id;
  blocked_at_ = num_releases_;
  return nullptr;
}

std::vector<int32_t> Scheduler::RanksByRoom(const Sequence& sequence) const {
  if (block_pools_.size() == 1) return {0};
  std::vector<std::pair<int64_t, int32_t>> ranks;  // with the tokens used, if it went there
  for (int32_t rank = 0; rank < std::ssize(block_pools_); ++rank) {
    const BlockPool& pool = block_pools_[static_cast<size_t>(rank)];
    const int64_t found = pool.FindPrefix(sequence.request->scheduling().cache_domain,
                                          sequence.token_ids, sequence.num_known_tokens() - 1);
    const int64_t num_used = pool.num_blocks() - pool.num_free();
    ranks.emplace_back(num_used * pool.block_size() - found, rank);
  }
  std::ranges::sort(ranks);
  std::vector<int32_t> order(ranks.size());
  std::ranges::transform(ranks, order.begin(), &std::pair<int64_t, int32_t>::second);
  return order;
}

/// Gives the sequence blocks for all its tokens, those of the prefix index first.
bool Scheduler::TakeBlocks(Sequence& sequence, int32_t rank) {
  sequence.rank = rank;
  BlockPool& blocks = pool(sequence);
  // At least one token must be computed, to have logits; with prompt logprobs all must be.
  const bool lookup = sequence.request->sampling().prompt_logprobs < 0;
  const int64_t max_found = lookup ? sequence.num_known_tokens() - 1 : 0;
  const int64_t found = blocks.MatchPrefix(sequence.request->scheduling().cache_domain,
                                           sequence.token_ids, max_found, sequence.block_table);
  sequence.tenant->num_blocks += std::ssize(sequence.block_table);
  // In this order: to grow takes cached prefixes, which must not be lost for nothing.
  if (!LeavesRoom(sequence, 0) || !Grow(sequence, sequence.num_known_tokens())) {
    ReleaseBlocks(sequence);
    return false;
  }
  sequence.num_computed_tokens = sequence.num_scheduled_tokens = found;
  sequence.num_published_blocks = found / blocks.block_size();
  if (sequence.num_preemptions == 0) {
    sequence.num_cached_tokens = static_cast<int32_t>(found);
    if (lookup) blocks.CountLookup(sequence.num_known_tokens(), found);
  }
  return true;
}

/// Whether there is room on the sequence's rank for so many blocks, and for what it and all others
/// there are expected to need: to begin and be preempted is work thrown away.
bool Scheduler::LeavesRoom(const Sequence& sequence, int64_t num_extra_blocks) const {
  int64_t expected = num_extra_blocks + NumExpectedBlocks(sequence);
  bool is_alone = true;
  for (const auto& other : running_) {
    if (other->rank != sequence.rank) continue;
    expected += NumExpectedBlocks(*other);
    is_alone = false;
  }
  return is_alone || pool(sequence).num_free() >= expected;
}

/// Blocks that the sequence will want beyond those it has.
int64_t Scheduler::NumExpectedBlocks(const Sequence& sequence) const {
  const BlockPool& blocks = pool(sequence);
  const bool is_sure = sequence.num_preemptions >= kMaxPreemptions;
  return blocks.NumMissing(
      sequence.block_table,
      is_sure ? sequence.max_num_tokens() : forecast_.Expect(sequence, blocks.block_size()));
}

/// The step just made computes the last of the leader's prompt: its forks begin to run there.
void Scheduler::AdmitForks(Sequence& leader, StepBuilder& step) {
  CountFollowers(leader, -1);
  Sequences forks = std::exchange(leader.forks, {});
  size_t num_admitted = 0;
  for (; num_admitted < forks.size() && !free_slots_.empty(); ++num_admitted) {
    Sequence& fork = *forks[num_admitted];
    fork.tenant = leader.tenant;
    if (!Fork(leader, fork)) break;
    BeginRunning(fork);
    if (fork.request->sampling().needs_history()) step.AddHistory(fork, fork.num_known_tokens());
    step.AddFork(fork);
    // It computes nothing: all that it has is its leader's.
    boarding_.push_back({.sequence = &fork,
                         .first_position = fork.num_scheduled_tokens,
                         .num_tokens = 0,
                         .num_drafts = 0,
                         .num_rows = 1,
                         .chooses = true});
    fork.num_chosen_in_flight = fork.num_steps_in_flight = 1;
    running_.push_back(std::move(forks[num_admitted]));
  }
  leader.forks.assign(std::move_iterator(forks.begin() + num_admitted),
                      std::move_iterator(forks.end()));
  CountFollowers(leader, 1);
  Requeue(leader);
}

/// The fork owns the leader's blocks too, but for the last one if it is not full: it will be
/// written by both.
bool Scheduler::Fork(const Sequence& leader, Sequence& fork) {
  fork.rank = leader.rank;
  BlockPool& blocks = pool(leader);
  fork.block_table = blocks.Fork(leader.block_table);
  fork.tenant->num_blocks += std::ssize(fork.block_table);
  fork.num_computed_tokens = leader.num_computed_tokens;
  fork.num_scheduled_tokens = leader.num_scheduled_tokens;
  const int64_t next = fork.num_scheduled_tokens;
  const bool shares_last = blocks.NeedsCopy(fork.block_table, next);
  BlockCopy copy;
  if (!LeavesRoom(fork, shares_last ? 1 : 0) ||
      (shares_last && !blocks.Replace(fork.block_table, next, &copy))) {
    ReleaseBlocks(fork);
    fork.num_computed_tokens = fork.num_scheduled_tokens = 0;
    return false;
  }
  if (shares_last) block_copies_[static_cast<size_t>(fork.rank)].push_back(copy);
  fork.num_published_blocks = leader.num_published_blocks;
  fork.num_cached_tokens = leader.num_cached_tokens;
  fork.forked = true;
  return true;
}

/// The leader's forks wait for a turn of their own: they have not run.
void Scheduler::Requeue(Sequence& leader) {
  if (leader.forks.empty()) return;
  CountFollowers(leader, -1);
  waiting_.Push(Lead(std::exchange(leader.forks, {}), leader.tenant));
}

/// The forks of one who runs wait, too; their number is about to change, or has changed.
void Scheduler::CountFollowers(const Sequence& leader, int sign) {
  if (leader.forks.empty()) return;
  const auto count = static_cast<int32_t>(leader.forks.size());
  leader.tenant->num_waiting += sign * count;
  num_followers_ += sign * count;
  for (const auto& fork : leader.forks) num_follower_tokens_ += sign * fork->num_known_tokens();
}

void Scheduler::BeginRunning(Sequence& sequence) {
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  ++sequence.tenant->num_running;
  sequence.has_reserve = sequence.num_preemptions >= kMaxPreemptions;
  if (sequence.num_preemptions == 0) sequence.first_scheduled = now_;
}

void Scheduler::StopRunning(Sequence& sequence) {
  ReleaseBlocks(sequence);
  free_slots_.push_back(sequence.slot);
  --sequence.tenant->num_running;
  sequence.has_reserve = false;
}

bool Scheduler::Grow(Sequence& sequence, int64_t num_tokens) {
  const int64_t num_blocks = std::ssize(sequence.block_table);
  if (!pool(sequence).Grow(sequence.block_table, num_tokens)) return false;
  sequence.tenant->num_blocks += std::ssize(sequence.block_table) - num_blocks;
  return true;
}

void Scheduler::ReleaseBlocks(Sequence& sequence) {
  sequence.tenant->num_blocks -= std::ssize(sequence.block_table);
  pool(sequence).Release(sequence.block_table);
  ++num_releases_;
}

void Scheduler::EndDue() {
  const auto is_due = [this](const std::unique_ptr<Sequence>& sequence) {
    return EndIfDue(*sequence);
  };
  for (const auto& sequence : running_) {
    if (!sequence->forks.empty()) {
      CountFollowers(*sequence, -1);
      std::erase_if(sequence->forks, is_due);
      CountFollowers(*sequence, 1);
    }
    EndIfDue(*sequence);
  }
  Sweep();
  if (waiting_.empty()) return;
  waiting_.EraseIf([&](std::unique_ptr<Sequence>& sequence) {
    std::erase_if(sequence->forks, is_due);
    if (!EndIfDue(*sequence)) return false;
    if (sequence->forks.empty()) return true;
    sequence = Lead(std::move(sequence->forks), sequence->tenant);
    return false;
  });
}

bool Scheduler::EndIfDue(Sequence& sequence) {
  const Request& request = *sequence.request;
  if (request.cancelled()) {
    End(sequence, FinishReason::kCancel, absl::OkStatus());
  } else if (request.scheduling().deadline <= now_) {
    End(sequence, FinishReason::kError,
        absl::DeadlineExceededError(
            fmt::format("request {}: the deadline passed after {} of {} tokens", request.id(),
                        sequence.num_generated_tokens(), request.sampling().max_tokens)));
  }
  return sequence.ended;
}

/// The row's token could not be chosen.
void Scheduler::EndUnchosen(Sequence& sequence, const SampledRow& row) {
  const std::string& id = sequence.request->id();
  const int64_t num_tokens = sequence.num_known_tokens();
  const absl::Status status =
      row.token_id == SampledRow::kNoneAllowed
          ? absl::FailedPreconditionError(
                fmt::format("request {}: no token may follow token {}", id, num_tokens))
          : absl::InternalError(fmt::format(
                "request {}: the model gave non-finite logits after token {}", id, num_tokens));
  End(sequence, FinishReason::kError, status);
}

/// The stream ends now; blocks and slot go with the next Sweep(), or the last step in flight.
void Scheduler::End(Sequence& sequence, FinishReason reason, const absl::Status& status) {
  sequence.ended = true;
  some_ended_ = true;
  ++stats_.num_ended;
  const bool is_whole = reason == FinishReason::kStop || reason == FinishReason::kLength ||
                        (reason == FinishReason::kCancel && sequence.request->completed());
  if (is_whole) forecast_.Observe(sequence);
  TokenStream& stream = sequence.request->stream();
  stream.Finish({reason, status, sequence.num_cached_tokens, sequence.first_scheduled});
  stream.Notify();
}

/// Takes out what has ended and is not in flight.
void Scheduler::Sweep() {
  if (!std::exchange(some_ended_, false)) return;
  Sequences running = std::exchange(running_, {});
  Sequences ended = std::exchange(leaving_, {});
  for (auto& sequence : running) {
    if (sequence->ended) Requeue(*sequence);
    (sequence->ended ? ended : running_).push_back(std::move(sequence));
  }
  for (auto& sequence : ended) {
    if (sequence->num_steps_in_flight > 0) {
      leaving_.push_back(std::move(sequence));
    } else {
      StopRunning(*sequence);
    }
  }
}

void Scheduler::AbortAll(const absl::Status& status, bool forget_in_flight) {
  const auto end = [&](const std::unique_ptr<Sequence>& sequence) {
    for (const auto& fork : sequence->forks) End(*fork, FinishReason::kError, status);
    sequence->forks.clear();
    End(*sequence, FinishReason::kError, status);
  };
  for (const auto& sequence : running_) {
    CountFollowers(*sequence, -1);
    end(sequence);
  }
  if (forget_in_flight) {
    in_flight_.clear();
    for (const auto& sequence : running_) sequence->num_steps_in_flight = 0;
    for (const auto& sequence : leaving_) sequence->num_steps_in_flight = 0;
    some_ended_ = true;  // those leaving, if nobody runs
  }
  Sweep();
  waiting_.EraseIf([&](std::unique_ptr<Sequence>& sequence) {
    end(sequence);
    return true;
  });
}

bool Scheduler::idle() const {
  return waiting_.empty() && running_.empty() && leaving_.empty() && in_flight_.empty();
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = stats_;
  stats.num_waiting = waiting_.num_sequences() + num_followers_;
  stats.num_waiting_tokens = waiting_.num_tokens() + num_follower_tokens_;
  stats.num_running = static_cast<int32_t>(running_.size() + leaving_.size());
  return stats;
}

std::vector<const Sequence*> Scheduler::Running() const {
  std::vector<const Sequence*> sequences;
  sequences.reserve(running_.size() + leaving_.size());
  for (const auto& sequence : running_) sequences.push_back(sequence.get());
  for (const auto& sequence : leaving_) sequences.push_back(sequence.get());
  return sequences;
}

}  // namespace shoal
