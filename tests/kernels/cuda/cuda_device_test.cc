#include "kernels/cuda/cuda_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/cuda_backend.h"

namespace shoal::cuda {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

/// A backend on the first device; the test is skipped where there is none.
class CudaDeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    absl::StatusOr<Backend> backend = MakeCudaBackend({});
    if (absl::IsUnavailable(backend.status())) GTEST_SKIP() << backend.status();
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
  }

  Device& device() { return *backend_.device; }
  Ops& ops() { return *backend_.ops; }

  template <typename T>
  Tensor Upload(const std::vector<T>& values, DType dtype, std::vector<int64_t> shape) {
    const Tensor tensor = device().Allocate(dtype, std::span<const int64_t>(shape)).value();
    device().CopyFromHost(values.data(), tensor);
    return tensor;
  }

  template <typename T>
  std::vector<T> Download(const Tensor& tensor) {
    std::vector<T> values(tensor.size_bytes() / sizeof(T));
    device().CopyToHost(tensor, values.data());
    EXPECT_TRUE(device().Synchronize().ok());
    return values;
  }

  /// What LoadTensor makes of host values, bit by bit.
  template <typename T>
  std::vector<uint16_t> Narrowed(const std::vector<T>& values, DType dtype) {
    const Tensor host(const_cast<T*>(values.data()), dtype, {std::ssize(values)});
    return Download<uint16_t>(device().LoadTensor(host, DType::kBFloat16).value());
  }

 private:
  Backend backend_;
};

std::vector<int32_t> CountedFrom(int32_t first, int64_t count) {
  std::vector<int32_t> values(count);
  std::iota(values.begin(), values.end(), first);
  return values;
}

/// The value of an IEEE half.
float HalfValue(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) {
    return fraction > 0 ? std::numeric_limits<float>::quiet_NaN()
                        : sign * std::numeric_limits<float>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
}

TEST_F(CudaDeviceTest, RefusesWhatIsOverTheLimit) {
  const int64_t free_bytes = device().FreeBytes();
  ASSERT_TRUE(device().Allocate(DType::kByte, {1 << 19}).ok());
  EXPECT_EQ(device().FreeBytes(), free_bytes - (1 << 19));
  const absl::Status status = device().Allocate(DType::kByte, {free_bytes}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(fmt::format("a byte tensor of shape [{}] needs {} bytes, {} of {} are left",
                                    free_bytes, free_bytes, free_bytes - (1 << 19), free_bytes)));
  EXPECT_EQ(device().FreeBytes(), free_bytes - (1 << 19));
  constexpr int64_t kHuge = int64_t{1} << 40;
  EXPECT_THAT(std::string(device().Allocate(DType::kFloat32, {kHuge, kHuge}).status().message()),
              HasSubstr("needs more than 2^63 bytes"));
  EXPECT_TRUE(device().Allocate(DType::kFloat32, {kHuge, kHuge, 0}).ok());
}

TEST_F(CudaDeviceTest, CopiesLargerThanTheRingComeThrough) {
  // Neither a multiple of a piece nor of a word.
  const int64_t count = 5 * HostTransfers::kNumSegments * HostTransfers::kSegmentBytes / 8 + 3;
  const std::vector<int32_t> values = CountedFrom(-7, count);
  EXPECT_EQ(Download<int32_t>(Upload(values, DType::kInt32, {count})), values);
  std::vector<uint8_t> bytes(HostTransfers::kSegmentBytes + 1);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7 + i / 256);
  EXPECT_EQ(Download<uint8_t>(Upload(bytes, DType::kByte, {std::ssize(bytes)})), bytes);
}

TEST_F(CudaDeviceTest, ManySmallCopiesKeepTheirOrderAndTheirValues) {
  constexpr int64_t kCount = 20000;
  const Tensor tensor = device().Allocate(DType::kInt32, {kCount}).value();
  std::vector<int32_t> out(kCount);
  for (int32_t i = 0; i < kCount; ++i) {
    // The host's memory is free after each call.
    int32_t value = -1;
    device().CopyFromHost(&value, tensor.Rows(i, 1));
    value = i * 3;
    device().CopyFromHost(&value, tensor.Rows(i, 1));
    value = -2;
    device().CopyToHost(tensor.Rows(i, 1), &out[i]);
  }
  ASSERT_TRUE(device().Synchronize().ok());
  for (int32_t i = 0; i < kCount; ++i) ASSERT_EQ(out[i], i * 3);
}

TEST_F(CudaDeviceTest, CopiesOfNothingAreNothing) {
  device().CopyFromHost(nullptr, Tensor(nullptr, DType::kInt32, {0}));
  device().CopyToHost(Tensor(nullptr, DType::kInt32, {0}), nullptr);
  EXPECT_TRUE(device().Synchronize().ok());
}

TEST_F(CudaDeviceTest, FloatsAreRoundedToNearestTiesToEven) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> values = {0.0f,
                                     -0.0f,
                                     1.0f,
                                     -3.14159f,
                                     std::bit_cast<float>(0x3f808000u),  // ties, down and up
                                     std::bit_cast<float>(0x3f818000u),
                                     std::bit_cast<float>(0x3f808001u),
                                     std::bit_cast<float>(0x3f807fffu),
                                     std::bit_cast<float>(0x00000001u),  // subnormal
                                     std::bit_cast<float>(0x807fffffu),
                                     std::bit_cast<float>(0x00008000u),
                                     std::numeric_limits<float>::max(),  // becomes infinite
                                     kInfinity,
                                     -kInfinity,
                                     std::numeric_limits<float>::quiet_NaN(),
                                     std::bit_cast<float>(0xff800001u)};  // NaN in low bits only
  EXPECT_EQ(Narrowed(values, DType::kFloat32),
            (std::vector<uint16_t>{0, 0x8000, 0x3f80, 0xc049, 0x3f80, 0x3f82, 0x3f81, 0x3f80, 0,
                                   0x8080, 0, 0x7f80, 0x7f80, 0xff80, 0x7fc0, 0xffc0}));
}

TEST_F(CudaDeviceTest, EveryHalfIsConverted) {
  std::vector<uint16_t> halves(1 << 16);
  std::iota(halves.begin(), halves.end(), uint16_t{0});
  const std::vector<uint16_t> narrowed = Narrowed(halves, DType::kFloat16);
  const Tensor host(halves.data(), DType::kFloat16, {std::ssize(halves)});
  const std::vector<float> widened =
      Download<float>(device().LoadTensor(host, DType::kFloat32).value());
  for (size_t i = 0; i < halves.size(); ++i) {
    const float value = HalfValue(halves[i]);
    const auto as_float = static_cast<float>(std::bit_cast<BFloat16>(narrowed[i]));
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(widened[i]) && std::isnan(as_float)) << i;
      continue;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(widened[i]), std::bit_cast<uint32_t>(value)) << i;
    ASSERT_EQ(narrowed[i], BFloat16(value).bits) << i;
  }
}

TEST_F(CudaDeviceTest, LoadTensorKeepsShapeAndEqualTypes) {
  std::vector<uint16_t> bits(30 * 7);
  std::iota(bits.begin(), bits.end(), uint16_t{0x7f00});
  const Tensor host(bits.data(), DType::kBFloat16, {30, 7});
  const Tensor tensor = device().LoadTensor(host, DType::kBFloat16).value();
  EXPECT_EQ(tensor.rank, 2);
  EXPECT_EQ(tensor.shape[1], 7);
  EXPECT_EQ(Download<uint16_t>(tensor), bits);
}

/// A host matrix of consecutive numbers, which bfloat16 holds up to 256.
struct HostMatrix {
  std::vector<float> values;
  Tensor tensor;

  HostMatrix(int first, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows * columns; ++i) {
      values.push_back(static_cast<float>((first + i) % 257));
    }
    tensor = Tensor(values.data(), DType::kFloat32, {rows, columns});
  }
};

std::vector<float> Widened(const std::vector<uint16_t>& bits) {
  std::vector<float> values;
  for (uint16_t element : bits) {
    values.push_back(static_cast<float>(std::bit_cast<BFloat16>(element)));
  }
  return values;
}

TEST_F(CudaDeviceTest, LoadWeightStacksRowBlocksOfAnyType) {
  const HostMatrix first(0, 3, 8);
  std::vector<uint16_t> halves(8, 0x3c00), narrow(16, BFloat16(2.0f).bits);
  const Tensor blocks[] = {first.tensor, Tensor(halves.data(), DType::kFloat16, {1, 8}),
                           Tensor(narrow.data(), DType::kBFloat16, {2, 8})};
  const Weight weight = device().LoadWeight(blocks, DType::kBFloat16).value();
  EXPECT_EQ(weight.out_features, 6);
  EXPECT_EQ(weight.in_features, 8);
  EXPECT_EQ(weight.dtype, DType::kBFloat16);
  std::vector<float> expected = first.values;
  expected.resize(32, 1);
  expected.resize(48, 2);
  const Tensor memory(const_cast<void*>(weight.data), DType::kBFloat16, {6, 8});
  EXPECT_EQ(Widened(Download<uint16_t>(memory)), expected);
}

TEST_F(CudaDeviceTest, GateAndUpLieInGroupsOfEightRows) {
  // The last: a group is larger than a piece of the ring.
  for (const auto& [num_experts, width, hidden_size] : std::vector<std::array<int64_t, 3>>{
           {1, 8, 8}, {3, 24, 16}, {1, 16, HostTransfers::kSegmentBytes / 16 + 8}}) {
    std::vector<HostMatrix> gates, ups, downs;
    std::vector<HostFfn> experts;
    for (int e = 0; e < num_experts; ++e) {
      gates.emplace_back(e, width, hidden_size);
      ups.emplace_back(e + 100, width, hidden_size);
      downs.emplace_back(e + 50, hidden_size, width);
      experts.push_back({gates[e].tensor, ups[e].tensor, downs[e].tensor});
    }
    const FfnWeights ffn = device().LoadFfn(experts, DType::kBFloat16).value();
    EXPECT_EQ(ffn.num_experts, num_experts);
    EXPECT_EQ(ffn.width, width);
    EXPECT_EQ(ffn.hidden_size, hidden_size);
    const int64_t elements = width * hidden_size, group = 8 * hidden_size;
    const Tensor gate_up(const_cast<void*>(ffn.gate_up), DType::kBFloat16,
                         {num_experts, 2, elements});
    const Tensor down(const_cast<void*>(ffn.down), DType::kBFloat16, {num_experts, elements});
    std::vector<float> expected_gate_up, expected_down;
    for (int e = 0; e < num_experts; ++e) {
      for (int64_t begin = 0; begin < elements; begin += group) {
        for (const HostMatrix& half : {gates[e], ups[e]}) {
          const auto first = half.values.begin() + begin;
          expected_gate_up.insert(expected_gate_up.end(), first, first + group);
        }
      }
      expected_down.insert(expected_down.end(), downs[e].values.begin(), downs[e].values.end());
    }
    EXPECT_TRUE(Widened(Download<uint16_t>(gate_up)) == expected_gate_up) << hidden_size;
    EXPECT_TRUE(Widened(Download<uint16_t>(down)) == expected_down) << hidden_size;
  }
}

TEST_F(CudaDeviceTest, WeightsThatTheKernelsCannotReadAreRefused) {
  const HostMatrix narrow(0, 2, 7), matrix(0, 8, 8), tall(0, 12, 8), wide(0, 8, 12);
  const auto refusal = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(refusal(device().LoadWeight({&matrix.tensor, 1}, DType::kFloat32).status()),
            "dtype float32 is not supported by the CUDA device: use bfloat16");
  EXPECT_EQ(refusal(device().LoadWeight({&narrow.tensor, 1}, DType::kBFloat16).status()),
            "in_features is 7 in a weight of shape [2, 7]: the CUDA device needs a multiple of 8");
  const HostFfn ffn = {tall.tensor, tall.tensor, wide.tensor};
  EXPECT_THAT(refusal(device().LoadFfn({&ffn, 1}, DType::kBFloat16).status()),
              HasSubstr("width is 12 in feed-forward networks of width 12 and hidden size 8"));
  EXPECT_THAT(refusal(device().LoadFfn({&ffn, 1}, DType::kFloat32).status()),
              HasSubstr("use bfloat16"));
  EXPECT_EQ(refusal(device().AllocateFfn(513, 8, 8, DType::kBFloat16).status()),
            "513 experts of one layer: the CUDA device takes at most 512");
}

TEST_F(CudaDeviceTest, ModelsThatTheKernelsCannotComputeAreRefused) {
  constexpr ModelSizes kLargest = {.dtype = DType::kBFloat16,
                                   .vocab_size = 1 << 22,
                                   .hidden_size = 16384,
                                   .head_dim = 256,
                                   .intermediate_size = 1 << 20,
                                   .moe_intermediate_size = 1 << 20,
                                   .n_routed_experts = 256,
                                   .num_routes = 32};
  EXPECT_TRUE(ops().CheckModel(kLargest).ok());
  const auto expect_refusal = [&](auto field, auto value, const std::string& message) {
    ModelSizes sizes = kLargest;
    sizes.*field = value;
    EXPECT_EQ(ops().CheckModel(sizes), absl::InvalidArgumentError(message + " on a CUDA device"));
  };
  using S = ModelSizes;
  expect_refusal(&S::dtype, DType::kFloat32, "dtype is float32, expected bfloat16");
  expect_refusal(&S::head_dim, 72,
                 "hidden_size / num_attention_heads is 72, expected a multiple of 16");
  expect_refusal(&S::head_dim, 272,
                 "hidden_size / num_attention_heads is 272, expected at most 256");
  expect_refusal(&S::hidden_size, 4, "hidden_size is 4, expected a multiple of 8");
  expect_refusal(&S::hidden_size, 16392, "hidden_size is 16392, expected at most 16384");
  expect_refusal(&S::intermediate_size, 44, "intermediate_size is 44, expected a multiple of 8");
  expect_refusal(&S::moe_intermediate_size, 1407,
                 "moe_intermediate_size is 1407, expected a multiple of 8");
  expect_refusal(&S::n_routed_experts, 257, "n_routed_experts is 257, expected at most 256");
  expect_refusal(&S::num_routes, 33,
                 "num_experts_per_tok + n_shared_experts is 33, expected at most 32");
  expect_refusal(&S::vocab_size, (1 << 22) + 1, "vocab_size is 4194305, expected at most 4194304");
}

using CudaDeviceDeathTest = CudaDeviceTest;

TEST_F(CudaDeviceDeathTest, LoadChecksShapes) {
  const HostMatrix a(0, 2, 8), b(0, 2, 16);
  const Tensor blocks[] = {a.tensor, b.tensor};
  EXPECT_DEATH((void)device().LoadWeight(blocks, DType::kBFloat16), "in a weight of 8 columns");
  const HostMatrix gate(0, 8, 8);
  const HostFfn experts[] = {{gate.tensor, gate.tensor, a.tensor}};
  EXPECT_DEATH((void)device().LoadFfn(experts, DType::kBFloat16), "expert 0 differs in shape");
}

TEST_F(CudaDeviceTest, ReplaysAndCopiesKeepTheirOrder) {
  const Tensor table = Upload<int32_t>({1, 2, 3, 0}, DType::kInt32, {4});
  const Tensor ids = Upload<int32_t>({0}, DType::kInt32, {1});
  const auto step = [&] { ops().MapIds(ids, table, ids); };
  step();  // the first run may load the kernel, which cannot be recorded
  const std::unique_ptr<Graph> graph = device().Record(step).value();
  std::vector<int32_t> seen(40);
  for (int32_t i = 0; i < 40; ++i) {
    const int32_t id = i % 4;
    device().CopyFromHost(&id, ids);
    device().Replay(*graph);
    device().CopyToHost(ids, &seen[i]);
  }
  ASSERT_TRUE(device().Synchronize().ok());
  for (int32_t i = 0; i < 40; ++i) EXPECT_EQ(seen[i], (i + 1) % 4);
}

TEST_F(CudaDeviceTest, NothingIsAGraphToo) {
  const std::unique_ptr<Graph> graph = device().Record([] {}).value();
  device().Replay(*graph);
  EXPECT_TRUE(device().Synchronize().ok());
}

/// Sample() needs working memory.
class Sampling {
 public:
  Sampling(Device& device, int64_t num_rows)
      : logits_(device.Allocate(DType::kFloat32, {num_rows, 100}).value()),
        rows_(Bytes(device, num_rows * sizeof(SamplingRow))),
        history_(device.Allocate(DType::kInt32, {1, 4}).value()),
        out_(Bytes(device, num_rows * sizeof(SampledRow))) {
    const std::vector<SamplingRow> rows(num_rows);
    device.CopyFromHost(rows.data(), rows_);
  }

  void Run(Ops& ops) const {
    ops.Sample(logits_, {.rows = rows_, .history = history_, .biases = {}, .masks = {}}, out_);
  }

 private:
  static Tensor Bytes(Device& device, size_t count) {
    return device.Allocate(DType::kByte, {static_cast<int64_t>(count)}).value();
  }

  Tensor logits_, rows_, history_, out_;
};

TEST_F(CudaDeviceTest, WorkingMemoryOfTheOpsCountsAsUsed) {
  const Sampling small(device(), 2), large(device(), 16);
  const int64_t before = device().FreeBytes();
  large.Run(ops());
  const int64_t after = device().FreeBytes();
  EXPECT_LT(after, before);
  small.Run(ops());
  large.Run(ops());
  EXPECT_EQ(device().FreeBytes(), after);
  EXPECT_TRUE(device().Synchronize().ok());
}

TEST_F(CudaDeviceTest, WorkingMemoryThatIsNotThereFailsTheStep) {
  const Sampling sampling(device(), 16);
  ASSERT_TRUE(device().Allocate(DType::kByte, {device().FreeBytes() / 512 * 512}).ok());
  sampling.Run(ops());
  const absl::Status status = device().Synchronize();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the ops' working memory needs"));
}

TEST_F(CudaDeviceTest, GraphsKeepTheWorkingMemoryTheyWereRecordedWith) {
  const Sampling small(device(), 2), large(device(), 16);
  small.Run(ops());
  const std::unique_ptr<Graph> graph = device().Record([&] { small.Run(ops()); }).value();
  large.Run(ops());
  device().Replay(*graph);
  EXPECT_TRUE(device().Synchronize().ok());
}

TEST_F(CudaDeviceDeathTest, RecordingsHoldOpsOnly) {
  const Tensor tensor = device().Allocate(DType::kInt32, {1}).value();
  const Sampling sampling(device(), 2);
  const auto record = [this](const std::function<void()>& enqueue) {
    device().Record(enqueue).status().IgnoreError();
  };
  int32_t value = 0;
  EXPECT_DEATH(record([&] { device().CopyFromHost(&value, tensor); }), "inside a recording");
  EXPECT_DEATH(record([&] { device().CopyToHost(tensor, &value); }), "inside a recording");
  EXPECT_DEATH(record([&] { (void)device().Allocate(DType::kInt32, {1}); }), "inside a recording");
  EXPECT_DEATH(record([&] { (void)device().Synchronize(); }), "inside a recording");
  EXPECT_DEATH(record([&] { sampling.Run(ops()); }), "working memory of .* inside a recording");
}

TEST_F(CudaDeviceTest, RanksOfOneProcessDoNotMeet) {
  const auto run = [](int32_t rank) {
    const Backend backend = MakeCudaBackend({.memory_utilization = 0.2}).value();
    Device& device = *backend.device;
    const std::vector<int32_t> values = CountedFrom(rank * 1000, 100000);
    std::vector<int32_t> out(values.size());
    const Tensor tensor = device.Allocate(DType::kInt32, {std::ssize(values)}).value();
    for (int i = 0; i < 20; ++i) {
      device.CopyFromHost(values.data(), tensor);
      device.CopyToHost(tensor, out.data());
      ASSERT_TRUE(device.Synchronize().ok());
      ASSERT_EQ(out, values);
    }
  };
  std::thread other(run, 1);
  run(2);
  other.join();
}

TEST(CudaBackend, OptionsAreChecked) {
  const auto refusal = [](const CudaBackendOptions& options) {
    const absl::Status status = MakeCudaBackend(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(refusal({.ordinal = -1}), "ordinal is -1, must be 0 or more");
  for (double share : {0.0, -0.5, 1.5, std::nan("")}) {
    EXPECT_THAT(refusal({.memory_utilization = share}),
                MatchesRegex("memory_utilization is .*, must be above 0 and at most 1"));
  }
  EXPECT_EQ(refusal({.step_timeout = std::chrono::milliseconds(0)}),
            "step_timeout is 0 ms, must be above 0");
}

TEST(CudaBackend, DevicesThatAreNotThereAreUnavailable) {
  const absl::StatusOr<int> count = CountDevices();
  const absl::Status status = MakeCudaBackend({.ordinal = 1000}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  if (!count.ok()) {
    EXPECT_EQ(status, count.status());
    return;
  }
  EXPECT_GE(*count, 1);
  EXPECT_EQ(std::string(status.message()),
            fmt::format("there is no CUDA device 1000: this machine has {}", *count));
}

TEST(CudaBackend, TheShareOfMemoryIsKept) {
  const absl::StatusOr<Backend> whole = MakeCudaBackend({.memory_utilization = 0.5});
  if (absl::IsUnavailable(whole.status())) GTEST_SKIP() << whole.status();
  const Backend half = MakeCudaBackend({.memory_utilization = 0.25}).value();
  EXPECT_NEAR(static_cast<double>(whole->device->FreeBytes()),
              2 * static_cast<double>(half.device->FreeBytes()), 4);
  EXPECT_EQ(half.communicator->size(), 1);
  size_t free_bytes = 0, total_bytes = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  const Backend all = MakeCudaBackend({.memory_utilization = 1}).value();
  EXPECT_LE(static_cast<double>(all.device->FreeBytes()),
            static_cast<double>(free_bytes) - 0.02 * static_cast<double>(total_bytes))
      << "kernels and graphs need some";
}

}  // namespace
}  // namespace shoal::cuda
