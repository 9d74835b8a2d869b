#include "engine/execution/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <span>

#include "engine/model/checkpoint_layout.h"

namespace shoal {

std::string Describe(const MemoryPlan& plan) {
  const auto gib = [](int64_t bytes) { return static_cast<double>(bytes) / (int64_t{1} << 30); };
  return fmt::format(
      "weights {:.2f} GiB, activations {:.2f} GiB, KV cache {:.2f} GiB ({} blocks), {:.2f} GiB "
      "left",
      gib(plan.weight_bytes), gib(plan.activation_bytes), gib(plan.kv_cache_bytes),
      plan.num_kv_blocks, gib(plan.left_bytes));
}

int64_t WeightBytes(const ModelConfig& model, DType dtype, const ExpertPlacement& placement,
                    int rank) {
  const std::span<const int> experts = placement.experts_of(rank);
  int64_t num_elements = 0;
  for (const TensorSpec& spec : CheckpointLayout(model)) {
    if (spec.expert >= 0 && std::ranges::find(experts, spec.expert) == experts.end()) continue;
    num_elements +=
        std::accumulate(spec.shape.begin(), spec.shape.end(), int64_t{1}, std::multiplies());
  }
  return num_elements * SizeOf(dtype);
}

}  // namespace shoal
