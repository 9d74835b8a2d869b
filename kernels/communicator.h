// Communicator: a rank's place in its expert-parallel group, and how rows travel between ranks.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace shoal {

/// One rank's end of a group. Like Ops, the collectives only enqueue, in order with the rank's ops.
/// Every rank of the group makes the same calls in the same order, with the same `counts`: the
/// rows (tokens) of each rank, [size()], host memory, which may be 0. Shapes are invariants
/// (CHECK). Thread: the rank's worker.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// all = the rows of every rank, in the order of the ranks. local [counts[rank()], ...]; all
  /// [sum of counts, ...] of the same dtype and row shape.
  virtual void AllGather(const Tensor& local, std::span<const int64_t> counts,
                         const Tensor& all) = 0;

  /// Brings home what other ranks' experts computed for this rank's tokens: out[t, k] = rows[f + t,
  /// k] of rank expert_ids[t, k] / experts_per_rank, where f is the sum of the counts of the ranks
  /// before this one. rows [sum of counts, top_k, hidden_size], each rank's own; expert_ids
  /// [counts[rank()], top_k] int32; out [counts[rank()], top_k, hidden_size]. Rows are copied, not
  /// summed, so they are the same bits whatever the number of ranks.
  virtual void ReturnRows(const Tensor& rows, const Tensor& expert_ids, int experts_per_rank,
                          std::span<const int64_t> counts, const Tensor& out) = 0;
};

}  // namespace shoal
