// Routing: from the router's logits to the experts of each token.
#pragma once

#include "kernels/cpu/cpu.h"
#include "kernels/ops.h"

namespace shoal {

/// Softmax over each row of logits [num_tokens, num_experts], then the top_k most likely; see
/// Ops::RouteTopK. Overwrites the logits.
void RouteRows(Cpu& cpu, float* logits, int64_t num_experts, bool renormalize,
               const Routing& routing);

}  // namespace shoal
