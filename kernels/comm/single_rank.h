// The group of one.
#pragma once

#include "kernels/communicator.h"

namespace shoal {

/// Has all experts and all tokens, so that each collective is a plain copy, done when it returns.
class SingleRank final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }

  void AllGather(const Tensor& local, std::span<const int64_t> counts, const Tensor& all) override;
  void ReturnRows(const Tensor& rows, const Tensor& expert_ids, int experts_per_rank,
                  std::span<const int64_t> counts, const Tensor& out) override;
};

}  // namespace shoal
