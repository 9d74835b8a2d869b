// What the parity tests of Ops share: a backend as the parameter, tensors on both sides,
// tolerances.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace shoal {

/// A backend under test. `make` gives none where the machine cannot run it.
struct BackendCase {
  std::string name;
  std::function<absl::StatusOr<Backend>()> make;
  std::vector<DType> dtypes;       // of weights and activations
  int64_t feature_alignment = 1;   // hidden_size, width and in_features are multiples of it,
  int64_t head_dim_alignment = 1;  // and head_dim of this
  int64_t num_draws = 20000;       // of every distribution of tokens; fewer for a slow backend
};

inline void PrintTo(const BackendCase& backend, std::ostream* out) { *out << backend.name; }

/// Values of a tensor, as float, together with its copy on the device.
struct Mirror {
  std::vector<float> host;
  Tensor device;
};

class OpsParity : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    absl::StatusOr<Backend> backend = GetParam().make();
    if (absl::IsUnimplemented(backend.status())) GTEST_SKIP() << backend.status();
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
  }

  Ops& ops() { return *backend_.ops; }
  Device& device() { return *backend_.device; }

  static const std::vector<DType>& dtypes() { return GetParam().dtypes; }

  /// A size like `n` that the backend takes as number of features, or as head_dim.
  static int64_t Features(int64_t n) { return RoundedUp(n, GetParam().feature_alignment); }
  static int HeadDim(int64_t n) {
    return static_cast<int>(RoundedUp(n, GetParam().head_dim_alignment));
  }

  static float Rounded(float value, DType dtype) {
    return dtype == DType::kBFloat16 ? static_cast<float>(BFloat16(value)) : value;
  }

  /// Normally distributed values of the given scale, rounded to dtype.
  std::vector<float> RandomValues(int64_t count, DType dtype, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(count);
    for (float& value : values) value = Rounded(normal(random_), dtype);
    return values;
  }

  Tensor Upload(const std::vector<float>& values, DType dtype, std::vector<int64_t> shape) {
    const Tensor tensor = Zeros(dtype, shape);
    if (dtype == DType::kFloat32) {
      device().CopyFromHost(values.data(), tensor);
    } else {
      const std::vector<BFloat16> narrow(values.begin(), values.end());
      device().CopyFromHost(narrow.data(), tensor);
    }
    return tensor;
  }
  Tensor UploadInts(const std::vector<int32_t>& values, std::vector<int64_t> shape) {
    const Tensor tensor = device().Allocate(DType::kInt32, std::span<const int64_t>(shape)).value();
    device().CopyFromHost(values.data(), tensor);
    return tensor;
  }
  Tensor Zeros(DType dtype, std::vector<int64_t> shape) {
    return device().Allocate(dtype, std::span<const int64_t>(shape)).value();
  }
  Mirror Random(DType dtype, const std::vector<int64_t>& shape, float scale = 1) {
    int64_t count = 1;
    for (int64_t dim : shape) count *= dim;
    Mirror mirror{.host = RandomValues(count, dtype, scale), .device = {}};
    mirror.device = Upload(mirror.host, dtype, shape);
    return mirror;
  }

  template <typename T>
  std::vector<T> DownloadRaw(const Tensor& tensor) {
    std::vector<T> values(tensor.size_bytes() / sizeof(T));
    device().CopyToHost(tensor, values.data());
    EXPECT_TRUE(device().Synchronize().ok());
    return values;
  }
  std::vector<float> Download(const Tensor& tensor) {
    if (tensor.dtype == DType::kFloat32) return DownloadRaw<float>(tensor);
    std::vector<float> values;
    for (BFloat16 value : DownloadRaw<BFloat16>(tensor))
      values.push_back(static_cast<float>(value));
    return values;
  }

  Weight LoadWeight(const std::vector<float>& values, int64_t rows, int64_t columns, DType dtype) {
    const Tensor host(const_cast<float*>(values.data()), DType::kFloat32, {rows, columns});
    return device().LoadWeight({&host, 1}, dtype).value();
  }

  Routing MakeRouting(int64_t num_tokens, int64_t num_routes) {
    return {.expert_ids = Zeros(DType::kInt32, {num_tokens, num_routes}),
            .weights = Zeros(DType::kFloat32, {num_tokens, num_routes}),
            .num_tokens = {}};
  }

  /// run(x) gives as many results for each row of x [num_rows, n]. A row with a NaN or an infinity
  /// must change no bit of the others' results.
  template <typename Run>
  void ExpectPoisonStaysInItsRow(int64_t num_rows, int64_t n, DType dtype, const Run& run) {
    const Mirror x = Random(dtype, {num_rows, n});
    const std::vector<float> clean = run(x.device);
    const auto row_size = static_cast<int64_t>(clean.size()) / num_rows;
    for (float poison : {NAN, INFINITY}) {
      for (int64_t row : {int64_t{0}, num_rows / 2, num_rows - 1}) {
        std::vector<float> values = x.host;
        values[row * n + n / 2] = poison;
        const std::vector<float> actual = run(Upload(values, dtype, {num_rows, n}));
        ASSERT_EQ(actual.size(), clean.size());
        for (int64_t i = 0; i < std::ssize(clean); ++i) {
          if (i / row_size == row) continue;
          ASSERT_EQ(actual[i], clean[i]) << poison << " in row " << row << ", element " << i;
        }
      }
    }
  }

  /// |actual - expected| <= tolerance * max(|expected|, scale), element by element.
  static void ExpectNear(const std::vector<float>& actual, const std::vector<double>& expected,
                         double tolerance, double scale = 1) {
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      ASSERT_NEAR(actual[i], expected[i], tolerance * std::max(std::abs(expected[i]), scale))
          << "element " << i;
    }
  }

  /// For results rounded once to dtype: half a unit in the last place of bfloat16 is up to 2^-8 of
  /// the value; float32 leaves the error of a sum of some thousand terms.
  static double Tolerance(DType dtype) { return dtype == DType::kBFloat16 ? 1.0 / 250 : 2e-6; }

  Backend backend_;
  std::mt19937 random_{20261122};

 private:
  static int64_t RoundedUp(int64_t n, int64_t alignment) {
    return (n + alignment - 1) / alignment * alignment;
  }
};

}  // namespace shoal
