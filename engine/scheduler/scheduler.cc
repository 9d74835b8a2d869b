#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace shoal {
namespace {

SamplingRow ChooseRow(const Sequence& sequence) {
  const SamplingParams& params = sequence.request->sampling();
  return {.temperature = params.temperature,
          .top_k = params.top_k,
          .top_p = params.top_p,
          .min_p = params.min_p,
          .top_logprobs = params.logprobs,
          .seed = params.seed,
          .position = sequence.num_tokens()};
}

/// Asks for the logprob of the prompt token at `position`.
SamplingRow PromptRow(const Sequence& sequence, int64_t position) {
  return {.forced_token = sequence.token_ids[static_cast<size_t>(position)],
          .top_logprobs = sequence.request->sampling().prompt_logprobs,
          .position = position};
}

/// Rows of the tokens [first, first + num_tokens): one for each prompt token that they predict and
/// whose logprob is wanted and not yet delivered, and one for the next token if all before it are
/// then computed.
void AddLogitsRows(const Sequence& sequence, ScheduledSequence& scheduled) {
  const SamplingParams& params = sequence.request->sampling();
  const int64_t first = scheduled.first_position;
  const int64_t end = first + static_cast<int64_t>(scheduled.token_ids.size());
  if (params.prompt_logprobs >= 0) {
    const int64_t last = std::min(end, sequence.num_prompt_tokens() - 1);
    for (int64_t i = std::max(first, sequence.num_prompt_logprobs - 1); i < last; ++i) {
      scheduled.logits_rows.push_back(static_cast<int32_t>(i - first));
      scheduled.sampling.push_back(PromptRow(sequence, i + 1));
    }
  }
  if (end == sequence.num_tokens() && params.max_tokens > 0) {
    scheduled.logits_rows.push_back(static_cast<int32_t>(end - 1 - first));
    scheduled.sampling.push_back(ChooseRow(sequence));
  }
}

TokenOutput MakeOutput(int32_t token_id, const SampledRow& row, int32_t num_top_logprobs) {
  TokenOutput output = {.token_id = token_id};
  if (num_top_logprobs < 0) return output;
  output.logprob = row.logprob;
  const auto count = static_cast<size_t>(num_top_logprobs);
  output.top_logprobs.reserve(count);
  for (size_t i = 0; i < count && row.top_ids[i] >= 0; ++i) {
    output.top_logprobs.push_back({row.top_ids[i], row.top_logprobs[i]});
  }
  return output;
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config, BlockPool* block_pool)
    : config_(config), block_pool_(block_pool) {}

void Scheduler::Add(std::shared_ptr<Request> request) {
  waiting_.push_back(std::make_unique<Sequence>(next_sequence_id_++, std::move(request)));
}

ScheduledBatch Scheduler::Schedule() {
  SHOAL_CHECK(in_flight_.empty(), "the batch in flight has not been updated");
  EndCancelled();
  ScheduledBatch batch;
  int64_t budget = config_.max_num_batched_tokens;
  const auto include = [&](Sequence& sequence, int64_t num_tokens) {
    Include(sequence, num_tokens, batch);
    budget -= num_tokens;
  };
  // Preemption takes from the end of running_, so those before i stay as they are.
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    Sequence& sequence = *running_[i];
    const int64_t num_tokens = std::min(sequence.num_uncomputed_tokens(), budget);
    if (!GrowOrPreempt(sequence, num_tokens)) break;
    include(sequence, num_tokens);
  }
  while (budget > 0 && AdmitNext()) {
    Sequence& sequence = *running_.back();
    include(sequence, std::min(sequence.num_uncomputed_tokens(), budget));
  }
  SHOAL_CHECK(!batch.empty() || idle(), "{} requests wait and none can run", waiting_.size());
  return batch;
}

void Scheduler::EndCancelled() {
  const auto end_if_cancelled = [this](const std::unique_ptr<Sequence>& sequence) {
    if (!sequence->request->cancelled()) return false;
    End(*sequence, FinishReason::kCancel, absl::OkStatus());
    return true;
  };
  std::erase_if(running_, end_if_cancelled);
  std::erase_if(waiting_, end_if_cancelled);
}

/// Moves the first waiting sequence to the running ones if it may run now.
bool Scheduler::AdmitNext() {
  if (waiting_.empty() || std::ssize(running_) >= config_.max_num_seqs) return false;
  Sequence& sequence = *waiting_.front();
  if (!FindBlocksForAllTokens(sequence)) return false;
  if (sequence.num_preemptions == 0) sequence.first_scheduled = Clock::now();
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  return true;
}

/// Gives the sequence blocks for all its tokens, those of the prefix index first, and leaves one
/// free block to each running sequence, so that the next few tokens do not preempt what was just
/// admitted.
bool Scheduler::FindBlocksForAllTokens(Sequence& sequence) {
  // At least one token must be computed, to have logits; with prompt logprobs all must be.
  const bool lookup = sequence.request->sampling().prompt_logprobs < 0;
  const int64_t max_found = lookup ? sequence.num_tokens() - 1 : 0;
  const int64_t found =
      block_pool_->MatchPrefix(sequence.token_ids, max_found, sequence.block_table);
  if (!block_pool_->Grow(sequence.block_table, sequence.num_tokens()) ||
      block_pool_->num_free() < std::ssize(running_)) {
    block_pool_->Release(sequence.block_table);
    return false;
  }
  sequence.num_computed_tokens = found;
  sequence.num_published_blocks = found / block_pool_->block_size();
  if (sequence.num_preemptions == 0) {
    sequence.num_cached_tokens = static_cast<int32_t>(found);
    if (lookup) block_pool_->CountLookup(sequence.num_tokens(), found);
  }
  return true;
}

/// Gives the sequence blocks for `num_tokens` more tokens, at the cost of younger ones. False if it
/// is itself the youngest and had to give way.
bool Scheduler::GrowOrPreempt(Sequence& sequence, int64_t num_tokens) {
  while (!block_pool_->Grow(sequence.block_table, sequence.num_computed_tokens + num_tokens)) {
    const bool is_youngest = running_.back().get() == &sequence;
    PreemptYoungest();
    if (is_youngest) return false;
  }
  return true;
}

void Scheduler::PreemptYoungest() {
  Sequence& sequence = *running_.back();
  block_pool_->Release(sequence.block_table);
  sequence.num_computed_tokens = 0;
  sequence.num_published_blocks = 0;
  ++sequence.num_preemptions;
  ++num_preemptions_;
  waiting_.push_front(std::move(running_.back()));
  running_.pop_back();
}

void Scheduler::Include(Sequence& sequence, int64_t num_tokens, ScheduledBatch& batch) {
  ScheduledSequence& scheduled = batch.sequences.emplace_back();
  scheduled.sequence_id = sequence.id;
  scheduled.first_position = sequence.num_computed_tokens;
  const auto first = sequence.token_ids.begin() + sequence.num_computed_tokens;
  scheduled.token_ids.assign(first, first + num_tokens);
  scheduled.block_table = sequence.block_table;
  AddLogitsRows(sequence, scheduled);
  sequence.num_scheduled_tokens = num_tokens;
  in_flight_.push_back({&sequence, scheduled.logits_rows.size()});
}

StepTokens Scheduler::Update(const StepResult& result) {
  SHOAL_CHECK(result.status.ok(), "a failed step has no rows");
  std::span<const SampledRow> rows = result.rows;
  StepTokens step;
  for (const auto& [sequence, num_rows] : in_flight_) {
    SHOAL_CHECK(rows.size() >= num_rows, "the step gave too few rows");
    const int64_t generated_before = sequence->num_generated_tokens();
    Advance(*sequence, rows.first(num_rows));
    sequence->request->stream().Notify();
    rows = rows.subspan(num_rows);
    step.generation += sequence->num_generated_tokens() - generated_before;
    const bool prompt_complete = sequence->num_computed_tokens >= sequence->num_prompt_tokens();
    if (prompt_complete && generated_before == 0) step.prompt += sequence->num_prompt_tokens();
  }
  SHOAL_CHECK(rows.empty(), "the step gave {} rows too many", rows.size());
  in_flight_.clear();
  std::erase_if(running_, [](const auto& sequence) {
    return sequence->request->stream().finish() != nullptr;
  });
  return step;
}

/// The scheduled tokens of the sequence are computed and gave `rows`.
void Scheduler::Advance(Sequence& sequence, std::span<const SampledRow> rows) {
  sequence.num_computed_tokens += std::exchange(sequence.num_scheduled_tokens, 0);
  for (const SampledRow& row : rows) {
    if (row.token_id >= 0) continue;
    const std::string error =
        fmt::format("request {}: the model gave non-finite logits by token {}",
                    sequence.request->id(), sequence.num_computed_tokens);
    return End(sequence, FinishReason::kError, absl::InternalError(error));
  }
  const SamplingParams& params = sequence.request->sampling();
  const bool all_computed = sequence.num_uncomputed_tokens() == 0;
  const bool generates = all_computed && params.max_tokens > 0;
  if (params.prompt_logprobs >= 0) {
    DeliverPromptLogprobs(sequence, rows.first(rows.size() - (generates ? 1 : 0)));
  }
  if (generates) {
    AppendToken(sequence, rows.back());
  } else if (all_computed) {
    End(sequence, FinishReason::kLength, absl::OkStatus());
  }
}

void Scheduler::DeliverPromptLogprobs(Sequence& sequence, std::span<const SampledRow> rows) {
  TokenStream& stream = sequence.request->stream();
  const auto next = [&sequence] {
    return sequence.token_ids[static_cast<size_t>(sequence.num_prompt_logprobs++)];
  };
  if (sequence.num_prompt_logprobs == 0) stream.AppendPrompt({.token_id = next()});
  for (const SampledRow& row : rows) {
    stream.AppendPrompt(MakeOutput(next(), row, sequence.request->sampling().prompt_logprobs));
  }
}

void Scheduler::AppendToken(Sequence& sequence, const SampledRow& row) {
  // Not before a token came out finite: it saw all that these blocks hold.
  block_pool_->Publish(sequence.token_ids, sequence.num_computed_tokens, sequence.block_table,
                       sequence.num_published_blocks);
  const SamplingParams& params = sequence.request->sampling();
  sequence.token_ids.push_back(row.token_id);
  TokenOutput output = MakeOutput(row.token_id, row, params.logprobs);
  output.time = Clock::now();
  sequence.request->stream().Append(std::move(output));
  if (std::ranges::find(params.stop_token_ids, row.token_id) != params.stop_token_ids.end()) {
    End(sequence, FinishReason::kStop, absl::OkStatus());
  } else if (sequence.num_generated_tokens() >= params.max_tokens) {
    End(sequence, FinishReason::kLength, absl::OkStatus());
  }
}

void Scheduler::AbortAll(const absl::Status& status) {
  in_flight_.clear();
  for (const auto& sequence : running_) End(*sequence, FinishReason::kError, status);
  for (const auto& sequence : waiting_) End(*sequence, FinishReason::kError, status);
  running_.clear();
  waiting_.clear();
}

void Scheduler::End(Sequence& sequence, FinishReason reason, const absl::Status& status) {
  block_pool_->Release(sequence.block_table);
  TokenStream& stream = sequence.request->stream();
  stream.Finish({reason, status, sequence.num_cached_tokens, sequence.first_scheduled});
  stream.Notify();
}

SchedulerStats Scheduler::stats() const {
  return {.num_waiting = static_cast<int32_t>(waiting_.size()),
          .num_running = static_cast<int32_t>(running_.size()),
          .num_preemptions = num_preemptions_};
}

}  // namespace shoal
