#include "engine/scheduler/step_builder.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/status.h"

namespace shoal {
namespace {

SamplingRow ChoiceRow(const Sequence& sequence, int64_t position) {
  const SamplingParams& params = sequence.request->sampling();
  return {.temperature = params.temperature,
          .top_k = params.top_k,
          .top_p = params.top_p,
          .min_p = params.min_p,
          .typical_p = params.typical_p,
          .presence_penalty = params.presence_penalty,
          .frequency_penalty = params.frequency_penalty,
          .repetition_penalty = params.repetition_penalty,
          .top_logprobs = params.logprobs,
          .slot = sequence.slot,
          .num_prompt_tokens = static_cast<int32_t>(sequence.num_prompt_tokens()),
          .seed = params.seed,
          .position = position};
}

/// Asks for the logprob of the prompt token at `position`.
SamplingRow PromptRow(const Sequence& sequence, int64_t position) {
  return {.forced_token = sequence.token_ids[static_cast<size_t>(position)],
          .top_logprobs = sequence.request->sampling().prompt_logprobs,
          .slot = sequence.slot,
          .position = position};
}

}  // namespace

StepBuilder::StepBuilder(size_t num_ranks, int64_t vocab_size, size_t num_sequences)
    : vocab_size_(vocab_size), mask_words_(static_cast<size_t>((vocab_size + 31) / 32)) {
  step_.ranks.resize(num_ranks);
  for (ScheduledBatch& batch : step_.ranks) {
    batch.sequences.reserve(num_sequences);
    batch.token_ids.reserve(num_sequences);
    batch.logits_rows.reserve(num_sequences);
    batch.sampling.reserve(num_sequences);
  }
}

int64_t StepBuilder::Add(const Sequence& sequence, int64_t num_tokens,
                         std::span<const int32_t> drafts) {
  ScheduledBatch& to = batch(sequence.rank);
  const int64_t first = sequence.num_scheduled_tokens;
  const int64_t end = first + num_tokens;
  const int64_t num_known = std::min(end, sequence.num_known_tokens());
  to.token_ids.insert(to.token_ids.end(), sequence.token_ids.begin() + first,
                      sequence.token_ids.begin() + std::max(num_known, first));
  for (int64_t i = std::max(num_known, first); i < end; ++i) {
    to.token_ids.push_back(ScheduledBatch::kInFlightToken);
  }
  int64_t num_rows = AddPromptRows(sequence, num_tokens);
  if (end == sequence.num_tokens() && sequence.request->sampling().max_tokens > 0) {
    const bool recorded = drafts.empty();  // what follows a draft is known before it is run
    to.logits_rows.push_back(static_cast<int32_t>(to.token_ids.size()) - 1);
    AddChoice(sequence, end, recorded);
    for (size_t i = 0; i < drafts.size(); ++i) {
      to.token_ids.push_back(drafts[i]);
      to.logits_rows.push_back(static_cast<int32_t>(to.token_ids.size()) - 1);
      AddChoice(sequence, end + 1 + static_cast<int64_t>(i), recorded);
    }
    num_rows += 1 + std::ssize(drafts);
  }
  to.block_tables.insert(to.block_tables.end(), sequence.block_table.begin(),
                         sequence.block_table.end());
  to.sequences.push_back({.first_position = first,
                          .num_tokens = static_cast<int32_t>(num_tokens + std::ssize(drafts)),
                          .num_blocks = static_cast<int32_t>(sequence.block_table.size()),
                          .slot = sequence.slot});
  return num_rows;
}

/// The tokens are those added last.
int64_t StepBuilder::AddPromptRows(const Sequence& sequence, int64_t num_tokens) {
  if (sequence.request->sampling().prompt_logprobs < 0) return 0;
  ScheduledBatch& to = batch(sequence.rank);
  const int64_t first = sequence.num_scheduled_tokens;
  const int64_t first_row = to.num_tokens() - num_tokens;
  const int64_t begin = std::max(first, sequence.num_prompt_logprobs - 1);
  const int64_t end = std::min(first + num_tokens, sequence.num_prompt_tokens() - 1);
  for (int64_t i = begin; i < end; ++i) {
    to.logits_rows.push_back(static_cast<int32_t>(first_row + i - first));
    to.sampling.push_back(PromptRow(sequence, i + 1));
  }
  return std::max<int64_t>(end - begin, 0);
}

void StepBuilder::AddFork(const Sequence& fork) {
  ScheduledBatch& to = batch(fork.rank);
  to.logits_rows.push_back(static_cast<int32_t>(to.token_ids.size()) - 1);
  AddChoice(fork, fork.num_scheduled_tokens, /*recorded=*/true);
}

void StepBuilder::AddHistory(const Sequence& sequence, int64_t num_tokens) {
  const auto begin = sequence.token_ids.begin();
  batch(sequence.rank).history.push_back({sequence.slot, {begin, begin + num_tokens}});
}

/// How to choose the token at `position`.
void StepBuilder::AddChoice(const Sequence& sequence, int64_t position, bool recorded) {
  ScheduledBatch& to = batch(sequence.rank);
  const SamplingParams& params = sequence.request->sampling();
  SamplingRow row = ChoiceRow(sequence, position);
  row.recorded = recorded ? 1 : 0;
  row.first_bias = static_cast<int32_t>(to.biases.size());
  to.biases.insert(to.biases.end(), params.logit_bias.begin(), params.logit_bias.end());
  if (position - sequence.num_prompt_tokens() < params.min_tokens) {
    for (const int32_t id : params.stop_token_ids) {
      if (id < vocab_size_) to.biases.push_back({id, -std::numeric_limits<float>::infinity()});
    }
  }
  row.num_biases = static_cast<int32_t>(to.biases.size()) - row.first_bias;
  if (params.mask != nullptr) AddMask(sequence, row);
  to.sampling.push_back(row);
}

void StepBuilder::AddMask(const Sequence& sequence, SamplingRow& row) {
  std::vector<int32_t>& masks = batch(sequence.rank).masks;
  row.mask = static_cast<int32_t>(masks.size() / mask_words_);
  masks.resize(masks.size() + mask_words_);
  const auto generated =
      std::span(sequence.token_ids).subspan(static_cast<size_t>(sequence.num_prompt_tokens()));
  const std::span<int32_t> allowed = std::span(masks).last(mask_words_);
  // An empty mask is told by the row's result.
  if (!sequence.request->sampling().mask->Allow(generated, allowed)) std::ranges::fill(allowed, 0);
}

ScheduledStep StepBuilder::Finish(std::vector<std::vector<BlockCopy>> copies) {
  std::vector<int64_t> rank_tokens(step_.ranks.size());
  std::ranges::transform(step_.ranks, rank_tokens.begin(), &ScheduledBatch::num_tokens);
  for (size_t rank = 0; rank < step_.ranks.size(); ++rank) {
    step_.ranks[rank].rank_tokens = rank_tokens;
    step_.ranks[rank].block_copies = std::move(copies[rank]);
  }
  return std::move(step_);
}

}  // namespace shoal
