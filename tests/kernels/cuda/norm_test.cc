// RMSNorm, routing and combination at the sizes at which their kernels work differently.
#include "kernels/cuda/norm.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "tests/kernels/cuda/kernel_fixture.h"

namespace shoal::cuda {
namespace {

constexpr float kEpsilon = 1e-6f;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// What an op left behind, bit by bit.
struct Normed {
  std::vector<uint16_t> residual, out;

  bool operator==(const Normed&) const = default;
};

struct Routed {
  Normed normed;
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

class NormTest : public KernelTest {
 protected:
  /// Tokens and a layer's norm on the host.
  void MakeTokens(int64_t num_tokens, int64_t hidden_size) {
    num_tokens_ = num_tokens;
    hidden_size_ = hidden_size;
    residual_ = Random(num_tokens * hidden_size, 2);
    delta_ = Random(num_tokens * hidden_size);
    weight_ = Random(hidden_size);
  }
  void MakeRouter(int num_experts) {
    router_.num_experts = num_experts;
    router_weight_ =
        Random(num_experts * hidden_size_, 2 / std::sqrt(static_cast<float>(hidden_size_)));
  }

  /// Calls launch(args) with the tokens [begin, begin + count).
  template <typename Launch>
  Normed Run(int64_t begin, int64_t count, const Launch& launch) const {
    const auto first = residual_.begin() + begin * hidden_size_;
    const DeviceArray<BFloat16> residual({first, first + count * hidden_size_}), weight(weight_);
    const DeviceArray<BFloat16> out(count * hidden_size_, BFloat16(-77));
    launch(NormArgs{.residual = residual.data(),
                    .weight = weight.data(),
                    .epsilon = kEpsilon,
                    .out = out.data(),
                    .num_tokens = count,
                    .hidden_size = hidden_size_});
    return {Bits(residual.Read()), Bits(out.Read())};
  }

  Normed AddNorm(int64_t begin, int64_t count) const {
    const auto first = delta_.begin() + begin * hidden_size_;
    const DeviceArray<BFloat16> delta({first, first + count * hidden_size_});
    return Run(begin, count,
               [&](const NormArgs& args) { AddRmsNorm(args, delta.data(), nullptr); });
  }

  /// num_real_tokens < 0: not given.
  Routed Route(int64_t begin, int64_t count, int num_routes, int num_real_tokens = -1) const {
    const auto first = delta_.begin() + begin * hidden_size_;
    const DeviceArray<BFloat16> delta({first, first + count * hidden_size_});
    const DeviceArray<BFloat16> router_weight(router_weight_);
    const DeviceArray<int32_t> ids(count * num_routes, -77), num_real(1, num_real_tokens);
    const DeviceArray<float> weights(count * num_routes, -77);
    RouterArgs router = router_;
    router.weight = router_weight.data();
    const RoutingArgs routing = {.expert_ids = ids.data(),
                                 .weights = weights.data(),
                                 .num_real_tokens = num_real_tokens < 0 ? nullptr : num_real.data(),
                                 .num_routes = num_routes};
    Normed normed = Run(begin, count, [&](const NormArgs& args) {
      AddRmsNormRoute(args, delta.data(), router, routing, nullptr);
    });
    return {std::move(normed), ids.Read(), weights.Read()};
  }

  float HostResidual(int64_t i) const {
    return static_cast<float>(
        BFloat16(static_cast<float>(residual_[i]) + static_cast<float>(delta_[i])));
  }

  int64_t num_tokens_ = 0, hidden_size_ = 0;
  std::vector<BFloat16> residual_, delta_, weight_, router_weight_;
  RouterArgs router_;
};

float FromBits(uint16_t bits) { return static_cast<float>(std::bit_cast<BFloat16>(bits)); }

TEST_P(NormTest, NormsRowsOfAnySize) {
  for (int64_t hidden_size : {8, 72, 2040, 2048, 2056, 4096, 6144, 16384}) {
    MakeTokens(2, hidden_size);
    const Normed normed = AddNorm(0, 2);
    for (int64_t t = 0; t < 2; ++t) {
      double squares = 0;
      for (int64_t i = 0; i < hidden_size; ++i) {
        const float x = HostResidual(t * hidden_size + i);
        ASSERT_EQ(FromBits(normed.residual[t * hidden_size + i]), x);
        squares += double{x} * x;
      }
      const double scale = 1 / std::sqrt(squares / static_cast<double>(hidden_size) + kEpsilon);
      for (int64_t i = 0; i < hidden_size; ++i) {
        const BFloat16 x(static_cast<float>(HostResidual(t * hidden_size + i) * scale));
        const float expected = static_cast<float>(x) * static_cast<float>(weight_[i]);
        ASSERT_NEAR(FromBits(normed.out[t * hidden_size + i]), expected,
                    std::abs(expected) / 80 + 1e-30);
      }
    }
  }
}

TEST_P(NormTest, RoutesAtEverySize) {
  struct Case {
    int64_t num_tokens, hidden_size;
    int num_experts, top_k, num_shared;
  };
  // 16384 elements of a row, or 8 rows of 2048, are the most that a block has.
  for (const auto& [num_tokens, hidden_size, num_experts, top_k, num_shared] :
       {Case{2, 2048, 64, 6, 2}, Case{1, 16384, 40, 4, 0}, Case{3, 6152, 33, 8, 1},
        Case{2, 264, 256, 30, 2}, Case{1100, 16, 8, 2, 1}, Case{530, 24, 17, 3, 0}}) {
    MakeTokens(num_tokens, hidden_size);
    MakeRouter(num_experts);
    router_.num_shared = num_shared;
    router_.renormalize = num_experts % 2 == 0;
    const int num_routes = top_k + num_shared;
    const Routed routed = Route(0, num_tokens, num_routes);
    EXPECT_EQ(routed.normed, AddNorm(0, num_tokens));
    for (int64_t t = 0; t < num_tokens; ++t) {
      std::vector<double> p(num_experts);
      for (int e = 0; e < num_experts; ++e) {
        double logit = 0;
        for (int64_t i = 0; i < hidden_size; ++i) {
          logit += double{FromBits(routed.normed.out[t * hidden_size + i])} *
                   static_cast<float>(router_weight_[e * hidden_size + i]);
        }
        p[e] = std::exp(logit);
      }
      std::vector<double> sorted = p;
      std::sort(sorted.rbegin(), sorted.rend());
      const int shares = router_.renormalize ? top_k : num_experts;
      const double total = std::accumulate(sorted.begin(), sorted.begin() + shares, 0.0);
      std::set<int32_t> distinct;
      for (int k = 0; k < num_routes; ++k) {
        const int32_t id = routed.ids[t * num_routes + k];
        const float weight = routed.weights[t * num_routes + k];
        distinct.insert(id);
        if (k >= top_k) {
          ASSERT_EQ(id, num_experts + k - top_k);
          ASSERT_EQ(weight, 1);
          continue;
        }
        ASSERT_NEAR(weight, sorted[k] / total, 2e-5);
        ASSERT_NEAR(p[id], sorted[k], 2e-5 * sorted[k]);
      }
      ASSERT_EQ(distinct.size(), num_routes);
    }
  }
}

/// Blocks have one, two, four or eight tokens, by the number of tokens.
TEST_P(NormTest, RoutingDoesNotDependOnHowTokensShareBlocks) {
  constexpr int64_t kTokens = 1030, kHiddenSize = 40;
  constexpr int kRoutes = 5;
  MakeTokens(kTokens, kHiddenSize);
  MakeRouter(20);
  router_.num_shared = 1;
  const Routed all = Route(0, kTokens, kRoutes);
  for (const auto& [begin, count] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 1}, {517, 3}, {1029, 1}, {7, 258}, {400, 515}}) {
    const Routed some = Route(begin, count, kRoutes);
    const auto part = [&](const auto& values, int64_t size) {
      return std::decay_t<decltype(values)>(values.begin() + begin * size,
                                            values.begin() + (begin + count) * size);
    };
    EXPECT_EQ(some.normed.out, part(all.normed.out, kHiddenSize));
    EXPECT_EQ(some.ids, part(all.ids, kRoutes));
    EXPECT_EQ(some.weights, part(all.weights, kRoutes));
  }
}

TEST_P(NormTest, PaddingTokensAreRoutedNowhere) {
  constexpr int kTokens = 300, kRoutes = 3;
  MakeTokens(kTokens, 16);
  MakeRouter(6);
  router_.num_shared = 1;
  const Routed all = Route(0, kTokens, kRoutes);
  for (int num_real : {0, 1, 299, 300}) {
    const Routed routed = Route(0, kTokens, kRoutes, num_real);
    Routed expected = all;
    std::fill(expected.ids.begin() + num_real * kRoutes, expected.ids.end(), -1);
    std::fill(expected.weights.begin() + num_real * kRoutes, expected.weights.end(), 0.0f);
    EXPECT_EQ(routed.ids, expected.ids);
    EXPECT_EQ(routed.weights, expected.weights);
  }
}

TEST_P(NormTest, TokensWithNaNTakeDistinctExpertsAndHarmNobody) {
  constexpr int kTokens = 1030, kRoutes = 8, kPoisoned = 513;
  MakeTokens(kTokens, 16);
  MakeRouter(8);
  const Routed clean = Route(0, kTokens, kRoutes);
  residual_[kPoisoned * hidden_size_ + 3] = BFloat16(kNaN);
  const Routed routed = Route(0, kTokens, kRoutes);
  for (int t = 0; t < kTokens; ++t) {
    const auto first = routed.ids.begin() + t * kRoutes;
    if (t != kPoisoned) {
      ASSERT_TRUE(std::equal(first, first + kRoutes, clean.ids.begin() + t * kRoutes));
    } else {
      EXPECT_THAT(std::vector(first, first + kRoutes),
                  testing::ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
    }
  }
}

TEST_P(NormTest, CombineAddsTheRowsThatCount) {
  for (const auto& [hidden_size, num_routes] :
       std::vector<std::pair<int64_t, int>>{{8, 1}, {2048, 8}, {2056, 9}, {6144, 3}, {16384, 2}}) {
    constexpr int kTokens = 3;
    MakeTokens(kTokens, hidden_size);
    std::vector<BFloat16> rows = Random(kTokens * num_routes * hidden_size);
    const std::vector<float> weights = RandomFloats(kTokens * num_routes);
    std::vector<int32_t> ids(kTokens * num_routes, 7);
    for (int64_t i = 0; i < std::ssize(ids); ++i) {
      if (Between(0, 3) > 0) continue;
      ids[i] = -1;
      std::fill_n(rows.begin() + i * hidden_size, hidden_size, BFloat16(kNaN));
    }
    const DeviceArray<BFloat16> device_rows(rows);
    const DeviceArray<float> device_weights(weights);
    const DeviceArray<int32_t> device_ids(ids), num_real(1, kTokens - 1);
    const Normed combined = Run(0, kTokens, [&](const NormArgs& args) {
      Combine(args, device_rows.data(),
              {.expert_ids = device_ids.data(),
               .weights = device_weights.data(),
               .num_real_tokens = num_real.data(),
               .num_routes = num_routes},
              nullptr);
    });
    // A row that did not change is normed alike by AddRmsNorm.
    std::vector<BFloat16> sums;
    for (uint16_t bits : combined.residual) sums.push_back(std::bit_cast<BFloat16>(bits));
    const std::vector<BFloat16> before = std::exchange(residual_, sums);
    std::fill(delta_.begin(), delta_.end(), BFloat16(0));
    Normed expected = AddNorm(0, kTokens);
    for (int64_t i = 0; i < kTokens * hidden_size; ++i) {
      const int64_t t = i / hidden_size;
      if (t == kTokens - 1) {
        ASSERT_EQ(combined.residual[i], before[i].bits) << "padding";
        expected.out[i] = BFloat16(-77).bits;
        continue;
      }
      double sum = static_cast<float>(before[i]);
      for (int64_t route = t * num_routes; route < (t + 1) * num_routes; ++route) {
        if (ids[route] < 0) continue;
        sum += double{weights[route]} *
               static_cast<float>(rows[route * hidden_size + i % hidden_size]);
      }
      ASSERT_NEAR(static_cast<float>(sums[i]), sum, std::max(std::abs(sum), 1.0) / 250);
    }
    EXPECT_EQ(combined.out, expected.out);
  }
}

INSTANTIATE_TEST_SUITE_P(Schedules, NormTest, KernelTest::Seeds());

}  // namespace
}  // namespace shoal::cuda
