// Sequence: the engine's own view of a running request.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/kvcache/block_pool.h"
#include "engine/request/request.h"

namespace shoal {

/// Progress of one request. There is no prefill or decode phase: tokens [0, num_computed_tokens)
/// have their keys and values in the cache, and a step computes some more. Thread: engine.
struct Sequence {
  explicit Sequence(int64_t id, std::shared_ptr<Request> request)
      : id(id), request(std::move(request)), token_ids(this->request->prompt_token_ids()) {}

  const int64_t id;
  const std::shared_ptr<Request> request;
  std::vector<int32_t> token_ids;  // prompt, then generated
  BlockTable block_table;
  int64_t num_computed_tokens = 0;   // in the cache, from the first token on
  int64_t num_scheduled_tokens = 0;  // of the step in flight; 0: not in flight
  int64_t num_published_blocks = 0;  // full blocks known to the prefix index
  int64_t num_prompt_logprobs = 0;   // prompt logprobs delivered
  int32_t num_cached_tokens = 0;     // prompt tokens found in the prefix index at first admission
  int32_t num_preemptions = 0;
  Clock::time_point first_scheduled = {};

  int64_t num_prompt_tokens() const {
    return static_cast<int64_t>(request->prompt_token_ids().size());
  }
  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t num_uncomputed_tokens() const { return num_tokens() - num_computed_tokens; }
  int64_t num_generated_tokens() const { return num_tokens() - num_prompt_tokens(); }
};

}  // namespace shoal
