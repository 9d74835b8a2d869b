// Norm: the residual stream between two stages.
#pragma once

#include "kernels/cpu/cpu.h"
#include "kernels/ops.h"

namespace shoal {

/// Ops::AddRmsNorm and Ops::Combine, shapes already checked.
void AddRmsNormRows(Cpu& cpu, const Tensor& delta, const Tensor& residual, const Norm& norm,
                    const Tensor& out);
void CombineRows(Cpu& cpu, const Tensor& rows, const Routing& routing, const Tensor& residual,
                 const Norm& norm, const Tensor& out);

}  // namespace shoal
