// ForwardBatch: what one forward pass reads.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/ops.h"

namespace shoal {

/// The tokens of one step, all sequences one after the other. Device tensors; there may be none.
struct ForwardBatch {
  Tensor token_ids;  // [num_tokens] int32; -1 for a padding token
  AttentionMeta attention;
  Tensor num_tokens;  // [1] int32: the tokens after these are padding; empty: none is
  // [num_ranks] tokens of each rank, host memory that stays untouched until the device is
  // synchronized. May be empty on a single rank. With several ranks there is no padding.
  std::span<const int64_t> rank_tokens = {};
};

}  // namespace shoal
