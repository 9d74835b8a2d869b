// Scheduler: who runs next. Continuous batching: every step mixes prompt chunks and single tokens of any
// sequences, up to a token budget.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/kvcache/block_pool.h"
#include "engine/request/sequence.h"
#include "engine/scheduler/scheduled_batch.h"

namespace shoal {

struct SchedulerConfig {
  int32_t max_num_seqs = 0;            // sequences that run at once, >= 1
  int32_t max_num_batched_tokens = 0;  // tokens per step, >= 1
  int32_t max_model_len = 0;           // tokens of one sequence, prompt and output
};

struct SchedulerStats {
  int32_t num_waiting = 0;
  int32_t num_running = 0;
  int64_t num_preemptions = 0;  // ever
};

/// Owns the sequences from admission to their end. Each step: Schedule(), run the batch elsewhere,
/// Update() with what it gave. Thread: engine.
class Scheduler {
 public:
  Scheduler(const SchedulerConfig& config, BlockPool* block_pool);

  /// Takes a request into the queue. The caller has checked that it can ever fit.
  void Add(std::shared_ptr<Request> request);

  /// Ends cancelled requests, then picks the next step's work. Running sequences go first, in order of
  /// arrival; waiting ones are admitted while blocks, sequences and tokens last. When blocks run out the
  /// youngest running sequence is preempted: its blocks are freed and it will be recomputed.
  /// Empty iff there is nothing to do.
  ScheduledBatch Schedule();

  /// Takes the rows of the batch that Schedule() gave last: appends tokens, delivers them to the streams,
  /// ends what is finished and frees its blocks.
  void Update(const StepResult& result);

  /// Ends every request with `status`, for a device that failed or a drain that ran out of time.
  void AbortAll(const absl::Status& status);

  bool idle() const { return waiting_.empty() && running_.empty(); }
  SchedulerStats stats() const;

 private:
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
};

}  // namespace shoal
