// Routing: from the router's logits to the experts of each token.
#pragma once

#include "kernels/cpu/cpu.h"
#include "kernels/ops.h"

namespace shoal {

/// The tokens that are not padding.
int64_t NumRoutedTokens(const Routing& routing);

/// Softmax over each row of logits [num_tokens, num_experts], then the choice of experts; see
/// Ops::AddRmsNormRoute. Overwrites the logits.
void RouteRows(Cpu& cpu, float* logits, const Router& router, const Routing& routing);

}  // namespace shoal
