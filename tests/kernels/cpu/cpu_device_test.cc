#include "kernels/cpu/cpu_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <sstream>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/machine.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::unique_ptr<CpuDevice> MakeDevice(int64_t limit_bytes = int64_t{1} << 30) {
  return std::make_unique<CpuDevice>(std::make_shared<ThreadPool>(2), limit_bytes,
                                     std::make_shared<UsedBytes>(0));
}

TEST(CpuDevice, MemoryIsZeroedAndAligned) {
  const auto device = MakeDevice();
  for (int64_t count : {0, 1, 1000, 3 << 20}) {
    const Tensor tensor = device->Allocate(DType::kFloat32, {count, 1}).value();
    ASSERT_FALSE(tensor.empty());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data) % 256, 0u);
    const float* values = tensor.as<float>();
    EXPECT_TRUE(std::all_of(values, values + count, [](float v) { return v == 0; }));
  }
}

TEST(CpuDevice, RefusesWhatIsOverTheLimit) {
  const auto device = MakeDevice(1 << 20);
  EXPECT_EQ(device->FreeBytes(), 1 << 20);
  ASSERT_TRUE(device->Allocate(DType::kByte, {1 << 19}).ok());
  EXPECT_EQ(device->FreeBytes(), 1 << 19);
  const absl::Status status = device->Allocate(DType::kBFloat16, {2, 1 << 18}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("1048576 bytes, 524288 of 1048576 are left"));
  EXPECT_EQ(device->FreeBytes(), 1 << 19);
  const int64_t huge = int64_t{1} << 40;
  EXPECT_EQ(device->Allocate(DType::kFloat32, {huge, huge}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(CpuDevice, LoadTensorConverts) {
  const auto device = MakeDevice();
  std::vector<float> values(100000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 0.37f * static_cast<float>(i) - 1000;
  const Tensor host(values.data(), DType::kFloat32, {100, 1000});
  const Tensor narrow = device->LoadTensor(host, DType::kBFloat16).value();
  const Tensor wide = device->LoadTensor(narrow, DType::kFloat32).value();
  EXPECT_EQ(wide.rank, 2);
  EXPECT_EQ(wide.shape[1], 1000);
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(narrow.as<BFloat16>()[i].bits, BFloat16(values[i]).bits);
    ASSERT_EQ(wide.as<float>()[i], static_cast<float>(BFloat16(values[i])));
  }
}

TEST(CpuDevice, LoadTensorReadsHalfPrecision) {
  const auto device = MakeDevice();
  uint16_t halves[] = {0x3c00, 0xc000, 0x0001, 0x3555};
  const Tensor host(halves, DType::kFloat16, {4});
  const Tensor tensor = device->LoadTensor(host, DType::kFloat32).value();
  EXPECT_EQ(tensor.as<float>()[0], 1);
  EXPECT_EQ(tensor.as<float>()[1], -2);
  EXPECT_EQ(tensor.as<float>()[2], 0x1p-24f);
  EXPECT_NEAR(tensor.as<float>()[3], 1.0 / 3, 1e-4);
}

TEST(CpuDevice, LoadWeightStacksRowBlocks) {
  const auto device = MakeDevice();
  std::vector<float> values(15);
  std::iota(values.begin(), values.end(), 0.0f);
  const Tensor blocks[] = {Tensor(values.data(), DType::kFloat32, {2, 3}),
                           Tensor(values.data() + 6, DType::kFloat32, {3, 3})};
  const Weight weight = device->LoadWeight(blocks, DType::kFloat32).value();
  EXPECT_EQ(weight.out_features, 5);
  EXPECT_EQ(weight.in_features, 3);
  EXPECT_EQ(std::memcmp(weight.data, values.data(), 15 * sizeof(float)), 0);
}

TEST(CpuDeviceDeathTest, LoadChecksShapes) {
  const auto device = MakeDevice();
  std::vector<float> values(24);
  const Tensor a(values.data(), DType::kFloat32, {2, 3}), b(values.data(), DType::kFloat32, {2, 4});
  const Tensor blocks[] = {a, b};
  EXPECT_DEATH((void)device->LoadWeight(blocks, DType::kFloat32), "in a weight of 3 columns");
  const HostFfn experts[] = {{a, a, b}};
  EXPECT_DEATH((void)device->LoadFfn(experts, DType::kFloat32), "expert 0 differs in shape");
}

TEST(CpuDevice, CopiesBothWays) {
  const auto device = MakeDevice();
  const Tensor tensor = device->Allocate(DType::kInt32, {3}).value();
  const int32_t in[] = {1, -2, 3};
  int32_t out[3] = {};
  device->CopyFromHost(in, tensor);
  device->CopyToHost(tensor, out);
  ASSERT_TRUE(device->Synchronize().ok());
  EXPECT_EQ(std::memcmp(in, out, sizeof(in)), 0);
}

TEST(CpuBackend, WorkingMemoryOfTheOpsCountsAsUsed) {
  const Backend backend = MakeCpuBackend({.num_threads = 1, .memory_limit_bytes = 1 << 20}).value();
  const Tensor x = backend.device->Allocate(DType::kBFloat16, {64, 64}).value();
  const Tensor out = backend.device->Allocate(DType::kBFloat16, {64, 64}).value();
  std::vector<float> values(64 * 64);
  const Tensor host[] = {Tensor(values.data(), DType::kFloat32, {64, 64})};
  const Weight weight = backend.device->LoadWeight(host, DType::kBFloat16).value();
  const int64_t before = backend.device->FreeBytes();
  backend.ops->Linear(x, weight, {}, out);
  const int64_t after = backend.device->FreeBytes();
  EXPECT_LE(after, before - 64 * 64 * 4) << "the rows as float32";
  backend.ops->Linear(x, weight, {}, out);
  EXPECT_EQ(backend.device->FreeBytes(), after);
}

TEST(CpuBackend, SamplingTakesAllItsWorkingMemoryAtTheFirstRow) {
  const Backend backend = MakeCpuBackend({.num_threads = 2, .memory_limit_bytes = 1 << 20}).value();
  Device& device = *backend.device;
  const Tensor logits = device.Allocate(DType::kFloat32, {8, 1000}).value();
  const Tensor rows = device.Allocate(DType::kByte, {8 * int64_t{sizeof(SamplingRow)}}).value();
  const Tensor out = device.Allocate(DType::kByte, {8 * int64_t{sizeof(SampledRow)}}).value();
  const SamplingInputs inputs = {.rows = rows,
                                 .history = device.Allocate(DType::kInt32, {1, 4}).value(),
                                 .biases = {},
                                 .masks = device.Allocate(DType::kInt32, {1, 32}).value()};
  const auto sample = [&](const SamplingRow& row) {
    const std::vector<SamplingRow> all(8, row);
    device.CopyFromHost(all.data(), rows);
    backend.ops->Sample(logits, inputs, out);
    return device.FreeBytes();
  };
  const int64_t before = device.FreeBytes(), after = sample({});
  EXPECT_LT(after, before);
  EXPECT_EQ(sample({.temperature = 1, .typical_p = 0.5f, .presence_penalty = 1, .position = 4}),
            after);
  EXPECT_EQ(sample({.temperature = 1, .mask = 0}), after);
}

TEST(CgroupFolders, WalksUpFromTheLeafOfTheRightHierarchy) {
  const auto folders = [](const std::string& memberships, const std::string& controller) {
    std::istringstream lines(memberships);
    return CgroupFolders(lines, controller);
  };
  const std::string v1 = "7:cpuset:/s\n6:cpuacct,cpu:/a:x/b\n5:memory:/\n0::/two\n";
  EXPECT_THAT(folders(v1, "cpu"), ElementsAre("/sys/fs/cgroup/cpu/a:x/b", "/sys/fs/cgroup/cpu/a:x",
                                              "/sys/fs/cgroup/cpu"));
  EXPECT_THAT(folders(v1, "memory"), ElementsAre("/sys/fs/cgroup/memory"));
  EXPECT_THAT(folders("0::/user/one\n", "cpu"),
              ElementsAre("/sys/fs/cgroup/user/one", "/sys/fs/cgroup/user", "/sys/fs/cgroup"));
  EXPECT_THAT(folders("", "cpu"), ElementsAre("/sys/fs/cgroup"));
}

TEST(CpuBackend, OptionsAreChecked) {
  for (int num_threads : {-1, 100000}) {
    const absl::Status status = MakeCpuBackend({.num_threads = num_threads}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("num_threads"));
  }
  const absl::Status status = MakeCpuBackend({.memory_limit_bytes = -1}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("memory_limit_bytes"));
}

TEST(CpuBackend, DefaultsComeFromTheMachine) {
  const Backend backend = MakeCpuBackend({}).value();
  EXPECT_EQ(backend.communicator->size(), 1);
  EXPECT_GT(backend.device->FreeBytes(), 0);
  EXPECT_GE(AvailableCores(), 1);
  EXPECT_LE(AvailableCores(), static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace shoal
