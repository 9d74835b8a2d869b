#include "tests/bench/gpu_bench_batch.h"

#include <algorithm>
#include <numeric>
#include <random>

namespace shoal::bench {

ForwardBatch MakeBatch(const BatchShape& shape, int variant, Gpu& gpu) {
  const auto [count, context] = shape.sequences;
  const int64_t max_blocks = (context + shape.block_size - 1) / shape.block_size;
  SHOAL_CHECK(count * max_blocks <= shape.num_blocks, "{} blocks for {} sequences of {} tokens",
              shape.num_blocks, count, context);
  std::minstd_rand random(static_cast<uint32_t>(variant + 1));
  std::vector<int32_t> blocks(static_cast<size_t>(shape.num_blocks));
  std::iota(blocks.begin(), blocks.end(), 0);
  std::ranges::shuffle(blocks, random);
  blocks.resize(static_cast<size_t>(count * max_blocks));

  std::vector<int32_t> token_ids, positions, slots, starts = {0};
  for (int64_t sequence = 0; sequence < count; ++sequence) {
    for (int64_t position = context - shape.query_len; position < context; ++position) {
      const auto block = static_cast<size_t>(sequence * max_blocks + position / shape.block_size);
      token_ids.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(shape.vocab)));
      positions.push_back(static_cast<int32_t>(position));
      slots.push_back(
          static_cast<int32_t>(blocks[block] * shape.block_size + position % shape.block_size));
    }
    starts.push_back(static_cast<int32_t>(token_ids.size()));
  }
  const int64_t num_tokens = std::ssize(token_ids);
  return {.token_ids = gpu.Upload(token_ids, {num_tokens}),
          .attention = {.positions = gpu.Upload(positions, {num_tokens}),
                        .slot_mapping = gpu.Upload(slots, {num_tokens}),
                        .cu_seqlens = gpu.Upload(starts, {count + 1}),
                        .block_tables = gpu.Upload(blocks, {count, max_blocks}),
                        .max_query_len = shape.query_len,
                        .max_context_len = context},
          .num_tokens = {}};
}

Tensor MakeLogitsRows(const BatchShape& shape, Gpu& gpu) {
  std::vector<int32_t> rows;
  for (int64_t sequence = 1; sequence <= shape.sequences.count; ++sequence) {
    rows.push_back(static_cast<int32_t>(sequence * shape.query_len - 1));
  }
  return gpu.Upload(rows, {shape.sequences.count});
}

int64_t CountExperts(std::span<const int32_t> expert_ids, int num_experts) {
  std::vector<bool> seen(static_cast<size_t>(num_experts));
  for (const int32_t expert : expert_ids) {
    if (expert >= 0 && expert < num_experts) seen[static_cast<size_t>(expert)] = true;
  }
  return std::ranges::count(seen, true);
}

}  // namespace shoal::bench
