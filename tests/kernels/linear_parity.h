// Embedding, gathering and linear layers against naive loops in double precision, for any backend.
#pragma once

#include <algorithm>
#include <array>
#include <numeric>

#include "tests/kernels/ops_fixture.h"

namespace shoal {

TEST_P(OpsParity, EmbedCopiesRows) {
  const int64_t n = Features(7);
  for (DType dtype : dtypes()) {
    const std::vector<float> table = RandomValues(11 * n, dtype);
    const Weight weight = LoadWeight(table, 11, n, dtype);
    const std::vector<int32_t> ids = {10, 0, -1, 3, 3};
    const Mirror out = Random(dtype, {5, n});
    ops().Embed(UploadInts(ids, {5}), weight, out.device);
    const std::vector<float> actual = Download(out.device);
    for (int64_t i = 0; i < 5 * n; ++i) {
      const int32_t id = ids[i / n];
      EXPECT_EQ(actual[i], id < 0 ? 0 : table[id * n + i % n]) << i;
    }
  }
}

TEST_P(OpsParity, GatherRowsCopiesRows) {
  const int64_t n = Features(6);
  for (DType dtype : dtypes()) {
    const Mirror x = Random(dtype, {5, n});
    const Tensor out = Zeros(dtype, {2, n});
    ops().GatherRows(x.device, UploadInts({4, 1}, {2}), out);
    const std::vector<float> actual = Download(out);
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_EQ(actual[i], x.host[4 * n + i]);
      EXPECT_EQ(actual[n + i], x.host[n + i]);
    }
  }
}

TEST_P(OpsParity, LinearMultiplies) {
  for (DType dtype : dtypes()) {
    for (const auto& [tokens, rows, in_features] :
         std::vector<std::array<int64_t, 3>>{{0, 5, 8},
                                             {1, 1, 1},
                                             {1, 70, 64},
                                             {2, 33, 17},
                                             {3, 40, 1032},
                                             {7, 31, 100},
                                             {13, 64, 129},
                                             {50, 9, 48},
                                             {130, 70, 16}}) {
      const int64_t n = Features(in_features);
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

/// A head of 100,000 rows.
TEST_P(OpsParity, LinearMultipliesWithManyRows) {
  constexpr int64_t kRows = 102400;
  const int64_t n = Features(16);
  for (DType dtype : dtypes()) {
    const Mirror x = Random(dtype, {2, n});
    const std::vector<float> values = RandomValues(kRows * n, dtype);
    const Tensor out = Zeros(DType::kFloat32, {2, kRows});
    ops().Linear(x.device, LoadWeight(values, kRows, n, dtype), {}, out);
    std::vector<double> expected(2 * kRows);
    for (int64_t i = 0; i < 2 * kRows; ++i) {
      const auto row = x.host.begin() + i / kRows * n;
      expected[i] = std::inner_product(row, row + n, values.begin() + i % kRows * n, 0.0);
    }
    ExpectNear(Download(out), expected, Tolerance(DType::kFloat32), std::sqrt(n));
  }
}

TEST_P(OpsParity, LinearOfFirstRowsEqualsThoseOfAll) {
  const int64_t n = Features(40);
  for (DType dtype : dtypes()) {
    const Mirror x = Random(dtype, {3, n});
    const Weight weight = LoadWeight(RandomValues(77 * n, dtype), 77, n, dtype);
    const Tensor all = Zeros(DType::kFloat32, {3, 77}), some = Zeros(DType::kFloat32, {3, 41});
    ops().Linear(x.device, weight, {}, all);
    ops().Linear(x.device, weight, {}, some);
    const std::vector<float> wide = Download(all), narrow = Download(some);
    for (int i = 0; i < 3 * 41; ++i) EXPECT_EQ(narrow[i], wide[i / 41 * 77 + i % 41]);
  }
}

TEST_P(OpsParity, LinearRowsDoNotDependOnTheBatch) {
  constexpr int64_t kTokens = 130, kRows = 37;
  const int64_t in_features = Features(71);
  for (DType dtype : dtypes()) {
    const Mirror x = Random(dtype, {kTokens, in_features});
    const Weight weight =
        LoadWeight(RandomValues(kRows * in_features, dtype), kRows, in_features, dtype);
    const Tensor all = Zeros(DType::kFloat32, {kTokens, kRows});
    ops().Linear(x.device, weight, {}, all);
    for (int64_t count : {1, 2, 3, 4, 5, 6, 7, 11, 49}) {
      const Tensor out = Zeros(DType::kFloat32, {count, kRows});
      for (int64_t begin = 0; begin + count <= kTokens; begin += 17) {
        ops().Linear(x.device.Rows(begin, count), weight, {}, out);
        ASSERT_EQ(Download(out), Download(all.Rows(begin, count))) << begin << " " << count;
      }
    }
  }
}

TEST_P(OpsParity, LinearKeepsPoisonInItsRow) {
  const int64_t n = Features(40);
  for (DType dtype : dtypes()) {
    const Weight weight = LoadWeight(RandomValues(19 * n, dtype), 19, n, dtype);
    ExpectPoisonStaysInItsRow(21, n, dtype, [&](const Tensor& x) {
      const Tensor out = Zeros(DType::kFloat32, {21, 19});
      ops().Linear(x, weight, {}, out);
      return Download(out);
    });
  }
}

}  // namespace shoal
