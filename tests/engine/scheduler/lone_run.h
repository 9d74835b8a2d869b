// LoneRun: what a request gets from ContextModel, straight from the definitions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/request/request.h"
#include "tests/engine/scheduler/context_model.h"

namespace shoal {

/// The whole output of a request that runs alone: without scheduler, cache or history.
struct LoneRun {
  std::vector<TokenLogprob> prompt;  // with prompt logprobs only
  std::vector<TokenLogprob> tokens;
  FinishReason reason = FinishReason::kError;
};

/// Whether the request lets `id` follow `generated`.
inline bool MayFollow(const SamplingParams& params, std::span<const int32_t> generated,
                      std::span<const int32_t> mask, int32_t id) {
  if (!mask.empty() && (mask[static_cast<size_t>(id / 32)] >> (id % 32) & 1) == 0) return false;
  if (std::ssize(generated) < params.min_tokens) {
    for (const int32_t stop : params.stop_token_ids) {
      if (id == stop) return false;
    }
  }
  for (const LogitBias& bias : params.logit_bias) {
    if (id == bias.token_id && std::isinf(bias.bias)) return false;
  }
  return true;
}

/// The token that follows `tokens`, or SampledRow::kNoneAllowed.
inline int32_t ChooseAlone(const Request& request, std::span<const int32_t> tokens, uint64_t seen) {
  const SamplingParams& params = request.sampling();
  const size_t num_prompt_tokens = request.prompt_token_ids().size();
  const std::span generated = tokens.subspan(num_prompt_tokens);
  std::vector<int32_t> mask;
  if (params.mask != nullptr) {
    mask.resize((ContextModel::kVocabSize + 31) / 32);
    if (!params.mask->Allow(generated, mask)) return SampledRow::kNoneAllowed;
  }
  const SamplingRow row = {.presence_penalty = params.presence_penalty,
                           .num_prompt_tokens = static_cast<int32_t>(num_prompt_tokens),
                           .seed = params.seed};
  return ContextModel::Choose(ContextModel::RandomNumber(seen, row, tokens),
                              [&](int32_t id) { return MayFollow(params, generated, mask, id); });
}

inline LoneRun RunAlone(const ContextModel& model, const Request& request) {
  const SamplingParams& params = request.sampling();
  LoneRun run;
  uint64_t entry = ContextModel::kStart, seen = ContextModel::kStart;
  const auto compute = [&](int32_t token_id) {
    entry = model.Entry(entry, token_id);
    seen = ContextModel::See(seen, entry);
  };
  std::vector<int32_t> tokens;
  for (const int32_t id : request.prompt_token_ids()) {
    if (params.prompt_logprobs >= 0) {
      if (seen == ContextModel::kNonFinite) return run;
      run.prompt.push_back({id, tokens.empty() ? 0 : ContextModel::Logprob(seen, id)});
    }
    compute(id);
    tokens.push_back(id);
  }
  while (std::ssize(run.tokens) < params.max_tokens) {
    if (seen == ContextModel::kNonFinite) return run;
    const int32_t id = ChooseAlone(request, tokens, seen);
    if (id < 0) return run;
    run.tokens.push_back({id, ContextModel::Logprob(seen, id)});
    tokens.push_back(id);
    if (std::ranges::find(params.stop_token_ids, id) != params.stop_token_ids.end()) {
      run.reason = FinishReason::kStop;
      return run;
    }
    compute(id);
  }
  run.reason = FinishReason::kLength;
  return run;
}

}  // namespace shoal
