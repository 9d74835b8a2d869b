// Sequence: the engine's own view of a request in progress.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/kvcache/block_pool.h"
#include "engine/request/prompt_lookup.h"
#include "engine/request/request.h"

namespace shoal {

/// What the requests of one tenant wait for and use. Thread: engine.
struct Tenant {
  std::string name;
  int64_t service_tokens = 0;  // computed for it, raised to that of others when it comes back
  int32_t num_waiting = 0;     // sequences
  int32_t num_running = 0;
  int64_t num_blocks = 0;  // in the tables of its sequences; a shared one counts for each
};

/// Progress of one request. There is no prefill or decode phase: a step computes some more of the
/// tokens, whether they are known or being chosen by a step in flight. In the order of positions:
///
///   [0, num_computed_tokens)                             in the cache
///   [num_computed_tokens, num_scheduled_tokens)          computed by the steps in flight
///   [num_scheduled_tokens, num_tokens())                 to do; of these the last
///   [token_ids.size(), num_tokens())                     are chosen by the steps in flight
///
/// Thread: engine.
struct Sequence {
  Sequence(int64_t id, std::shared_ptr<Request> request)
      : id(id), request(std::move(request)), token_ids(this->request->prompt_token_ids()) {}

  const int64_t id;
  const std::shared_ptr<Request> request;
  Tenant* tenant = nullptr;        // the queue's
  std::vector<int32_t> token_ids;  // prompt, then generated, as far as known
  int64_t num_computed_tokens = 0;
  int64_t num_scheduled_tokens = 0;
  int32_t num_chosen_in_flight = 0;  // tokens that the steps in flight choose
  int32_t num_steps_in_flight = 0;
  std::vector<int32_t> drafts;  // of the step in flight: guesses at what follows
  bool ended = false;           // its stream is finished; it stays as long as it is in flight

  // While it runs.
  int32_t rank = 0;
  int32_t slot = 0;          // of the token history
  bool has_reserve = false;  // its blocks up to its last possible token are spoken for
  BlockTable block_table;
  int64_t num_published_blocks = 0;  // full blocks known to the prefix index

  std::unique_ptr<PromptLookup> lookup;  // null: no speculation

  /// Other choices of the same prompt, which start with this one's blocks once the prompt is
  /// computed. They wait and run where this sequence does.
  std::vector<std::unique_ptr<Sequence>> forks;
  bool forked = false;  // began as one, with another's blocks

  // Over its life.
  int64_t max_computed_tokens = 0;  // before a preemption, at most
  int64_t num_prompt_logprobs = 0;  // delivered
  int32_t num_cached_tokens = 0;    // prompt tokens found in the prefix index at first admission
  int32_t num_preemptions = 0;
  Clock::time_point first_scheduled = {};

  int64_t num_prompt_tokens() const {
    return static_cast<int64_t>(request->prompt_token_ids().size());
  }
  int64_t num_known_tokens() const { return static_cast<int64_t>(token_ids.size()); }
  int64_t num_tokens() const { return num_known_tokens() + num_chosen_in_flight; }
  /// The last token that the request may have is never computed itself.
  int64_t num_tokens_to_schedule() const {
    const int64_t limit = num_prompt_tokens() + std::max(request->sampling().max_tokens - 1, 0);
    return std::min(num_tokens(), limit) - num_scheduled_tokens;
  }
  int64_t num_generated_tokens() const { return num_known_tokens() - num_prompt_tokens(); }
  int64_t max_num_tokens() const { return num_prompt_tokens() + request->sampling().max_tokens; }
};

}  // namespace shoal
