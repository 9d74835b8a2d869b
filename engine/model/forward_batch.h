// ForwardBatch: what one forward pass reads.
#pragma once

#include "kernels/ops.h"

namespace shoal {

/// The tokens of one step, all sequences one after the other. Device tensors.
struct ForwardBatch {
  Tensor token_ids;  // [num_tokens] int32
  AttentionMeta attention;
};

}  // namespace shoal
