// DecodeGraphs: recorded steps in which every sequence has one token, to be replayed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/execution/batch_builder.h"
#include "kernels/device.h"

namespace shoal {

/// A step as it was recorded.
struct DecodeGraph {
  BatchShape shape;              // padded
  std::unique_ptr<Graph> graph;  // null: not recorded
};

/// One graph for each number of sequences and each bound of their length, both in few steps: a
/// batch is padded to the next ones. Thread: worker.
class DecodeGraphs {
 public:
  /// Numbers of sequences: doubling up to 16, then up to a half more each, then up to a quarter.
  /// The last one is `max_sequences`.
  static std::vector<int64_t> BatchSizes(int64_t max_sequences);

  /// Bounds of the length: powers of two from 256 on, below which attention has nothing to divide.
  /// The last one is `max_context_len`.
  static std::vector<int64_t> ContextLengths(int64_t max_context_len);

  /// None.
  DecodeGraphs() = default;
  /// All shapes, not recorded yet.
  DecodeGraphs(int64_t max_sequences, int64_t max_context_len);

  std::span<DecodeGraph> graphs() { return graphs_; }

  /// The smallest recorded graph that a step of `shape` fits into; null: there is none.
  const DecodeGraph* Find(const BatchShape& shape) const;

 private:
  std::vector<int64_t> batch_sizes_;
  std::vector<int64_t> context_lengths_;
  std::vector<DecodeGraph> graphs_;  // [batch_sizes, context_lengths]
};

}  // namespace shoal
