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
};

inline void PrintTo(const BackendCase& backend, std::ostream* out) { *out << backend.name; }

/// Values of a tensor, as float, together with its copy on the device.
struct Mirror {
  std::vector<float> host;
  Tensor device;
};

inline constexpr DType kStorageTypes[] = {DType::kFloat32, DType::kBFloat16};

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
    const Tensor host(const_cast<float*>(values.data()), DType::kFloat32, shape);
    return device().LoadTensor(host, dtype).value();
  }
  Tensor UploadInts(const std::vector<int32_t>& values, std::vector<int64_t> shape) {
    const Tensor tensor = device().Allocate(DType::kInt32, std::span<const int64_t>(shape)).value();
    device().CopyFromHost(values.data(), tensor);
    EXPECT_TRUE(device().Synchronize().ok());
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
};

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
};

}  // namespace shoal
