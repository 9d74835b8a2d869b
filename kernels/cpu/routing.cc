#include "kernels/cpu/routing.h"

#include <algorithm>
#include <cmath>

namespace shoal {
namespace {

void Softmax(float* logits, int64_t n) {
  const float most = *std::max_element(logits, logits + n);
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += logits[i] = std::exp(logits[i] - most);
  for (int64_t i = 0; i < n; ++i) logits[i] /= sum;
}

/// The most likely expert not among those taken, the lower of two alike. One is found even among
/// NaNs, so that a poisoned token harms nobody else.
int32_t MostLikely(const float* probabilities, const int32_t* taken, int64_t num_taken, int64_t n) {
  int32_t best = -1;
  for (int32_t i = 0; i < n; ++i) {
    if (std::find(taken, taken + num_taken, i) != taken + num_taken) continue;
    if (best < 0 || probabilities[i] > probabilities[best]) best = i;
  }
  return best;
}

/// The choice of one token, whose `num_routes` ids and weights these are.
void RouteRow(float* logits, const Router& router, int64_t num_routes, int32_t* ids,
              float* weights) {
  const int64_t num_experts = router.weight.out_features;
  const int64_t top_k = num_routes - router.num_shared;
  Softmax(logits, num_experts);
  float sum = 0;
  for (int64_t k = 0; k < top_k; ++k) {
    ids[k] = MostLikely(logits, ids, k, num_experts);
    weights[k] = logits[ids[k]];
    sum += weights[k];
  }
  for (int64_t k = 0; k < top_k && router.renormalize && top_k > 1; ++k) weights[k] /= sum + 1e-20f;
  for (int64_t k = top_k; k < num_routes; ++k) {
    ids[k] = static_cast<int32_t>(num_experts + k - top_k);
    weights[k] = 1;
  }
}

}  // namespace

int64_t NumRoutedTokens(const Routing& routing) {
  const int64_t num_rows = routing.expert_ids.shape[0];
  if (routing.num_tokens.empty()) return num_rows;
  const int32_t num_tokens = *routing.num_tokens.as<const int32_t>();
  SHOAL_CHECK(num_tokens >= 0 && num_tokens <= num_rows, "{} tokens of {}", num_tokens, num_rows);
  return num_tokens;
}

void RouteRows(Cpu& cpu, float* logits, const Router& router, const Routing& routing) {
  const int64_t num_tokens = NumRoutedTokens(routing);
  const int64_t num_routes = routing.expert_ids.shape[1];
  const int64_t num_experts = router.weight.out_features;
  auto* ids = routing.expert_ids.as<int32_t>();
  auto* weights = routing.weights.as<float>();
  const int64_t grain = GrainFor(num_experts * (num_routes + 8));
  cpu.pool->ParallelFor(num_tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      RouteRow(logits + t * num_experts, router, num_routes, ids + t * num_routes,
               weights + t * num_routes);
    }
  });
  std::fill(ids + num_tokens * num_routes, ids + routing.expert_ids.num_elements(), -1);
}

}  // namespace shoal
