// Elements of tensors: reading them as float, rounding to them, and choosing code by storage type.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/tensor.h"

namespace shoal {

/// IEEE half precision, as found in checkpoints; never computed with.
struct Float16 {
  uint16_t bits = 0;
};

inline float ToFloat(float value) { return value; }
inline float ToFloat(BFloat16 value) { return static_cast<float>(value); }
inline float ToFloat(Float16 value) {
  // The exponent is rebased by a multiplication, which is right for subnormals too; infinities and
  // NaNs then need the rest of their exponent.
  const uint32_t magnitude = value.bits & 0x7fffu;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | special | sign);
}

inline void Round(float value, float& to) { to = value; }
inline void Round(float value, BFloat16& to) { to = BFloat16(value); }

/// Calls body(T{}) with the storage type T of activations and weights that `dtype` names.
template <typename Body>
void WithStorage(DType dtype, const Body& body) {
  if (dtype == DType::kFloat32) {
    body(float{});
  } else {
    SHOAL_CHECK(dtype == DType::kBFloat16, "{} is no storage type of this backend", Name(dtype));
    body(BFloat16{});
  }
}

}  // namespace shoal
