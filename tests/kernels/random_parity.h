// Weights that are made on the device, for any backend.
#pragma once

#include "kernels/normal.h"
#include "tests/kernels/ops_fixture.h"

namespace shoal {

TEST_P(OpsParity, FillNormalGivesTheSameBitsOnEveryBackend) {
  constexpr uint64_t kSeed = 0x123456789abcdef0;
  constexpr float kDeviation = 0.02f;
  for (DType dtype : dtypes()) {
    for (int64_t count : {1, 7, 8, 9, 64, 4099}) {
      const Tensor out = Zeros(dtype, {count});
      ops().FillNormal(out, kSeed, kDeviation);
      std::vector<float> expected;
      for (int64_t i = 0; i < count; ++i) {
        const auto sum = static_cast<float>(ByteSumPair(kSeed, i / 2)[static_cast<size_t>(i % 2)]);
        expected.push_back(Rounded(sum * (kDeviation / kByteSumDeviation), dtype));
      }
      EXPECT_EQ(Download(out), expected) << count << " elements of " << Name(dtype);
    }
  }
}

TEST_P(OpsParity, FillNormalWritesNothingElse) {
  const Tensor all = Zeros(DType::kFloat32, {16});
  ops().FillNormal(all.Rows(4, 5), 1, 1);
  const std::vector<float> values = Download(all);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(values[i] != 0, i >= 4 && i < 9) << "element " << i;
  }
}

TEST_P(OpsParity, FillNormalIsNearlyNormal) {
  constexpr int64_t kCount = 20000;
  std::vector<float> values[2];
  for (uint64_t seed : {0, 1}) {
    const Tensor out = Zeros(DType::kFloat32, {kCount});
    ops().FillNormal(out, seed, 1);
    values[seed] = Download(out);
  }
  double sum = 0, squares = 0, products = 0, within_one = 0;
  for (size_t i = 0; i < values[0].size(); ++i) {
    sum += values[0][i];
    squares += double{values[0][i]} * values[0][i];
    products += double{values[0][i]} * values[1][i];
    within_one += std::abs(values[0][i]) < 1 ? 1 : 0;
  }
  EXPECT_NEAR(sum / kCount, 0, 0.03);
  EXPECT_NEAR(squares / kCount, 1, 0.05);
  EXPECT_NEAR(products / kCount, 0, 0.03) << "of two seeds";
  EXPECT_NEAR(within_one / kCount, 0.683, 0.02);
}

/// Whatever the order of a weight's elements, x of ones adds up all of them.
TEST_P(OpsParity, AnAllocatedWeightHasTheElementsThatItIsFilledWith) {
  const int64_t rows = 5, columns = Features(24);
  for (DType dtype : dtypes()) {
    const Weight weight = device().AllocateWeight(rows, columns, dtype).value();
    EXPECT_EQ(weight.out_features, rows);
    EXPECT_EQ(weight.in_features, columns);
    const Tensor x =
        Upload(std::vector<float>(static_cast<size_t>(columns), 1), dtype, {1, columns});
    const Tensor out = Zeros(DType::kFloat32, {1, rows});
    ops().Linear(x, weight, {}, out);
    EXPECT_EQ(Download(out), std::vector<float>(rows)) << "nothing is in it yet";
    const Tensor elements(const_cast<void*>(weight.data), dtype, {rows * columns});
    ops().FillNormal(elements, 3, 1);
    double expected = 0, actual = 0;
    for (float value : Download(elements)) expected += value;
    ops().Linear(x, weight, {}, out);
    for (float value : Download(out)) actual += value;
    EXPECT_NEAR(actual, expected, 1e-3);
  }
}

TEST_P(OpsParity, AllocatedExpertsLieOneAfterTheOther) {
  const int64_t hidden_size = Features(16), width = Features(8), matrix = hidden_size * width;
  for (DType dtype : dtypes()) {
    const FfnWeights weights = device().AllocateFfn(2, hidden_size, width, dtype).value();
    const auto fill_second = [&](const void* data, int64_t count) {
      auto* first = static_cast<std::byte*>(const_cast<void*>(data));
      ops().FillNormal(Tensor(first + count * SizeOf(dtype), dtype, {count}), 1, 1);
    };
    fill_second(weights.gate_up, 2 * matrix);
    fill_second(weights.down, matrix);
    const Mirror x = Random(dtype, {1, hidden_size});
    const Tensor rows = Zeros(dtype, {1, 2, hidden_size});
    ops().ExpertFfn(x.device, UploadInts({0, 1}, {1, 2}), {.weights = weights}, rows);
    const std::vector<float> values = Download(rows);
    for (int64_t i = 0; i < hidden_size; ++i) {
      EXPECT_EQ(values[static_cast<size_t>(i)], 0) << "of the expert that was not filled";
      EXPECT_NE(values[static_cast<size_t>(hidden_size + i)], 0);
    }
  }
}

}  // namespace shoal
