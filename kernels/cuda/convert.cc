#include "kernels/cuda/convert.h"

#include <bit>
#include <cstring>

namespace shoal::cuda {
namespace {

/// IEEE half precision, as found in checkpoints.
struct Float16 {
  uint16_t bits = 0;
};

float ToFloat(float value) { return value; }
float ToFloat(BFloat16 value) { return static_cast<float>(value); }
float ToFloat(Float16 value) {
  // The exponent is rebased by a multiplication, which is right for subnormals too; infinities and
  // NaNs then need the rest of their exponent.
  const uint32_t magnitude = value.bits & 0x7fffu;
  const float rebased = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(rebased) | special | sign);
}

template <typename From>
void Convert(const From* from, int64_t count, DType dtype, void* to) {
  if (dtype == DType::kFloat32) {
    auto* out = static_cast<float*>(to);
    for (int64_t i = 0; i < count; ++i) out[i] = ToFloat(from[i]);
  } else {
    SHOAL_CHECK(dtype == DType::kBFloat16, "a conversion to {}", Name(dtype));
    auto* out = static_cast<BFloat16*>(to);
    for (int64_t i = 0; i < count; ++i) out[i] = BFloat16(ToFloat(from[i]));
  }
}

}  // namespace

void ConvertElements(const Tensor& from, int64_t begin, int64_t count, DType dtype, void* to) {
  if (from.dtype == dtype) {
    const int64_t size = SizeOf(dtype);
    std::memcpy(to, from.as<const std::byte>() + begin * size, count * size);
    return;
  }
  switch (from.dtype) {
    case DType::kFloat32:
      return Convert(from.as<const float>() + begin, count, dtype, to);
    case DType::kBFloat16:
      return Convert(from.as<const BFloat16>() + begin, count, dtype, to);
    case DType::kFloat16:
      return Convert(from.as<const Float16>() + begin, count, dtype, to);
    default:
      SHOAL_CHECK(false, "a conversion of {} to {}", Name(from.dtype), Name(dtype));
  }
}

}  // namespace shoal::cuda
