// The parts below the ops: products, exponential, random numbers, conversions.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/cpu/dot_rows.h"
#include "kernels/cpu/element.h"
#include "kernels/philox.h"

namespace shoal {
namespace {

std::vector<Isa> AvailableIsas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= BestIsa()) isas.push_back(isa);
  }
  return isas;
}

template <typename W>
std::vector<float> Multiply(Isa isa, const std::vector<float>& x, const std::vector<W>& weight,
                            int64_t n) {
  const auto num_x = static_cast<int64_t>(x.size()) / n;
  const auto num_rows = static_cast<int64_t>(weight.size()) / n;
  std::vector<const float*> rows(num_x);
  for (int64_t t = 0; t < num_x; ++t) rows[t] = &x[t * n];
  std::vector<float> out(num_x * num_rows);
  RunKernel<DotRows<W>>(isa, {.x = rows.data(),
                              .num_x = num_x,
                              .weight = weight.data(),
                              .num_rows = num_rows,
                              .in_features = n,
                              .out = out.data(),
                              .out_stride = num_rows});
  return out;
}

template <typename W>
void ExpectTilesEqualSingles(Isa isa) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int64_t n : {1, 15, 16, 17, 64, 131}) {
    std::vector<float> x(13 * n);
    std::vector<W> weight(11 * n);
    for (float& value : x) value = normal(random);
    for (W& value : weight) Round(normal(random), value);
    for (int64_t num_x = 1; num_x <= 13; ++num_x) {
      for (int64_t num_rows = 1; num_rows <= 11; ++num_rows) {
        const std::vector<float> tile =
            Multiply<W>(isa, {x.begin(), x.begin() + num_x * n},
                        {weight.begin(), weight.begin() + num_rows * n}, n);
        for (int64_t i = 0; i < num_x * num_rows; ++i) {
          const int64_t t = i / num_rows, r = i % num_rows;
          const float single =
              Multiply<W>(isa, {x.begin() + t * n, x.begin() + (t + 1) * n},
                          {weight.begin() + r * n, weight.begin() + (r + 1) * n}, n)[0];
          ASSERT_EQ(tile[i], single)
              << n << ": " << t << " of " << num_x << ", " << r << " of " << num_rows;
        }
      }
    }
  }
}

TEST(DotRows, EveryTileGivesTheBitsOfSingleProducts) {
  for (Isa isa : AvailableIsas()) {
    ExpectTilesEqualSingles<float>(isa);
    ExpectTilesEqualSingles<BFloat16>(isa);
  }
}

TEST(DotRows, FusedInstructionSetsAgreeToTheBit) {
  if (BestIsa() < Isa::kAvx512) GTEST_SKIP() << "this machine has no AVX-512";
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(7 * 131), weight(9 * 131);
  for (float& value : x) value = normal(random);
  for (float& value : weight) value = normal(random);
  EXPECT_EQ(Multiply(Isa::kAvx2, x, weight, 131), Multiply(Isa::kAvx512, x, weight, 131));
}

struct ExpKernel {
  struct Args {
    const float* x;
    float* out;
  };
  template <Isa isa>
  static SHOAL_INLINE void Run(const Args& args) {
    Vec v;
    Load(args.x, v);
    Exp(v, v);
    Store(v, args.out);
  }
};

TEST(Simd, ExpIsWithinTwoUnitsInTheLastPlace) {
  for (Isa isa : AvailableIsas()) {
    float x[kLanes], out[kLanes];
    for (float base = -87.2f; base < 88; base += 0.0131f) {
      for (int i = 0; i < kLanes; ++i) x[i] = base + 0.0007f * static_cast<float>(i);
      RunKernel<ExpKernel>(isa, {x, out});
      for (int i = 0; i < kLanes; ++i) {
        if (x[i] > 88) continue;
        const double exact = std::exp(double{x[i]});
        ASSERT_NEAR(out[i], exact, exact * 0x1p-22) << x[i];
      }
    }
  }
}

TEST(Simd, ExpOfTheExtremes) {
  const float x[kLanes] = {0, -0.0f, -INFINITY, -100, 1000, INFINITY, NAN};
  float out[kLanes];
  for (Isa isa : AvailableIsas()) {
    RunKernel<ExpKernel>(isa, {x, out});
    EXPECT_EQ(out[0], 1);
    EXPECT_EQ(out[1], 1);
    EXPECT_EQ(out[2], 0);
    EXPECT_EQ(out[3], 0);
    EXPECT_TRUE(std::isfinite(out[4]));
    EXPECT_TRUE(std::isfinite(out[5]));
    EXPECT_TRUE(std::isnan(out[6]));
  }
}

TEST(Philox, GivesThePublishedVectors) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformFillsTheOpenInterval) {
  double sum = 0, least = 1, most = 0;
  for (int64_t i = 0; i < 100000; ++i) {
    const double u = PhiloxUniform(42, i);
    sum += u;
    least = std::min(least, u);
    most = std::max(most, u);
  }
  EXPECT_GT(least, 0);
  EXPECT_LT(most, 1);
  EXPECT_LT(least, 1e-4);
  EXPECT_GT(most, 1 - 1e-4);
  EXPECT_NEAR(sum / 100000, 0.5, 0.005);
  EXPECT_NE(PhiloxUniform(42, 0), PhiloxUniform(43, 0));
}

TEST(Element, HalfPrecisionWidensExactly) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = ToFloat(Float16{static_cast<uint16_t>(bits)});
    const double sign = bits & 0x8000 ? -1 : 1;
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const double fraction = bits & 1023;
    if (exponent == 31) {
      EXPECT_TRUE(fraction != 0 ? std::isnan(value) : value == sign * INFINITY) << bits;
    } else if (exponent == 0) {
      EXPECT_EQ(value, sign * std::ldexp(fraction, -24)) << bits;
    } else {
      EXPECT_EQ(value, sign * std::ldexp(1024 + fraction, exponent - 25)) << bits;
    }
  }
}

TEST(Element, BFloat16RoundsToNearestEven) {
  const auto rounded = [](float value) {
    BFloat16 out;
    Round(value, out);
    return ToFloat(out);
  };
  EXPECT_EQ(rounded(1 + 0x1p-8f), 1);              // halfway: to even
  EXPECT_EQ(rounded(1 + 0x1.8p-7f), 1 + 0x1p-6f);  // halfway: to even
  EXPECT_EQ(rounded(1 + 0x1.01p-8f), 1 + 0x1p-7f);
  EXPECT_EQ(rounded(std::numeric_limits<float>::max()), INFINITY);
  EXPECT_TRUE(std::isnan(rounded(NAN)));
}

}  // namespace
}  // namespace shoal
