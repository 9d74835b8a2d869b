// Collective: what the communicators have in common.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/tensor.h"

namespace shoal {

/// How many rows each rank of a group has, seen by one of them.
struct RowCounts {
  int rank = 0;
  std::span<const int64_t> of_rank;  // [size of the group]

  int64_t own() const { return of_rank[rank]; }
  /// Rows of the ranks before this one.
  int64_t first() const;
  int64_t total() const;
};

/// CHECKs what one rank can see: shapes and dtypes, and that there are `size` counts.
void CheckAllGather(const RowCounts& counts, int size, const Tensor& local, const Tensor& all);
void CheckReturnRows(const RowCounts& counts, int size, const Tensor& rows,
                     const Tensor& expert_ids, const Tensor& out);

/// Whether two tensors agree in dtype and in all dimensions but the first.
bool SameRowShape(const Tensor& a, const Tensor& b);

/// memcpy that takes null pointers of 0 bytes.
void CopyBytes(const void* from, int64_t bytes, void* to);

}  // namespace shoal
