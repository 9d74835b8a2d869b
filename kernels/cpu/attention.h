// Attention: rotary embedding, the paged cache, and causal attention over it.
#pragma once

#include <vector>

#include "kernels/cpu/cpu.h"
#include "kernels/ops.h"

namespace shoal {

/// Ops::RopeAndWriteKv, shapes already checked.
void RopeAndWriteKvRows(Cpu& cpu, const Tensor& qkv, const Tensor& rope_table,
                        const AttentionMeta& meta, const AttentionShape& shape, const Tensor& kv);

/// Ops::PagedAttention. The keys of a sequence are taken 64 at a time, counted from its first
/// token, with a running maximum and sum (online softmax, arXiv 1805.02867), so that a query's
/// result depends on neither the cache's block size nor how its prompt was cut into steps.
class AttentionRunner {
 public:
  /// Shapes already checked.
  void Run(Cpu& cpu, const Tensor& qkv, const Tensor& kv, const AttentionMeta& meta,
           const AttentionShape& shape, const Tensor& out);

 private:
  /// Queries of one sequence that share the widened keys and values.
  struct QueryTile {
    int64_t sequence = 0;
    int64_t first_token = 0;
    int64_t num_tokens = 0;
  };

  void CutIntoTiles(const AttentionMeta& meta, int64_t tile_tokens);

  std::vector<QueryTile> tiles_;
};

}  // namespace shoal
