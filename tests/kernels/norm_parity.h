// RMSNorm with the residual before it, the choice of experts after it, and the combination of their
// rows, against naive loops in double precision, for any backend.
#pragma once

#include <algorithm>
#include <array>
#include <numeric>

#include "tests/kernels/ops_fixture.h"

namespace shoal {

/// A weight of RMSNorm on both sides.
struct NormMirror {
  std::vector<float> weight;
  Norm device;

  /// What it makes of rows, in double precision; rounded where the definition rounds.
  std::vector<double> Apply(const std::vector<float>& rows, DType dtype) const {
    const size_t n = weight.size();
    std::vector<double> out(rows.size());
    for (size_t begin = 0; begin < rows.size(); begin += n) {
      double squares = 0;
      for (size_t i = begin; i < begin + n; ++i) squares += double{rows[i]} * rows[i];
      const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + device.epsilon);
      for (size_t i = begin; i < begin + n; ++i) {
        const auto normed = static_cast<float>(rows[i] * scale);
        const bool is_rounded = dtype == DType::kBFloat16;
        out[i] =
            double{is_rounded ? static_cast<float>(BFloat16(normed)) : normed} * weight[i - begin];
      }
    }
    return out;
  }

  /// The rounded norm may fall to the other side: one more unit in the last place.
  static double Tolerance(DType dtype) { return dtype == DType::kBFloat16 ? 1.0 / 100 : 2e-6; }
};

class NormParity : public OpsParity {
 protected:
  NormMirror RandomNorm(int64_t hidden_size, DType dtype) {
    const Mirror weight = Random(dtype, {hidden_size});
    return {weight.host, {weight.device, 1e-6f}};
  }

  /// A router whose logits have a standard deviation of 2, on both sides.
  std::pair<std::vector<float>, Router> RandomRouter(int64_t num_experts, int64_t hidden_size,
                                                     DType dtype) {
    const std::vector<float> values = RandomValues(num_experts * hidden_size, dtype,
                                                   2 / std::sqrt(static_cast<float>(hidden_size)));
    return {values, {.weight = LoadWeight(values, num_experts, hidden_size, dtype)}};
  }

  /// Holds the routing of one row against its definition. ids, weights: [num_routes]; values: the
  /// router's weight.
  static void ExpectRouting(const float* row, const std::vector<float>& values,
                            const Router& router, const std::vector<int32_t>& ids,
                            const std::vector<float>& weights) {
    const int64_t num_experts = router.weight.out_features, n = router.weight.in_features;
    const auto num_routes = static_cast<int64_t>(ids.size());
    const int64_t top_k = num_routes - router.num_shared;
    std::vector<double> p(num_experts);
    for (int64_t e = 0; e < num_experts; ++e) {
      p[e] = std::exp(std::inner_product(row, row + n, values.begin() + e * n, 0.0));
    }
    std::vector<double> sorted = p;
    std::sort(sorted.rbegin(), sorted.rend());
    const int64_t num_shares = router.renormalize && top_k > 1 ? top_k : num_experts;
    const double total = std::accumulate(sorted.begin(), sorted.begin() + num_shares, 0.0);
    for (int64_t k = 0; k < top_k; ++k) {
      EXPECT_NEAR(weights[k], sorted[k] / total, 2e-5);
      EXPECT_NEAR(p[ids[k]], sorted[k], 2e-5 * sorted[k]);
    }
    for (int64_t k = top_k; k < num_routes; ++k) {
      EXPECT_EQ(ids[k], num_experts + k - top_k) << "a shared expert";
      EXPECT_EQ(weights[k], 1);
    }
  }
};

TEST_P(NormParity, AddRmsNormAddsThenNormalises) {
  for (DType dtype : dtypes()) {
    for (int64_t hidden_size : {1, 15, 16, 33, 2048}) {
      const int64_t n = Features(hidden_size);
      for (bool with_delta : {false, true}) {
        const Mirror delta = Random(dtype, {3, n}), residual = Random(dtype, {3, n}, 2);
        const NormMirror norm = RandomNorm(n, dtype);
        const Tensor out = Zeros(dtype, {3, n});
        ops().AddRmsNorm(with_delta ? delta.device : Tensor(), residual.device, norm.device, out);
        std::vector<float> sums = residual.host;
        for (int64_t i = 0; i < 3 * n && with_delta; ++i) {
          sums[i] = Rounded(sums[i] + delta.host[i], dtype);
        }
        EXPECT_EQ(Download(residual.device), sums);
        ExpectNear(Download(out), norm.Apply(sums, dtype), NormMirror::Tolerance(dtype));
      }
    }
  }
}

TEST_P(NormParity, AddRmsNormRouteTakesTheMostLikelyAndTheSharedExperts) {
  for (DType dtype : dtypes()) {
    for (const auto& [tokens, experts, hidden_size, top_k, shared] :
         std::vector<std::array<int64_t, 5>>{{0, 8, 16, 2, 1},
                                             {5, 8, 16, 1, 0},
                                             {1, 64, 100, 6, 2},
                                             {9, 16, 33, 16, 1},
                                             {2, 64, 2048, 6, 2},
                                             {70, 5, 24, 3, 3},
                                             {2, 200, 40, 8, 1}}) {
      const int64_t n = Features(hidden_size), routes = top_k + shared;
      auto [values, router] = RandomRouter(experts, n, dtype);
      router.num_shared = static_cast<int>(shared);
      for (bool renormalize : {false, true}) {
        router.renormalize = renormalize;
        const Mirror delta = Random(dtype, {tokens, n}), residual = Random(dtype, {tokens, n}, 2);
        const NormMirror norm = RandomNorm(n, dtype);
        const Tensor out = Zeros(dtype, {tokens, n});
        const Routing routing = MakeRouting(tokens, routes);
        ops().AddRmsNormRoute(delta.device, residual.device, norm.device, router, out, routing);
        std::vector<float> sums = residual.host;
        for (int64_t i = 0; i < tokens * n; ++i) sums[i] = Rounded(sums[i] + delta.host[i], dtype);
        EXPECT_EQ(Download(residual.device), sums);
        const std::vector<float> normed = Download(out);
        ExpectNear(normed, norm.Apply(sums, dtype), NormMirror::Tolerance(dtype));
        for (int64_t t = 0; t < tokens; ++t) {
          ExpectRouting(&normed[t * n], values, router,
                        DownloadRaw<int32_t>(routing.expert_ids.Rows(t, 1)),
                        Download(routing.weights.Rows(t, 1)));
        }
      }
    }
  }
}

TEST_P(NormParity, RoutingPrefersTheLowerOfTwoAlike) {
  const int64_t n = Features(4);
  for (DType dtype : dtypes()) {
    const Mirror x = Random(dtype, {2, n});
    const Router router = {.weight = LoadWeight(std::vector<float>(6 * n, 0.5f), 6, n, dtype),
                           .num_shared = 1};
    const Routing routing = MakeRouting(2, 4);
    ops().AddRmsNormRoute({}, x.device, RandomNorm(n, dtype).device, router, Zeros(dtype, {2, n}),
                          routing);
    EXPECT_EQ(DownloadRaw<int32_t>(routing.expert_ids),
              (std::vector<int32_t>{0, 1, 2, 6, 0, 1, 2, 6}));
  }
}

TEST_P(NormParity, RoutingNamesDistinctExpertsEvenForNaN) {
  const int64_t n = Features(2);
  for (DType dtype : dtypes()) {
    std::vector<float> values(2 * n, 1);
    values[0] = NAN;
    const Routing routing = MakeRouting(2, 6);
    Router router = RandomRouter(5, n, dtype).second;
    router.num_shared = 1;
    ops().AddRmsNormRoute({}, Upload(values, dtype, {2, n}), RandomNorm(n, dtype).device, router,
                          Zeros(dtype, {2, n}), routing);
    std::vector<int32_t> ids = DownloadRaw<int32_t>(routing.expert_ids.Rows(0, 1));
    std::sort(ids.begin(), ids.end());
    EXPECT_EQ(ids, (std::vector<int32_t>{0, 1, 2, 3, 4, 5}));
  }
}

TEST_P(NormParity, RoutingSendsPaddingTokensNowhere) {
  constexpr int64_t kTokens = 37, kRoutes = 4;
  const int64_t n = Features(24);
  for (DType dtype : dtypes()) {
    const Mirror x = Random(dtype, {kTokens, n});
    const NormMirror norm = RandomNorm(n, dtype);
    Router router = RandomRouter(10, n, dtype).second;
    router.num_shared = 1;
    const auto route = [&](const Tensor& num_tokens) {
      Routing routing = MakeRouting(kTokens, kRoutes);
      routing.num_tokens = num_tokens;
      ops().AddRmsNormRoute({}, x.device, norm.device, router, Zeros(dtype, {kTokens, n}), routing);
      return routing;
    };
    const Routing all = route({});
    const std::vector<int32_t> ids = DownloadRaw<int32_t>(all.expert_ids);
    for (int32_t num_tokens : {0, 1, 16, 36, 37}) {
      const Routing routing = route(UploadInts({num_tokens}, {1}));
      std::vector<int32_t> expected = ids;
      std::fill(expected.begin() + num_tokens * kRoutes, expected.end(), -1);
      EXPECT_EQ(DownloadRaw<int32_t>(routing.expert_ids), expected);
      EXPECT_EQ(Download(routing.weights.Rows(0, num_tokens)),
                Download(all.weights.Rows(0, num_tokens)));
    }
  }
}

TEST_P(NormParity, RoutingDoesNotDependOnTheBatch) {
  constexpr int64_t kTokens = 75, kRoutes = 5;
  const int64_t n = Features(50);
  for (DType dtype : dtypes()) {
    const Mirror delta = Random(dtype, {kTokens, n}), residual = Random(dtype, {kTokens, n});
    const NormMirror norm = RandomNorm(n, dtype);
    Router router = RandomRouter(20, n, dtype).second;
    router.num_shared = 2;
    // Results of the tokens [begin, begin + count).
    const auto route = [&](int64_t begin, int64_t count) {
      const Routing routing = MakeRouting(count, kRoutes);
      const auto first = residual.host.begin() + begin * n;
      const Tensor x = Upload({first, first + count * n}, dtype, {count, n});
      const Tensor out = Zeros(dtype, {count, n});
      ops().AddRmsNormRoute(delta.device.Rows(begin, count), x, norm.device, router, out, routing);
      return std::tuple(DownloadRaw<int32_t>(routing.expert_ids), Download(routing.weights),
                        Download(out));
    };
    const auto [ids, weights, normed] = route(0, kTokens);
    const auto part = [](const auto& all, int64_t begin, int64_t end) {
      return std::decay_t<decltype(all)>(all.begin() + begin, all.begin() + end);
    };
    for (const auto& [begin, count] :
         std::vector<std::array<int64_t, 2>>{{0, 1}, {74, 1}, {3, 2}, {10, 7}, {8, 16}, {20, 33}}) {
      const int64_t end = begin + count;
      EXPECT_EQ(route(begin, count), std::tuple(part(ids, begin * kRoutes, end * kRoutes),
                                                part(weights, begin * kRoutes, end * kRoutes),
                                                part(normed, begin * n, end * n)))
          << begin << " " << count;
    }
  }
}

TEST_P(NormParity, AddRmsNormRouteKeepsPoisonInItsRow) {
  const int64_t n = Features(24);
  for (DType dtype : dtypes()) {
    const NormMirror norm = RandomNorm(n, dtype);
    const Router router = RandomRouter(6, n, dtype).second;
    for (bool wants_weights : {false, true}) {
      ExpectPoisonStaysInItsRow(19, n, dtype, [&](const Tensor& x) {
        const Routing routing = MakeRouting(19, 3);
        const Tensor out = Zeros(dtype, {19, n});
        ops().AddRmsNormRoute({}, x, norm.device, router, out, routing);
        return Download(wants_weights ? routing.weights : out);
      });
    }
  }
}

TEST_P(NormParity, CombineAddsInOrderThenNormalises) {
  for (DType dtype : dtypes()) {
    for (const auto& [tokens, routes, hidden_size] : std::vector<std::array<int64_t, 3>>{
             {0, 2, 16}, {5, 3, 19}, {1, 1, 8}, {2, 8, 2048}, {33, 9, 24}}) {
      const int64_t n = Features(hidden_size);
      const Mirror rows = Random(dtype, {tokens, routes, n}), residual = Random(dtype, {tokens, n});
      const Mirror weights = Random(DType::kFloat32, {tokens, routes});
      const NormMirror norm = RandomNorm(n, dtype);
      Routing routing = MakeRouting(tokens, routes);
      routing.weights = weights.device;
      const Tensor out = Zeros(dtype, {tokens, n});
      ops().Combine(rows.device, routing, residual.device, norm.device, out);
      std::vector<double> expected(residual.host.begin(), residual.host.end());
      for (int64_t i = 0; i < tokens * n; ++i) {
        for (int64_t route = i / n * routes; route < (i / n + 1) * routes; ++route) {
          expected[i] += double{weights.host[route]} * rows.host[route * n + i % n];
        }
      }
      const std::vector<float> sums = Download(residual.device);
      ExpectNear(sums, expected, Tolerance(dtype));
      ExpectNear(Download(out), norm.Apply(sums, dtype), NormMirror::Tolerance(dtype));
    }
  }
}

TEST_P(NormParity, CombineLeavesPaddingTokensAlone) {
  constexpr int64_t kTokens = 21, kRoutes = 3;
  const int64_t n = Features(16);
  for (DType dtype : dtypes()) {
    const Mirror rows = Random(dtype, {kTokens, kRoutes, n});
    const Mirror weights = Random(DType::kFloat32, {kTokens, kRoutes});
    const NormMirror norm = RandomNorm(n, dtype);
    const Mirror start = Random(dtype, {kTokens, n}), before = Random(dtype, {kTokens, n});
    const auto combine = [&](const Tensor& num_tokens) {
      Routing routing = MakeRouting(kTokens, kRoutes);
      routing.weights = weights.device;
      routing.num_tokens = num_tokens;
      const Tensor residual = Upload(start.host, dtype, {kTokens, n});
      const Tensor out = Upload(before.host, dtype, {kTokens, n});
      ops().Combine(rows.device, routing, residual, norm.device, out);
      return std::pair(Download(residual), Download(out));
    };
    const auto all = combine({});
    for (int32_t num_tokens : {0, 1, 16, 20, 21}) {
      std::pair expected(start.host, before.host);
      std::copy_n(all.first.begin(), num_tokens * n, expected.first.begin());
      std::copy_n(all.second.begin(), num_tokens * n, expected.second.begin());
      EXPECT_EQ(combine(UploadInts({num_tokens}, {1})), expected) << num_tokens;
    }
  }
}

TEST_P(NormParity, CombineKeepsPoisonInItsRow) {
  constexpr int64_t kTokens = 11, kRoutes = 3;
  const int64_t n = Features(24);
  for (DType dtype : dtypes()) {
    const Mirror weights = Random(DType::kFloat32, {kTokens, kRoutes});
    const Mirror start = Random(dtype, {kTokens, n});
    const NormMirror norm = RandomNorm(n, dtype);
    Routing routing = MakeRouting(kTokens, kRoutes);
    routing.weights = weights.device;
    ExpectPoisonStaysInItsRow(kTokens, kRoutes * n, dtype, [&](const Tensor& values) {
      const Tensor rows(values.data, dtype, {kTokens, kRoutes, n});
      const Tensor out = Zeros(dtype, {kTokens, n});
      ops().Combine(rows, routing, Upload(start.host, dtype, {kTokens, n}), norm.device, out);
      return Download(out);
    });
  }
}

}  // namespace shoal
