// Steps for the model, laid out as the engine lays them out.
#pragma once

#include "engine/model/forward_batch.h"
#include "tests/bench/gpu_bench_gpu.h"
#include "tests/bench/gpu_bench_scale.h"

namespace shoal::bench {

/// Sequences of one length whose last `query_len` tokens are in the step.
struct BatchShape {
  Sequences sequences;
  int64_t query_len = 1;
  int64_t block_size = 0;
  int64_t num_blocks = 0;  // of the KV cache: those of the batch are spread over all
  int64_t vocab = 0;
};

/// The step on the device. `variant` chooses other blocks and tokens.
ForwardBatch MakeBatch(const BatchShape& shape, int variant, Gpu& gpu);

/// The last token of each sequence. [num_sequences] int32
Tensor MakeLogitsRows(const BatchShape& shape, Gpu& gpu);

/// How many different ids of [0, num_experts) there are.
int64_t CountExperts(std::span<const int32_t> expert_ids, int num_experts);

}  // namespace shoal::bench
