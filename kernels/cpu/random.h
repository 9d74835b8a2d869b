// Random numbers for weights that no checkpoint gives.
#pragma once

#include <cstdint>

#include "kernels/cpu/cpu.h"
#include "kernels/tensor.h"

namespace shoal {

/// Ops::FillNormal, dtype already checked.
void FillWithNormals(Cpu& cpu, const Tensor& out, uint64_t seed, float stddev);

}  // namespace shoal
