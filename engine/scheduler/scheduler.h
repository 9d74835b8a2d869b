// Scheduler: who runs next. Continuous batching: every step mixes prompt chunks and single tokens
// of any sequences, up to a token budget.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "engine/kvcache/block_pool.h"
#include "engine/request/sequence.h"
#include "engine/scheduler/length_forecast.h"
#include "engine/scheduler/scheduled_batch.h"
#include "engine/scheduler/step_builder.h"
#include "engine/scheduler/waiting_queue.h"

namespace shoal {

struct SchedulerConfig {
  int32_t max_num_seqs = 0;                  // sequences that run at once, >= 1
  int32_t max_num_batched_tokens = 0;        // tokens per step, >= 1
  int32_t long_prefill_token_threshold = 0;  // of one sequence per step while there are others;
                                             // 0: half of max_num_batched_tokens
  Clock::duration priority_step = std::chrono::seconds(10);
  double schedule_conservativeness = 1;  // of the room kept for what running sequences may need
  int32_t num_speculative_tokens = 0;    // drafts per sequence and step; 0: no speculation
  int32_t prompt_lookup_min = 2;
  int32_t prompt_lookup_max = 4;
  int64_t vocab_size = 0;  // bits of a token mask
};

/// Counters count since the start.
struct SchedulerStats {
  int32_t num_waiting = 0;         // sequences
  int64_t num_waiting_tokens = 0;  // of them
  int32_t num_running = 0;         // or ended, but still in flight
  int64_t num_ended = 0;           // requests
  int64_t num_preemptions = 0;

  // Tokens that steps computed, by what they were to their sequence. Prefill and decode add up to
  // all work but rejected drafts; the other two are parts of them, or rejected drafts.
  int64_t prefill_tokens = 0;     // of prompts
  int64_t decode_tokens = 0;      // generated ones
  int64_t recomputed_tokens = 0;  // of both, again after a preemption
  int64_t discarded_tokens = 0;   // rejected drafts, and tokens of sequences that had ended

  // Tokens that streams got.
  int64_t prompt_tokens = 0;  // of prompts now complete, computed or found in the cache
  int64_t generation_tokens = 0;

  int64_t num_drafts = 0;  // speculation: times that tokens were drafted
  int64_t drafted_tokens = 0;
  int64_t accepted_tokens = 0;

  // The step that was scheduled last.
  int32_t step_prefills = 0;  // sequences that read their prompt, or read again
  int32_t step_decodes = 0;   // sequences that generate
  int64_t step_prefill_tokens = 0;
  int64_t step_decode_tokens = 0;
};

/// Owns the sequences from admission to their end. Schedule() says what to run next, also while
/// steps are in flight; Update() takes what they gave, in the same order. Thread: engine.
class Scheduler {
 public:
  /// A sequence is preempted so often at most: from then on it runs only once its longest possible
  /// length is reserved.
  static constexpr int32_t kMaxPreemptions = 2;

  /// `block_pools`, one per rank, outlive the scheduler. Any of them holds the longest sequence.
  Scheduler(const SchedulerConfig& config, std::span<BlockPool> block_pools);

  /// Takes the choices of one call into the queue. The caller has checked that each can ever fit.
  void Add(std::vector<std::shared_ptr<Request>> choices);

  /// Ends requests that are cancelled or past their deadline, then picks the next step's work:
  /// tokens being generated first, then prompts being read, then waiting sequences while blocks,
  /// sequences and tokens last. Empty if there is nothing to do, or nothing before the oldest step
  /// in flight is updated.
  ScheduledStep Schedule();

  /// Takes the rows of the oldest step in flight: appends tokens, delivers them to the streams,
  /// ends what is finished and frees its blocks. `result` is that of a healthy device.
  void Update(const StepResult& result);

  /// Ends every request with `status`, for a device that failed or a drain that ran out of time.
  /// Steps in flight are still to be updated, unless the device failed: then `forget_in_flight`.
  void AbortAll(const absl::Status& status, bool forget_in_flight);

  /// No request waits or runs, and no step is in flight.
  bool idle() const;
  int num_steps_in_flight() const { return static_cast<int>(in_flight_.size()); }
  SchedulerStats stats() const;
  std::vector<Tenant> Tenants() const { return waiting_.Tenants(); }
  /// A view of all that num_running counts, valid until the next call: who runs, in the order of
  /// admission, then who has ended but is in flight.
  std::vector<const Sequence*> Running() const;

 private:
  /// A sequence's part in a step in flight.
  struct Flight {
    Sequence* sequence;
    int64_t first_position;
    int64_t num_tokens;  // drafts included
    int64_t num_drafts;  // the last of them
    int64_t num_rows;    // of its rank's result, the next ones
    bool chooses;        // the last rows, one and one for each draft, choose tokens
  };
  using BlockCopies = std::vector<std::vector<BlockCopy>>;  // by rank
  using Sequences = std::vector<std::unique_ptr<Sequence>>;

  BlockPool& pool(const Sequence& sequence) const {
    return block_pools_[static_cast<size_t>(sequence.rank)];
  }

  // Parts of Schedule().
  bool MakeRoom();
  size_t PreemptCheapest(int32_t rank);
  void Preempt(size_t index);
  bool NeedsKnownTokens(const Sequence& sequence) const;
  bool MustWaitForTokens() const;
  int64_t RunFlows(StepBuilder& step);
  int64_t Include(Sequence& sequence, int64_t budget, StepBuilder& step);
  int64_t Chunk(const Sequence& sequence, int64_t budget) const;
  void Draft(Sequence& sequence, int64_t max_drafts);
  void CountTokens(const Sequence& sequence, int64_t num_tokens);

  // Admission.
  Sequence* Admit(StepBuilder& step);
  std::vector<int32_t> RanksByRoom(const Sequence& sequence) const;
  bool TakeBlocks(Sequence& sequence, int32_t rank);
  bool LeavesRoom(const Sequence& sequence, int64_t num_extra_blocks) const;
  int64_t NumExpectedBlocks(const Sequence& sequence) const;
  void AdmitForks(Sequence& leader, StepBuilder& step);
  bool Fork(const Sequence& leader, Sequence& fork);
  void CountFollowers(const Sequence& leader, int sign);
  void BeginRunning(Sequence& sequence);
  void StopRunning(Sequence& sequence);
  bool Grow(Sequence& sequence, int64_t num_tokens);
  void ReleaseBlocks(Sequence& sequence);

  // Parts of Update().
  void Advance(Sequence& sequence, const Flight& flight, std::span<const SampledRow> rows);
  void TakeChoices(Sequence& sequence, std::span<const SampledRow> rows);
  void DeliverPromptLogprobs(Sequence& sequence, std::span<const SampledRow> rows);
  void AppendToken(Sequence& sequence, const SampledRow& row);

  // Ends.
  void EndDue();
  bool EndIfDue(Sequence& sequence);
  void EndUnchosen(Sequence& sequence, const SampledRow& row);
  void End(Sequence& sequence, FinishReason reason, const absl::Status& status);
  void Sweep();
  void Requeue(Sequence& leader);

  const SchedulerConfig config_;
  const std::span<BlockPool> block_pools_;  // by rank
  WaitingQueue waiting_;
  Sequences running_;  // in the order of their admission
  Sequences leaving_;  // ended, but in flight
  std::deque<std::vector<Flight>> in_flight_;
  std::vector<Flight> boarding_;  // of the step that is being made
  BlockCopies block_copies_;      // for the next step
  std::vector<int32_t> free_slots_;
  LengthForecast forecast_;
  Clock::time_point now_;  // of the call
  bool some_ended_ = false;
  size_t first_flow_ = 0;      // in running_: whose turn it is if there are more than a step takes
  int32_t num_followers_ = 0;  // forks of those running, and their tokens
  int64_t num_follower_tokens_ = 0;
  int64_t num_releases_ = 0;  // times that blocks came back
  int64_t blocked_id_ = -1;   // the sequence that found no room, and when
  int64_t blocked_at_ = -1;   // num_releases_
  int64_t next_sequence_id_ = 0;
  SchedulerStats stats_;
};

}  // namespace shoal
