#include "engine/execution/decode_graphs.h"

#include <algorithm>
#include <bit>

namespace shoal {
namespace {

/// The number of sequences after `size`. A padded row costs little where rows are many.
int64_t NextBatchSize(int64_t size) {
  if (size < 16) return 2 * size;
  if (size < 32) return size + 8;
  const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(size)));
  return size + std::max<int64_t>(16, power / 4);
}

/// `next` of `first`, of that and so on, up to `last`.
template <typename Next>
std::vector<int64_t> StepsUpTo(int64_t first, int64_t last, const Next& next) {
  std::vector<int64_t> steps;
  for (int64_t step = first; step < last; step = next(step)) steps.push_back(step);
  if (last > 0) steps.push_back(last);
  return steps;
}

}  // namespace

std::vector<int64_t> DecodeGraphs::BatchSizes(int64_t max_sequences) {
  return StepsUpTo(1, max_sequences, NextBatchSize);
}

std::vector<int64_t> DecodeGraphs::ContextLengths(int64_t max_context_len) {
  constexpr int64_t kSplit = 256;  // positions that attention sums by themselves
  return StepsUpTo(kSplit, max_context_len, [](int64_t length) { return 2 * length; });
}

DecodeGraphs::DecodeGraphs(int64_t max_sequences, int64_t max_context_len)
    : batch_sizes_(BatchSizes(max_sequences)), context_lengths_(ContextLengths(max_context_len)) {
  for (const int64_t size : batch_sizes_) {
    for (const int64_t length : context_lengths_) {
      graphs_.push_back({.shape = {.num_tokens = size,
                                   .num_sequences = size,
                                   .max_query_len = 1,
                                   .max_context_len = length,
                                   .padded = true},
                         .graph = nullptr});
    }
  }
}

const DecodeGraph* DecodeGraphs::Find(const BatchShape& shape) const {
  if (shape.max_query_len != 1) return nullptr;
  const auto size = std::ranges::lower_bound(batch_sizes_, shape.num_sequences);
  const auto length = std::ranges::lower_bound(context_lengths_, shape.max_context_len);
  if (size == batch_sizes_.end() || length == context_lengths_.end()) return nullptr;
  const auto row = static_cast<size_t>(size - batch_sizes_.begin());
  const auto column = static_cast<size_t>(length - context_lengths_.begin());
  const DecodeGraph& graph = graphs_[row * context_lengths_.size() + column];
  return graph.graph == nullptr ? nullptr : &graph;
}

}  // namespace shoal
