#include "kernels/comm/single_rank.h"

#include "kernels/comm/collective.h"

namespace shoal {

void SingleRank::AllGather(const Tensor& local, std::span<const int64_t> counts,
                           const Tensor& all) {
  CheckAllGather({0, counts}, 1, local, all);
  CopyBytes(local.data, local.size_bytes(), all.data);
}

void SingleRank::ReturnRows(const Tensor& rows, const Tensor& expert_ids, int experts_per_rank,
                            std::span<const int64_t> counts, const Tensor& out) {
  CheckReturnRows({0, counts}, 1, rows, expert_ids, out);
  CopyBytes(rows.data, rows.size_bytes(), out.data);
}

}  // namespace shoal
