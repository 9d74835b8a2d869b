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

void RouteRow(float* logits, int64_t num_experts, bool renormalize, int64_t top_k, int32_t* ids,
              float* weights) {
  Softmax(logits, num_experts);
  float sum = 0;
  for (int64_t k = 0; k < top_k; ++k) {
    ids[k] = MostLikely(logits, ids, k, num_experts);
    weights[k] = logits[ids[k]];
    sum += weights[k];
  }
  if (!renormalize || top_k == 1) return;
  for (int64_t k = 0; k < top_k; ++k) weights[k] /= sum + 1e-20f;
}

}  // namespace

void RouteRows(Cpu& cpu, float* logits, int64_t num_experts, bool renormalize,
               const Routing& routing) {
  const int64_t top_k = routing.expert_ids.shape[1];
  const int64_t grain = GrainFor(num_experts * (top_k + 8));
  cpu.pool->ParallelFor(routing.expert_ids.shape[0], grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      RouteRow(logits + t * num_experts, num_experts, renormalize, top_k,
               routing.expert_ids.as<int32_t>() + t * top_k,
               routing.weights.as<float>() + t * top_k);
    }
  });
}

}  // namespace shoal
