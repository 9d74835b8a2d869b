#include "kernels/cpu/random.h"

#include "kernels/cpu/element.h"
#include "kernels/normal.h"

namespace shoal {

void FillWithNormals(Cpu& cpu, const Tensor& out, uint64_t seed, float stddev) {
  constexpr int64_t kMacsPerPair = 64;
  const int64_t count = out.num_elements();
  const float factor = stddev / kByteSumDeviation;
  WithStorage(out.dtype, [&](auto element) {
    auto* values = out.as<decltype(element)>();
    cpu.pool->ParallelFor((count + 1) / 2, GrainFor(kMacsPerPair),
                          [=](int64_t begin, int64_t end, int) {
                            for (int64_t pair = begin; pair < end; ++pair) {
                              const std::array<int32_t, 2> sums = ByteSumPair(seed, pair);
                              Round(static_cast<float>(sums[0]) * factor, values[2 * pair]);
                              if (2 * pair + 1 < count) {
                                Round(static_cast<float>(sums[1]) * factor, values[2 * pair + 1]);
                              }
                            }
                          });
  });
}

}  // namespace shoal
