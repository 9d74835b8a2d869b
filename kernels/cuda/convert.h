// Conversion of host tensors on their way to the device.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace shoal::cuda {

/// Writes elements [begin, begin + count) of `from` to `to` as `dtype`, rounded to nearest, ties to
/// even; NaN stays NaN. From float32, bfloat16 or float16 to float32 or bfloat16, or between equal
/// types.
void ConvertElements(const Tensor& from, int64_t begin, int64_t count, DType dtype, void* to);

}  // namespace shoal::cuda
