// Simd: 16-lane float vectors. A kernel is written once over `Vec` and compiled for every
// instruction set below, so its order of operations is the same in all of them; the best is chosen
// at run time.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/tensor.h"

/// Inlined into its caller whatever the optimiser thinks, so that it is compiled for the caller's
/// instruction set.
#define SHOAL_INLINE inline __attribute__((always_inline))

namespace shoal {

/// 16 floats are one register, two or four, by instruction set. Multiply and add are fused wherever
/// the set has the instruction, and nowhere else. Vectors travel by reference: by value they would
/// tie a function's calling convention to one instruction set.
inline constexpr int kLanes = 16;
using Vec = float __attribute__((vector_size(64)));
using VecInt = int32_t __attribute__((vector_size(64)));
using VecUint = uint32_t __attribute__((vector_size(64)));

constexpr int64_t RoundUpToLanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

SHOAL_INLINE void Load(const float* from, Vec& to) { std::memcpy(&to, from, sizeof(to)); }

SHOAL_INLINE void Load(const BFloat16* from, Vec& to) {
  using Half = uint16_t __attribute__((vector_size(32)));
  Half bits;
  std::memcpy(&bits, from, sizeof(bits));
  const VecUint wide = __builtin_convertvector(bits, VecUint) << 16;
  std::memcpy(&to, &wide, sizeof(to));
}

/// The first `count` < 16 lanes; the others are 0.
template <typename T>
SHOAL_INLINE void LoadPartial(const T* from, int64_t count, Vec& to) {
  T lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
  Load(lanes, to);
}

SHOAL_INLINE void Store(const Vec& from, float* to) { std::memcpy(to, &from, sizeof(from)); }

SHOAL_INLINE void Fill(float value, Vec& to) { to = Vec{} + value; }

/// The sum of the lanes by halving: lane i and i + 8, then i + 4, i + 2, i + 1.
SHOAL_INLINE float ReduceAdd(const Vec& v) {
  using Vec8 = float __attribute__((vector_size(32)));
  using Vec4 = float __attribute__((vector_size(16)));
  const Vec8 eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const Vec4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
                    __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

SHOAL_INLINE void Max(const Vec& a, const Vec& b, Vec& to) { to = a > b ? a : b; }

SHOAL_INLINE float ReduceMax(const Vec& v) {
  float most = v[0];
  for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

/// e^x within 2 units in the last place for x <= 88 (above, e^88); 0 below -87.3, 1 at 0.
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial, 2^n by the exponent bits.
SHOAL_INLINE void Exp(const Vec& x, Vec& to) {
  constexpr float kLeast = -87.3f, kMost = 88.0f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Vec least, most, one, round;
  Fill(kLeast, least);
  Fill(kMost, most);
  Fill(1.0f, one);
  Fill(kRound, round);
  Vec clamped = x < least ? least : x;
  clamped = clamped > most ? most : clamped;
  const Vec shifted = clamped * 1.44269504f + round;
  const Vec n = shifted - round;
  Vec r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Vec p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  VecInt exponent, bias;
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  std::memcpy(&bias, &round, sizeof(bias));
  const VecInt power_bits = (exponent - bias + 127) << 23;
  Vec power;
  std::memcpy(&power, &power_bits, sizeof(power));
  to = x < least ? Vec{} : p * power;
}

/// Instruction sets that kernels are compiled for. Results of kAvx2 and kAvx512 are bit-identical;
/// kBaseline has no fused multiply-add and rounds differently.
enum class Isa { kBaseline, kAvx2, kAvx512 };

/// The best of them on this machine.
inline Isa BestIsa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

#if defined(__x86_64__)
template <typename Kernel>
__attribute__((target("avx2,fma"))) void RunAvx2(const typename Kernel::Args& args) {
  Kernel::template Run<Isa::kAvx2>(args);
}
template <typename Kernel>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) void RunAvx512(
    const typename Kernel::Args& args) {
  Kernel::template Run<Isa::kAvx512>(args);
}
#endif

/// Runs `Kernel`, a struct with a type `Args` and an always-inline `Run<Isa>(const Args&)`, as
/// compiled for `isa`.
template <typename Kernel>
void RunKernel(Isa isa, const typename Kernel::Args& args) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return RunAvx512<Kernel>(args);
  if (isa == Isa::kAvx2) return RunAvx2<Kernel>(args);
#endif
  Kernel::template Run<Isa::kBaseline>(args);
}

}  // namespace shoal
