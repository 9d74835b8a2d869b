#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace shoal {
namespace {

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

Scheduler::Scheduler(const SchedulerConfig& config, std::span<BlockPool> block_pools)
    : config_(config),
      block_pools_(block_pools),
      waiting_(config.priority_step),
      block_copies_(block_pools.size()),
      forecast_(config.schedule_conservativeness) {
  free_slots_.resize(static_cast<size_t>(config.max_num_seqs));
  std::iota(free_slots_.rbegin(), free_slots_.rend(), 0);
}

void Scheduler::Add(std::vector<std::shared_ptr<Request>> choices) {
  std::unique_ptr<Sequence> leader;
  for (std::shared_ptr<Request>& request : choices) {
    auto sequence = std::make_unique<Sequence>(next_sequence_id_++, std::move(request));
    if (config_.num_speculative_tokens > 0) {
      sequence->lookup =
          std::make_unique<PromptLookup>(config_.prompt_lookup_min, config_.prompt_lookup_max);
    }
    // A choice that wants its prompt's logprobs reads the prompt itself.
    const bool forks = sequence->request->sampling().prompt_logprobs < 0;
    if (leader == nullptr) {
      leader = std::move(sequence);
    } else if (forks) {
      leader->forks.push_back(std::move(sequence));
    } else {
      waiting_.Push(std::move(sequence));
    }
  }
  waiting_.Push(std::move(leader));
}

ScheduledStep Scheduler::Schedule() {
  now_ = Clock::now();
  EndDue();
  if (MustWaitForTokens() || !MakeRoom()) return {};
  StepBuilder step(block_pools_.size(), config_.vocab_size, running_.size() + 1);
  // Not those of forks made now: what they copy is yet to be written.
  BlockCopies copies = std::exchange(block_copies_, BlockCopies(block_pools_.size()));
  // Tokens that flow go first; a prompt that is being read never holds them up.
  int64_t budget = RunFlows(step);
  for (size_t i = 0, count = running_.size(); i < count && budget > 0; ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.num_tokens_to_schedule() > 1) budget -= Include(sequence, budget, step);
  }
  while (budget > 0) {
    Sequence* const admitted = Admit(step);
    if (admitted == nullptr) break;
    budget -= Include(*admitted, budget, step);
  }
  SHOAL_CHECK(!boarding_.empty() || !in_flight_.empty() || idle(),
              "{} sequences wait and {} run, but none can", waiting_.num_sequences(),
              running_.size());
  if (boarding_.empty()) {
    block_copies_ = std::move(copies);
    return {};
  }
  in_flight_.push_back(std::exchange(boarding_, {}));
  return step.Finish(std::move(copies));
}

/// Drafts and masks build on tokens that are known.
bool Scheduler::NeedsKnownTokens(const Sequence& sequence) const {
  return sequence.lookup != nullptr || sequence.request->sampling().mask != nullptr;
}

/// Somebody who runs could not be in the next step, for want of tokens in flight. To go ahead
/// without them would split those who run into two halves for good.
bool Scheduler::MustWaitForTokens() const {
  if (in_flight_.empty()) return false;
  return std::ranges::any_of(running_, [this](const auto& sequence) {
    return sequence->num_chosen_in_flight > 0 && NeedsKnownTokens(*sequence);
  });
}

/// One token of each sequence that generates, in turns if that is more than a step takes. Drafts
/// share half of what is left then; the other half is for prompts. Returns what is left.
int64_t Scheduler::RunFlows(StepBuilder& step) {
  int64_t budget = config_.max_num_batched_tokens;
  const size_t count = running_.size();
  const auto flows = [](const auto& sequence) { return sequence->num_tokens_to_schedule() == 1; };
  const int64_t num_flows = std::ranges::count_if(running_, flows);
  if (num_flows <= budget) first_flow_ = 0;
  const int64_t max_drafts = num_flows == 0 ? 0 : (budget - num_flows) / 2 / num_flows;
  size_t i = count == 0 ? 0 : first_flow_ % count;
  for (size_t visited = 0; visited < count && budget > 0; ++visited, i = (i + 1) % count) {
    Sequence& sequence = *running_[i];
    if (!flows(running_[i])) continue;
    if (sequence.lookup != nullptr) Draft(sequence, max_drafts);
    budget -= Include(sequence, budget, step);
  }
  first_flow_ = i;
  return budget;
}

/// Blocks for the next tokens of all that run, at the cost of those that are the cheapest to
/// recompute. False: that has to wait until nothing is in flight.
bool Scheduler::MakeRoom() {
  for (size_t i = 0; i < running_.size();) {
    Sequence& sequence = *running_[i];
    if (Grow(sequence, sequence.num_scheduled_tokens + sequence.num_tokens_to_schedule())) {
      ++i;
      continue;
    }
    if (!in_flight_.empty()) return false;
    // It may be this one, or one before it.
    if (PreemptCheapest(sequence.rank) < i) --i;
  }
  return true;
}

/// Returns its place among the running ones.
size_t Scheduler::PreemptCheapest(int32_t rank) {
  size_t cheapest = running_.size();
  std::pair<bool, int64_t> least;
  for (size_t i = running_.size(); i-- > 0;) {
    const Sequence& sequence = *running_[i];
    if (sequence.rank != rank || sequence.has_reserve) continue;
    const int64_t blocks = pool(sequence).NumOwnedAlone(sequence.block_table);
    const std::pair cost(blocks == 0, blocks);  // what frees nothing helps least
    if (cheapest < running_.size() && cost >= least) continue;
    cheapest = i;
    least = cost;
  }
  SHOAL_CHECK(cheapest < running_.size(), "rank {} has less room than it has reserved", rank);
  Preempt(cheapest);
  return cheapest;
}

void Scheduler::Preempt(size_t index) {
  std::unique_ptr<Sequence> sequence = std::move(running_[index]);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
  SHOAL_CHECK(sequence->num_steps_in_flight == 0, "sequence {} is in flight", sequence->id);
  CountFollowers(*sequence, -1);
  sequence->max_computed_tokens =
      std::max(sequence->max_computed_tokens, sequence->num_computed_tokens);
  StopRunning(*sequence);
  sequence->num_computed_tokens = sequence->num_scheduled_tokens = 0;
  sequence->num_published_blocks = 0;
  ++sequence->num_preemptions;
  ++stats_.num_preemptions;
  waiting_.PushPreempted(std::move(sequence));
}

/// Tokens of the sequence that this step computes.
int64_t Scheduler::Chunk(const Sequence& sequence, int64_t budget) const {
  const int64_t most = std::min(sequence.num_tokens_to_schedule(), budget);
  const bool is_alone = running_.size() == 1 && waiting_.empty();
  if (is_alone) return most;
  const int64_t threshold = config_.long_prefill_token_threshold > 0
                                ? config_.long_prefill_token_threshold
                                : (config_.max_num_batched_tokens + 1) / 2;
  return std::min(most, threshold);
}

/// Guesses what follows the known tokens, as far as there is room without taking any from others.
void Scheduler::Draft(Sequence& sequence, int64_t max_drafts) {
  const int64_t limit = sequence.max_num_tokens() - 1 - sequence.num_tokens();
  max_drafts = std::min({max_drafts, limit, int64_t{config_.num_speculative_tokens}});
  const SamplingParams& params = sequence.request->sampling();
  if (max_drafts <= 0 || params.mask != nullptr || !sequence.forks.empty()) return;
  sequence.lookup->Propose(sequence.token_ids, max_drafts, sequence.drafts);
  if (!Grow(sequence, sequence.num_tokens() + std::ssize(sequence.drafts))) {
    sequence.drafts.clear();
  }
  if (sequence.drafts.empty()) return;
  ++stats_.num_drafts;
  stats_.drafted_tokens += std::ssize(sequence.drafts);
}

/// Adds the sequence's next tokens to the step, and its drafts; returns their number.
int64_t Scheduler::Include(Sequence& sequence, int64_t budget, StepBuilder& step) {
  int64_t num_tokens = Chunk(sequence, budget);
  const bool completes = sequence.num_scheduled_tokens + num_tokens == sequence.num_tokens();
  const int64_t num_rows = step.Add(sequence, num_tokens, sequence.drafts);
  const bool chooses = completes && sequence.request->sampling().max_tokens > 0;
  CountTokens(sequence, num_tokens);
  const int64_t num_drafts = std::ssize(sequence.drafts);
  num_tokens += num_drafts;
  boarding_.push_back(
      {&sequence, sequence.num_scheduled_tokens, num_tokens, num_drafts, num_rows, chooses});
  sequence.num_scheduled_tokens += num_tokens;
  sequence.num_chosen_in_flight += chooses ? 1 : 0;
  ++sequence.num_steps_in_flight;
  if (chooses && !sequence.forks.empty()) AdmitForks(sequence, step);
  return num_tokens;
}

void Scheduler::CountTokens(const Sequence& sequence, int64_t num_tokens) {
  const int64_t begin = sequence.num_scheduled_tokens;
  const int64_t end = begin + num_tokens;
  const auto below = [&](int64_t limit) {
    return std::clamp<int64_t>(limit - begin, 0, num_tokens);
  };
  const int64_t prefill = below(sequence.num_prompt_tokens());
  const int64_t again = below(sequence.max_computed_tokens);
  const bool reads = end < sequence.num_tokens() || prefill > 0 || again > 0;
  if (boarding_.empty()) {
    stats_.step_prefills = stats_.step_decodes = 0;
    stats_.step_prefill_tokens = stats_.step_decode_tokens = 0;
  }
  stats_.step_prefills += reads ? 1 : 0;
  stats_.step_decodes += reads ? 0 : 1;
  stats_.step_prefill_tokens += reads ? num_tokens : 0;
  stats_.step_decode_tokens += reads ? 0 : num_tokens;
  stats_.prefill_tokens += prefill;
  stats_.decode_tokens += num_tokens - prefill;
  stats_.recomputed_tokens += again;
  sequence.tenant->service_tokens += num_tokens - again;
}

void Scheduler::Update(const StepResult& result) {
  SHOAL_CHECK(result.status.ok() && !in_flight_.empty(), "a result of a step that runs");
  now_ = Clock::now();
  const std::vector<Flight> flights = std::move(in_flight_.front());
  in_flight_.pop_front();
  std::vector<std::span<const SampledRow>> rows(result.rows.begin(), result.rows.end());
  rows.resize(block_pools_.size());
  for (const Flight& flight : flights) {
    Sequence& sequence = *flight.sequence;
    std::span<const SampledRow>& left = rows[static_cast<size_t>(sequence.rank)];
    const auto num_rows = static_cast<size_t>(flight.num_rows);
    SHOAL_CHECK(left.size() >= num_rows, "rank {} gave too few rows", sequence.rank);
    --sequence.num_steps_in_flight;
    sequence.num_chosen_in_flight -= flight.chooses ? 1 : 0;
    if (sequence.ended) {
      stats_.discarded_tokens += flight.num_tokens;
      some_ended_ = true;
    } else {
      Advance(sequence, flight, left.first(num_rows));
      sequence.request->stream().Notify();
    }
    left = left.subspan(num_rows);
  }
  for (const auto& left : rows) SHOAL_CHECK(left.empty(), "a rank gave {} rows more", left.size());
  Sweep();
}

/// The tokens of the flight are computed and gave `rows`.
void Scheduler::Advance(Sequence& sequence, const Flight& flight,
                        std::span<const SampledRow> rows) {
  const auto num_choices = static_cast<size_t>(flight.chooses ? 1 + flight.num_drafts : 0);
  const std::span<const SampledRow> prompt_rows = rows.first(rows.size() - num_choices);
  sequence.num_computed_tokens = flight.first_position + flight.num_tokens - flight.num_drafts;
  for (const SampledRow& row : prompt_rows) {
    if (row.token_id >= 0) continue;
    return EndUnchosen(sequence, row);
  }
  const SamplingParams& params = sequence.request->sampling();
  if (params.prompt_logprobs >= 0) DeliverPromptLogprobs(sequence, prompt_rows);
  if (flight.chooses) return TakeChoices(sequence, rows.last(num_choices));
  const bool is_all = sequence.num_computed_tokens == sequence.num_prompt_tokens();
  if (!is_all || params.max_tokens > 0) return;
  stats_.prompt_tokens += sequence.num_prompt_tokens();
  End(sequence, FinishReason::kLength, absl::OkStatus());
}

/// The first row chose the next token; each other one what follows a draft, which counts as long as
/// the draft was right.
void Scheduler::TakeChoices(Sequence& sequence, std::span<const SampledRow> rows) {
  const std::vector<int32_t> drafts = std::exchange(sequence.drafts, {});
  if (sequence.num_generated_tokens() == 0 && !sequence.forked) {
    stats_.prompt_tokens += sequence.num_prompt_tokens();
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].token_id < 0) {
      EndUnchosen(sequence, rows[i]);
      break;
    }
    AppendToken(sequence, rows[i]);
    if (sequence.ended || i == drafts.size() || rows[i].token_id != drafts[i]) break;
    ++sequence.num_computed_tokens;
    ++stats_.accepted_tokens;
    ++stats_.decode_tokens;
    ++sequence.tenant->service_tokens;
  }
  if (drafts.empty()) return;
  stats_.discarded_tokens += sequence.num_scheduled_tokens - sequence.num_computed_tokens;
  sequence.num_scheduled_tokens = sequence.num_computed_tokens;
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
  pool(sequence).Publish(sequence.request->scheduling().cache_domain, sequence.token_ids,
                         sequence.num_computed_tokens, sequence.block_table,
                         sequence.num_published_blocks);
  const SamplingParams& params = sequence.request->sampling();
  sequence.token_ids.push_back(row.token_id);
  ++stats_.generation_tokens;
  TokenOutput output = MakeOutput(row.token_id, row, params.logprobs);
  output.time = now_;
  sequence.request->stream().Append(std::move(output));
  if (std::ranges::find(params.stop_token_ids, row.token_id) != params.stop_token_ids.end()) {
    End(sequence, FinishReason::kStop, absl::OkStatus());
  } else if (sequence.num_generated_tokens() >= params.max_tokens) {
    End(sequence, FinishReason::kLength, absl::OkStatus());
  }
}

}  // namespace shoal
