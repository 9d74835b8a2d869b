// Every row-wise op against naive loops in double precision, for any backend: a test file includes
// this and instantiates OpsParity and FfnParity with its BackendCases.
#pragma once

#include <algorithm>
#include <numeric>

#include "tests/kernels/ops_fixture.h"

namespace shoal {

TEST_P(OpsParity, EmbedCopiesRows) {
  for (DType dtype : kStorageTypes) {
    const std::vector<float> table = RandomValues(11 * 7, dtype);
    const Weight weight = LoadWeight(table, 11, 7, dtype);
    const std::vector<int32_t> ids = {10, 0, 3, 3};
    const Tensor out = Zeros(dtype, {4, 7});
    ops().Embed(UploadInts(ids, {4}), weight, out);
    const std::vector<float> actual = Download(out);
    for (int t = 0; t < 4; ++t) {
      for (int i = 0; i < 7; ++i) EXPECT_EQ(actual[t * 7 + i], table[ids[t] * 7 + i]);
    }
  }
}

TEST_P(OpsParity, GatherRowsCopiesRows) {
  const Mirror x = Random(DType::kBFloat16, {5, 6});
  const Tensor out = Zeros(DType::kBFloat16, {2, 6});
  ops().GatherRows(x.device, UploadInts({4, 1}, {2}), out);
  const std::vector<float> actual = Download(out);
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(actual[i], x.host[4 * 6 + i]);
    EXPECT_EQ(actual[6 + i], x.host[1 * 6 + i]);
  }
}

TEST_P(OpsParity, AddRmsNormAddsThenNormalises) {
  for (DType dtype : kStorageTypes) {
    for (int64_t n : {1, 15, 16, 33, 2048}) {
      for (bool with_delta : {false, true}) {
        const Mirror delta = Random(dtype, {3, n}), residual = Random(dtype, {3, n}, 2);
        const Mirror weight = Random(dtype, {n});
        const Tensor out = Zeros(dtype, {3, n});
        ops().AddRmsNorm(with_delta ? delta.device : Tensor(), residual.device, weight.device,
                         1e-6f, out);
        std::vector<float> sums(3 * n);
        std::vector<double> expected(3 * n);
        for (int64_t t = 0; t < 3; ++t) {
          double squares = 0;
          for (int64_t i = t * n; i < (t + 1) * n; ++i) {
            sums[i] = Rounded(residual.host[i] + (with_delta ? delta.host[i] : 0), dtype);
            squares += double{sums[i]} * sums[i];
          }
          const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-6);
          for (int64_t i = t * n; i < (t + 1) * n; ++i) {
            const float normed = Rounded(static_cast<float>(sums[i] * scale), dtype);
            expected[i] = double{normed} * weight.host[i - t * n];
          }
        }
        EXPECT_EQ(Download(residual.device), sums);
        // The rounded norm may fall to the other side: one more unit in the last place.
        ExpectNear(Download(out), expected, dtype == DType::kBFloat16 ? 1.0 / 100 : 2e-6);
      }
    }
  }
}

TEST_P(OpsParity, LinearMultiplies) {
  for (DType dtype : kStorageTypes) {
    for (const auto& [tokens, rows, n] : std::vector<std::array<int64_t, 3>>{{0, 5, 8},
                                                                             {1, 1, 1},
                                                                             {1, 70, 64},
                                                                             {2, 33, 17},
                                                                             {7, 31, 100},
                                                                             {13, 64, 129},
                                                                             {50, 9, 48}}) {
      const Mirror x = Random(dtype, {tokens, n}), bias = Random(dtype, {rows});
      const std::vector<float> values = RandomValues(rows * n, dtype, 0.3f);
      const Weight weight = LoadWeight(values, rows, n, dtype);
      for (bool with_bias : {false, true}) {
        for (DType out_type : {dtype, DType::kFloat32}) {
          const Tensor out = Zeros(out_type, {tokens, rows});
          ops().Linear(x.device, weight, with_bias ? bias.device : Tensor(), out);
          std::vector<double> expected(tokens * rows);
          for (int64_t i = 0; i < tokens * rows; ++i) {
            expected[i] = with_bias ? bias.host[i % rows] : 0;
            for (int64_t j = 0; j < n; ++j) {
              expected[i] += double{x.host[i / rows * n + j]} * values[i % rows * n + j];
            }
          }
          ExpectNear(Download(out), expected, Tolerance(out_type), std::sqrt(n));
        }
      }
    }
  }
}

TEST_P(OpsParity, LinearOfFirstRowsEqualsThoseOfAll) {
  const Mirror x = Random(DType::kBFloat16, {3, 40});
  const Weight weight =
      LoadWeight(RandomValues(77 * 40, DType::kBFloat16), 77, 40, DType::kBFloat16);
  const Tensor all = Zeros(DType::kFloat32, {3, 77}), some = Zeros(DType::kFloat32, {3, 41});
  ops().Linear(x.device, weight, {}, all);
  ops().Linear(x.device, weight, {}, some);
  const std::vector<float> wide = Download(all), narrow = Download(some);
  for (int i = 0; i < 3 * 41; ++i) EXPECT_EQ(narrow[i], wide[i / 41 * 77 + i % 41]);
}

TEST_P(OpsParity, LinearRowsDoNotDependOnTheBatch) {
  constexpr int64_t kTokens = 103, kRows = 37, kIn = 71;
  for (DType dtype : kStorageTypes) {
    const Mirror x = Random(dtype, {kTokens, kIn});
    const Weight weight = LoadWeight(RandomValues(kRows * kIn, dtype), kRows, kIn, dtype);
    const Tensor all = Zeros(DType::kFloat32, {kTokens, kRows});
    ops().Linear(x.device, weight, {}, all);
    for (int64_t count : {1, 2, 3, 4, 5, 6, 7, 11, 49}) {
      const Tensor out = Zeros(DType::kFloat32, {count, kRows});
      for (int64_t begin = 0; begin + count <= kTokens; begin += 9) {
        ops().Linear(x.device.Rows(begin, count), weight, {}, out);
        ASSERT_EQ(Download(out), Download(all.Rows(begin, count))) << begin << " " << count;
      }
    }
  }
}

TEST_P(OpsParity, CombineAddsInOrder) {
  constexpr int64_t kTokens = 5, kTopK = 3, kHidden = 19;
  for (DType dtype : kStorageTypes) {
    const Mirror rows = Random(dtype, {kTokens, kTopK, kHidden});
    const Mirror weights = Random(DType::kFloat32, {kTokens, kTopK});
    const Mirror shared = Random(dtype, {kTokens, kHidden});
    const Routing routing = {Zeros(DType::kInt32, {kTokens, kTopK}), weights.device};
    for (int parts = 1; parts < 4; ++parts) {
      const bool routed = parts & 1, with_shared = parts & 2;
      const Mirror residual = Random(dtype, {kTokens, kHidden});
      ops().Combine(routed ? rows.device : Tensor(), routed ? routing : Routing(),
                    with_shared ? shared.device : Tensor(), residual.device);
      std::vector<double> expected(kTokens * kHidden);
      for (int64_t i = 0; i < kTokens * kHidden; ++i) {
        const int64_t t = i / kHidden;
        expected[i] = residual.host[i] + (with_shared ? shared.host[i] : 0);
        for (int64_t k = 0; routed && k < kTopK; ++k) {
          expected[i] += double{weights.host[t * kTopK + k]} *
                         rows.host[(t * kTopK + k) * kHidden + i % kHidden];
        }
      }
      ExpectNear(Download(residual.device), expected, Tolerance(dtype));
    }
  }
}

TEST_P(OpsParity, RouteTopKTakesTheMostLikely) {
  for (DType dtype : kStorageTypes) {
    for (const auto& [tokens, experts, hidden, top_k] : std::vector<std::array<int64_t, 4>>{
             {0, 8, 16, 2}, {5, 8, 16, 1}, {1, 64, 100, 6}, {9, 16, 33, 16}}) {
      const Mirror x = Random(dtype, {tokens, hidden});
      const std::vector<float> router = RandomValues(experts * hidden, dtype, 0.2f);
      const Weight weight = LoadWeight(router, experts, hidden, dtype);
      for (bool renormalize : {false, true}) {
        const Routing routing = {Zeros(DType::kInt32, {tokens, top_k}),
                                 Zeros(DType::kFloat32, {tokens, top_k})};
        ops().RouteTopK(x.device, weight, renormalize, routing);
        const auto ids = DownloadRaw<int32_t>(routing.expert_ids);
        const std::vector<float> weights = Download(routing.weights);
        for (int64_t t = 0; t < tokens; ++t) {
          std::vector<double> p(experts);
          for (int64_t e = 0; e < experts; ++e) {
            double logit = 0;
            for (int64_t i = 0; i < hidden; ++i) {
              logit += double{x.host[t * hidden + i]} * router[e * hidden + i];
            }
            p[e] = std::exp(logit);
          }
          double total = std::accumulate(p.begin(), p.end(), 0.0);
          std::vector<double> sorted = p;
          std::sort(sorted.rbegin(), sorted.rend());
          if (renormalize && top_k > 1) {
            total = std::accumulate(sorted.begin(), sorted.begin() + top_k, 0.0);
          }
          for (int64_t k = 0; k < top_k; ++k) {
            EXPECT_NEAR(weights[t * top_k + k], sorted[k] / total, 1e-5);
            EXPECT_NEAR(p[ids[t * top_k + k]], sorted[k], 1e-5 * sorted[k]);
          }
        }
      }
    }
  }
}

TEST_P(OpsParity, RouteTopKPrefersTheLowerOfTwoAlike) {
  const Mirror x = Random(DType::kFloat32, {2, 4});
  const Weight router = LoadWeight(std::vector<float>(6 * 4, 0.5f), 6, 4, DType::kFloat32);
  const Routing routing = {Zeros(DType::kInt32, {2, 3}), Zeros(DType::kFloat32, {2, 3})};
  ops().RouteTopK(x.device, router, false, routing);
  EXPECT_EQ(DownloadRaw<int32_t>(routing.expert_ids), (std::vector<int32_t>{0, 1, 2, 0, 1, 2}));
}

TEST_P(OpsParity, RouteTopKNamesDistinctExpertsEvenForNaN) {
  const Tensor x = Upload({NAN, 1, 1, 1}, DType::kFloat32, {2, 2});
  const Weight router = LoadWeight(RandomValues(10, DType::kFloat32), 5, 2, DType::kFloat32);
  const Routing routing = {Zeros(DType::kInt32, {2, 5}), Zeros(DType::kFloat32, {2, 5})};
  ops().RouteTopK(x, router, false, routing);
  std::vector<int32_t> ids = DownloadRaw<int32_t>(routing.expert_ids);
  std::sort(ids.begin(), ids.begin() + 5);
  EXPECT_EQ(std::vector<int32_t>(ids.begin(), ids.begin() + 5),
            (std::vector<int32_t>{0, 1, 2, 3, 4}));
}

TEST_P(FfnParity, DenseFfnMultiplies) {
  for (DType dtype : kStorageTypes) {
    for (const auto& [tokens, hidden, width] :
         std::vector<std::array<int64_t, 3>>{{0, 8, 8}, {1, 40, 24}, {3, 17, 33}, {55, 64, 70}}) {
      const FfnMirror ffn = RandomFfn(1, hidden, width, dtype);
      const Mirror x = Random(dtype, {tokens, hidden});
      const Tensor out = Zeros(dtype, {tokens, hidden});
      ops().DenseFfn(x.device, ffn.device, out);
      std::vector<double> expected;
      for (int64_t t = 0; t < tokens; ++t) {
        const std::vector<double> row = ffn.Apply(0, &x.host[t * hidden], dtype);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      // A rounded activation may fall to the other side.
      ExpectNear(Download(out), expected, dtype == DType::kBFloat16 ? 1.0 / 200 : 1e-5);
    }
  }
}

/// Experts with no token, one token and many; ids outside the local ones leave their rows alone.
TEST_P(FfnParity, ExpertFfnRunsLocalExpertsOnly) {
  constexpr int64_t kTokens = 60, kTopK = 2, kHidden = 35, kWidth = 21;
  constexpr int kFirst = 3, kLocal = 5;
  for (DType dtype : kStorageTypes) {
    const FfnMirror ffn = RandomFfn(kLocal, kHidden, kWidth, dtype);
    const Mirror x = Random(dtype, {kTokens, kHidden});
    std::vector<int32_t> ids(kTokens * kTopK);
    for (int64_t i = 0; i < kTokens * kTopK; ++i) {
      ids[i] = i == 7       ? kFirst + 1
               : i % 3 == 0 ? kFirst + 2
               : i % 3 == 1 ? kFirst + 4
                            : 9 * (i % 2);
    }
    const Mirror rows = Random(dtype, {kTokens, kTopK, kHidden});
    ops().ExpertFfn(x.device, UploadInts(ids, {kTokens, kTopK}), {ffn.device, kFirst}, rows.device);
    std::vector<double> expected(rows.host.begin(), rows.host.end());
    for (int64_t i = 0; i < kTokens * kTopK; ++i) {
      const int64_t e = ids[i] - kFirst;
      if (e < 0 || e >= kLocal) continue;
      const std::vector<double> row = ffn.Apply(e, &x.host[i / kTopK * kHidden], dtype);
      std::copy(row.begin(), row.end(), expected.begin() + i * kHidden);
    }
    ExpectNear(Download(rows.device), expected, dtype == DType::kBFloat16 ? 1.0 / 200 : 1e-5);
  }
}

TEST_P(FfnParity, ExpertFfnRowsDoNotDependOnTheBatch) {
  constexpr int64_t kTokens = 40, kTopK = 2, kHidden = 50, kWidth = 40, kExperts = 4;
  for (DType dtype : kStorageTypes) {
    const FfnMirror ffn = RandomFfn(kExperts, kHidden, kWidth, dtype);
    const Mirror x = Random(dtype, {kTokens, kHidden});
    std::vector<int32_t> ids(kTokens * kTopK);
    for (int32_t& id : ids) id = static_cast<int32_t>(random_() % kExperts);
    const Tensor all_ids = UploadInts(ids, {kTokens, kTopK});
    const Tensor all = Zeros(dtype, {kTokens, kTopK, kHidden});
    ops().ExpertFfn(x.device, all_ids, {ffn.device, 0}, all);
    for (int64_t begin = 0; begin < kTokens; ++begin) {
      const int64_t count = std::min<int64_t>(1 + begin % 7, kTokens - begin);
      const Tensor out = Zeros(dtype, {count, kTopK, kHidden});
      ops().ExpertFfn(x.device.Rows(begin, count), all_ids.Rows(begin, count), {ffn.device, 0},
                      out);
      ASSERT_EQ(Download(out), Download(all.Rows(begin, count)));
    }
  }
}

}  // namespace shoal
