// Feed-forward networks against naive loops in double precision, for any backend.
#pragma once

#include <algorithm>
#include <array>

#include "tests/kernels/ops_fixture.h"

namespace shoal {

/// One feed-forward network per expert, on both sides.
struct FfnMirror {
  int64_t hidden_size = 0;
  int64_t width = 0;
  std::vector<std::vector<float>> gate, up, down;
  FfnWeights device;

  /// Expert e applied to one row, in double precision, the activation rounded to dtype.
  std::vector<double> Apply(int64_t e, const float* x, DType dtype) const {
    std::vector<double> activation(width), out(hidden_size);
    for (int64_t r = 0; r < width; ++r) {
      double g = 0, u = 0;
      for (int64_t i = 0; i < hidden_size; ++i) {
        g += double{x[i]} * gate[e][r * hidden_size + i];
        u += double{x[i]} * up[e][r * hidden_size + i];
      }
      const auto value = static_cast<float>(g / (1 + std::exp(-g)) * u);
      activation[r] = dtype == DType::kBFloat16 ? static_cast<float>(BFloat16(value)) : value;
    }
    for (int64_t r = 0; r < hidden_size; ++r) {
      for (int64_t i = 0; i < width; ++i) out[r] += activation[i] * down[e][r * width + i];
    }
    return out;
  }

  /// A rounded activation may fall to the other side.
  static double Tolerance(DType dtype) { return dtype == DType::kBFloat16 ? 1.0 / 200 : 1e-5; }
};

class FfnParity : public OpsParity {
 protected:
  FfnMirror RandomFfn(int64_t num_experts, int64_t hidden_size, int64_t width, DType dtype) {
    FfnMirror ffn;
    ffn.hidden_size = hidden_size;
    ffn.width = width;
    std::vector<HostFfn> experts;
    const auto scale = 1 / std::sqrt(static_cast<float>(hidden_size));
    for (int64_t e = 0; e < num_experts; ++e) {
      ffn.gate.push_back(RandomValues(width * hidden_size, dtype, scale));
      ffn.up.push_back(RandomValues(width * hidden_size, dtype, scale));
      ffn.down.push_back(RandomValues(width * hidden_size, dtype, scale));
      experts.push_back({Tensor(ffn.gate[e].data(), DType::kFloat32, {width, hidden_size}),
                         Tensor(ffn.up[e].data(), DType::kFloat32, {width, hidden_size}),
                         Tensor(ffn.down[e].data(), DType::kFloat32, {hidden_size, width})});
    }
    ffn.device = device().LoadFfn(experts, dtype).value();
    return ffn;
  }

  /// Runs the local experts [first_expert, first_expert + ffn's experts) of `ids` [num_tokens,
  /// num_routes] and holds every row against its definition, or against what it was before.
  void ExpectExpertRows(const FfnMirror& ffn, int first_expert, const std::vector<int32_t>& ids,
                        int64_t num_routes, DType dtype) {
    const auto num_rows = static_cast<int64_t>(ids.size());
    const int64_t n = ffn.hidden_size, num_tokens = num_rows / num_routes;
    const Mirror x = Random(dtype, {num_tokens, n});
    const Mirror rows = Random(dtype, {num_tokens, num_routes, n});
    ops().ExpertFfn(x.device, UploadInts(ids, {num_tokens, num_routes}), {ffn.device, first_expert},
                    rows.device);
    std::vector<double> expected(rows.host.begin(), rows.host.end());
    for (int64_t i = 0; i < num_rows; ++i) {
      const int64_t e = ids[i] - first_expert;
      if (ids[i] < 0 || e < 0 || e >= ffn.device.num_experts) continue;
      const std::vector<double> row = ffn.Apply(e, &x.host[i / num_routes * n], dtype);
      std::copy(row.begin(), row.end(), expected.begin() + i * n);
    }
    ExpectNear(Download(rows.device), expected, FfnMirror::Tolerance(dtype));
  }
};

TEST_P(FfnParity, DenseFfnMultiplies) {
  for (DType dtype : dtypes()) {
    for (const auto& [tokens, hidden_size, ffn_width] :
         std::vector<std::array<int64_t, 3>>{{0, 8, 8},
                                             {1, 40, 24},
                                             {3, 17, 33},
                                             {55, 64, 70},
                                             {130, 16, 72},
                                             {2, 1032, 16},
                                             {2, 16, 10944}}) {
      const int64_t n = Features(hidden_size), width = Features(ffn_width);
      const FfnMirror ffn = RandomFfn(1, n, width, dtype);
      const Mirror x = Random(dtype, {tokens, n});
      const Tensor out = Zeros(dtype, {tokens, n});
      ops().DenseFfn(x.device, ffn.device, out);
      std::vector<double> expected;
      for (int64_t t = 0; t < tokens; ++t) {
        const std::vector<double> row = ffn.Apply(0, &x.host[t * n], dtype);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      ExpectNear(Download(out), expected, FfnMirror::Tolerance(dtype));
    }
  }
}

/// Experts with no token, one token and many; ids outside the local ones leave their rows alone.
TEST_P(FfnParity, ExpertFfnRunsLocalExpertsOnly) {
  constexpr int kFirst = 3;
  const int64_t n = Features(35), width = Features(21);
  std::vector<int32_t> ids(120);
  for (int64_t i = 0; i < std::ssize(ids); ++i) {
    ids[i] = i == 7 ? kFirst + 1 : i % 3 == 0 ? kFirst + 2 : i % 3 == 1 ? kFirst + 4 : 9 * (i % 2);
  }
  for (DType dtype : dtypes()) {
    const FfnMirror ffn = RandomFfn(5, n, width, dtype);
    ExpectExpertRows(ffn, kFirst, ids, 2, dtype);
    ExpectExpertRows(ffn, kFirst, {0, 1, 2, 8, 9, 100}, 2, dtype);
    ExpectExpertRows(ffn, kFirst, {7}, 1, dtype);
    ExpectExpertRows(ffn, kFirst, {6, 3, 5, 7, 4}, 5, dtype);
  }
}

TEST_P(FfnParity, ExpertFfnSendsPaddingTokensNowhere) {
  const int64_t n = Features(24), width = Features(16);
  for (DType dtype : dtypes()) {
    const FfnMirror ffn = RandomFfn(4, n, width, dtype);
    ExpectExpertRows(ffn, 0, {2, 3, 0, 3, -1, -1, -1, -1}, 2, dtype);
    ExpectExpertRows(ffn, 0, std::vector<int32_t>(40, -1), 4, dtype);
    ExpectExpertRows(ffn, 2, {2, 3, 5, -1, 0, 4}, 3, dtype);
  }
}

/// Groups of every token, of a single one and of none, around the sizes of tiles.
TEST_P(FfnParity, ExpertFfnOfSharedExperts) {
  const int64_t n = Features(16), width = Features(24);
  for (DType dtype : dtypes()) {
    const FfnMirror ffn = RandomFfn(5, n, width, dtype);
    for (int64_t num_tokens : {1, 8, 9, 16, 17, 64, 65, 129}) {
      std::vector<int32_t> ids;
      for (int64_t t = 0; t < num_tokens; ++t) {
        ids.insert(ids.end(), {t == num_tokens / 2 ? 1 : 2, 3, 4});
      }
      ExpectExpertRows(ffn, 0, ids, 3, dtype);
    }
  }
}

TEST_P(FfnParity, ExpertFfnRowsDoNotDependOnTheBatch) {
  constexpr int64_t kTokens = 70, kRoutes = 3;
  constexpr int32_t kRouted = 4;
  const int64_t n = Features(50), width = Features(40);
  for (DType dtype : dtypes()) {
    const FfnMirror ffn = RandomFfn(kRouted + 1, n, width, dtype);
    const Mirror x = Random(dtype, {kTokens, n});
    std::vector<int32_t> ids(kTokens * kRoutes);
    for (int64_t i = 0; i < std::ssize(ids); ++i) {
      const bool is_shared = i % kRoutes == kRoutes - 1;
      ids[i] = is_shared ? kRouted : static_cast<int32_t>(random_() % kRouted);
    }
    const Tensor all_ids = UploadInts(ids, {kTokens, kRoutes});
    const Tensor all = Zeros(dtype, {kTokens, kRoutes, n});
    ops().ExpertFfn(x.device, all_ids, {ffn.device, 0}, all);
    for (int64_t begin = 0; begin < kTokens; begin += 3) {
      const int64_t count = std::min<int64_t>(1 + begin % 7 * (begin % 5), kTokens - begin);
      const Tensor out = Zeros(dtype, {count, kRoutes, n});
      ops().ExpertFfn(x.device.Rows(begin, count), all_ids.Rows(begin, count), {ffn.device, 0},
                      out);
      ASSERT_EQ(Download(out), Download(all.Rows(begin, count))) << begin << " " << count;
    }
  }
}

TEST_P(FfnParity, DenseFfnRowsDoNotDependOnTheBatch) {
  constexpr int64_t kTokens = 130;
  const int64_t n = Features(40), width = Features(72);
  for (DType dtype : dtypes()) {
    const FfnMirror ffn = RandomFfn(1, n, width, dtype);
    const Mirror x = Random(dtype, {kTokens, n});
    const Tensor all = Zeros(dtype, {kTokens, n});
    ops().DenseFfn(x.device, ffn.device, all);
    for (int64_t count : {1, 2, 5, 8, 17, 33, 65}) {
      const Tensor out = Zeros(dtype, {count, n});
      const int64_t begin = kTokens - count - count % 3;
      ops().DenseFfn(x.device.Rows(begin, count), ffn.device, out);
      ASSERT_EQ(Download(out), Download(all.Rows(begin, count))) << count;
    }
  }
}

TEST_P(FfnParity, ExpertFfnKeepsPoisonInItsRow) {
  constexpr int64_t kTokens = 21, kRoutes = 2;
  const int64_t n = Features(24), width = Features(16);
  for (DType dtype : dtypes()) {
    const FfnMirror ffn = RandomFfn(3, n, width, dtype);
    std::vector<int32_t> ids;
    for (int32_t t = 0; t < kTokens; ++t) ids.insert(ids.end(), {t % 2, 2});
    const Tensor expert_ids = UploadInts(ids, {kTokens, kRoutes});
    ExpectPoisonStaysInItsRow(kTokens, n, dtype, [&](const Tensor& x) {
      const Tensor rows = Zeros(dtype, {kTokens, kRoutes, n});
      ops().ExpertFfn(x, expert_ids, {ffn.device, 0}, rows);
      return Download(rows);
    });
  }
}

}  // namespace shoal
