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
#include "engine/scheduler/scheduled_batch.h"

namespace shoal {

struct SchedulerConfig {
  int32_t max_num_seqs = 0;            // sequences that run at once, >= 1
  int32_t max_num_batched_tokens = 0;  // tokens per step, >= 1
};

struct SchedulerStats {
  int32_t num_waiting = 0;
  int32_t num_running = 0;
  int64_t num_preemptions = 0;  // ever
};

/// Tokens that one step completed.
struct StepTokens {
  int64_t prompt = 0;  // of prompts now complete, computed or found in the cache
  int64_t generation = 0;
};

/// Owns the sequences from admission to their end. Each step: Schedule(), run the batch elsewhere,
/// Update() with what it gave. Thread: engine.
class Scheduler {
 public:
  /// `block_pool` outlives the scheduler.
  Scheduler(const SchedulerConfig& config, BlockPool* block_pool);

  /// Takes a request into the queue. The caller has checked that it can ever fit.
  void Add(std::shared_ptr<Request> request);

  /// Ends cancelled requests, then picks the next step's work. Running sequences go first, in order
  /// of arrival; waiting ones are admitted while blocks, sequences and tokens last. When blocks run
  /// out the youngest running sequence is preempted: its blocks are freed and it will be
  /// recomputed. Empty iff there is nothing to do.
  ScheduledBatch Schedule();

  /// Takes the rows of the batch that Schedule() gave last: appends tokens, delivers them to the
  /// streams, ends what is finished and frees its blocks. `result` is that of a healthy device.
  StepTokens Update(const StepResult& result);

  /// Ends every request with `status`, for a device that failed or a drain that ran out of time. A
  /// batch in flight is forgotten: there is no Update() for it.
  void AbortAll(const absl::Status& status);

  bool idle() const { return waiting_.empty() && running_.empty(); }
  SchedulerStats stats() const;

 private:
  /// A sequence of the batch in flight and how many of the result's rows are its own.
  struct InFlight {
    Sequence* sequence;
    size_t num_rows;
  };

  // Parts of Schedule().
  void EndCancelled();
  bool AdmitNext();
  bool FindBlocksForAllTokens(Sequence& sequence);
  bool GrowOrPreempt(Sequence& sequence, int64_t num_tokens);
  void PreemptYoungest();
  void Include(Sequence& sequence, int64_t num_tokens, ScheduledBatch& batch);

  // Parts of Update().
  void Advance(Sequence& sequence, std::span<const SampledRow> rows);
  void DeliverPromptLogprobs(Sequence& sequence, std::span<const SampledRow> rows);
  void AppendToken(Sequence& sequence, const SampledRow& row);

  void End(Sequence& sequence, FinishReason reason, const absl::Status& status);

  const SchedulerConfig config_;
  BlockPool* const block_pool_;
  // Both in order of arrival, and whoever runs arrived before whoever waits.
  std::vector<std::unique_ptr<Sequence>> running_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<InFlight> in_flight_;  // in the order of the batch
  int64_t next_sequence_id_ = 0;
  int64_t num_preemptions_ = 0;
};

}  // namespace shoal
