// What becomes of a device that fails, hangs, or is not there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "tests/cuda_emulation/emulator.h"

namespace shoal::cuda {
namespace {

using testing::ExitedWithCode;
using testing::HasSubstr;

Backend MakeBackend(const CudaBackendOptions& options = {}) {
  return MakeCudaBackend(options).value();
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

/// A device with something to do.
class Work {
 public:
  explicit Work(Backend& backend)
      : backend_(backend),
        ids_(backend.device->Allocate(DType::kInt32, {3}).value()),
        table_(backend.device->Allocate(DType::kInt32, {1}).value()) {}

  /// One kernel.
  void Enqueue() { backend_.ops->MapIds(ids_, table_, ids_); }
  void Download(std::vector<int32_t>& out) { backend_.device->CopyToHost(ids_, out.data()); }

 private:
  Backend& backend_;
  Tensor ids_, table_;
};

class DeviceFailureTest : public testing::Test {
 protected:
  void TearDown() override { cuda_emulation::Recover(0); }
};

TEST_F(DeviceFailureTest, KernelThatFailsFailsTheWaitAndAllAfterIt) {
  Backend backend = MakeBackend();
  Device& device = *backend.device;
  Work work(backend);
  ASSERT_TRUE(device.Synchronize().ok());
  std::vector<int32_t> out = {-1, -1, -1};
  cuda_emulation::FailNextKernel(0, cudaErrorIllegalAddress);
  work.Enqueue();
  work.Download(out);
  const absl::Status failure = device.Synchronize();
  EXPECT_EQ(failure.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(failure), HasSubstr("CUDA device 0 failed: cudaErrorIllegalAddress"));
  EXPECT_EQ(out, (std::vector<int32_t>{-1, -1, -1}));

  cuda_emulation::Recover(0);
  work.Enqueue();
  work.Download(out);
  EXPECT_EQ(device.Synchronize(), failure) << "once failed, always failed";
  EXPECT_EQ(device.Allocate(DType::kByte, {1}).status(), failure);
  const float value = 1;
  const Tensor host(const_cast<float*>(&value), DType::kFloat32, {1});
  EXPECT_EQ(device.LoadTensor(host, DType::kBFloat16).status(), failure);
  EXPECT_EQ(device.Record([&] { work.Enqueue(); }).status(), failure);
  EXPECT_EQ(out, (std::vector<int32_t>{-1, -1, -1}));
}

TEST_F(DeviceFailureTest, LaunchThatIsRefusedFailsTheWaitAndIsNamed) {
  Backend backend = MakeBackend();
  Work work(backend);
  cuda_emulation::RefuseNextLaunch(0, cudaErrorLaunchOutOfResources);
  work.Enqueue();
  const absl::Status failure = backend.device->Synchronize();
  EXPECT_EQ(failure.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(failure), HasSubstr("cudaErrorLaunchOutOfResources"));
  EXPECT_THAT(Message(failure), HasSubstr("in MapIds"));
}

TEST_F(DeviceFailureTest, DeviceThatRunsNoKernelIsNoBackend) {
  cuda_emulation::RefuseNextLaunch(0, cudaErrorInvalidDeviceFunction);
  const absl::Status status = MakeCudaBackend({}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(status), HasSubstr("cudaErrorInvalidDeviceFunction"));
  EXPECT_TRUE(MakeCudaBackend({}).ok());
}

TEST_F(DeviceFailureTest, RecordingThatFailsIsAnError) {
  Backend backend = MakeBackend();
  Work work(backend);
  cuda_emulation::RefuseNextLaunch(0, cudaErrorLaunchOutOfResources);
  const absl::StatusOr<std::unique_ptr<Graph>> graph =
      backend.device->Record([&] { work.Enqueue(); });
  EXPECT_EQ(graph.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(Message(graph.status()), HasSubstr("in MapIds"));
}

TEST_F(DeviceFailureTest, FailureOfOneBackendIsNotThatOfTheNext) {
  {
    Backend backend = MakeBackend();
    Work work(backend);
    cuda_emulation::FailNextKernel(0, cudaErrorLaunchFailure);
    work.Enqueue();
    ASSERT_FALSE(backend.device->Synchronize().ok());
    cuda_emulation::Recover(0);
  }
  Backend backend = MakeBackend();
  Work work(backend);
  work.Enqueue();
  EXPECT_TRUE(backend.device->Synchronize().ok());
}

/// Memory of a device that hangs is never given back, so each of these has a process of its own.
class HungDeviceDeathTest : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }

  static constexpr CudaBackendOptions kOptions = {.step_timeout = std::chrono::milliseconds(50)};

  /// Ends the process, well if the status is what it should be. Nobody looks for what was not given
  /// back.
  [[noreturn]] static void Exit(const absl::Status& status) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    std::_Exit(absl::IsInternal(status) ? 0 : 1);
  }
};

TEST_F(HungDeviceDeathTest, WaitsForAStepAndNoLonger) {
  const auto hang = [] {
    Backend backend = MakeBackend(kOptions);
    Device& device = *backend.device;
    Work work(backend);
    if (!device.Synchronize().ok()) std::exit(2);
    cuda_emulation::Hang(0);
    work.Enqueue();
    const absl::Status failure = device.Synchronize();
    cuda_emulation::Recover(0);
    // It is of no use after that.
    if (device.Synchronize() != failure) std::exit(3);
    if (device.Allocate(DType::kByte, {1}).status() != failure) std::exit(4);
    Exit(failure);
  };
  EXPECT_EXIT(hang(), ExitedWithCode(0), "did not finish a step within 0.05 s");
}

TEST_F(HungDeviceDeathTest, RingThatDoesNotEmptyIsNoticed) {
  const auto hang = [] {
    Backend backend = MakeBackend(kOptions);
    Device& device = *backend.device;
    const Tensor tensor = device.Allocate(DType::kByte, {int64_t{20} << 20}).value();
    const std::vector<char> bytes(tensor.size_bytes());
    cuda_emulation::Hang(0);
    device.CopyFromHost(bytes.data(), tensor);
    Exit(device.Synchronize());
  };
  EXPECT_EXIT(hang(), ExitedWithCode(0), "did not finish a step within 0.05 s");
}

TEST_F(HungDeviceDeathTest, DestructionDoesNotHang) {
  const auto hang = [](bool notice) {
    absl::Status failure = absl::InternalError("nobody waited");
    {
      Backend backend = MakeBackend(kOptions);
      Work work(backend);
      const std::unique_ptr<Graph> graph = backend.device->Record([&] { work.Enqueue(); }).value();
      cuda_emulation::Hang(0);
      backend.device->Replay(*graph);
      if (notice) failure = backend.device->Synchronize();
    }
    Exit(failure);
  };
  EXPECT_EXIT(hang(true), ExitedWithCode(0), "did not finish a step within 0.05 s");
  EXPECT_EXIT(hang(false), ExitedWithCode(0), "nobody waited");
}

/// The machine has its one device again after each.
class MachineTest : public testing::Test {
 protected:
  void TearDown() override { cuda_emulation::SetDevices(1); }
};

TEST_F(MachineTest, NoDeviceIsUnavailable) {
  cuda_emulation::SetDevices(0);
  EXPECT_EQ(CountDevices().status(), absl::UnavailableError("this machine has no CUDA device"));
  EXPECT_EQ(MakeCudaBackend({}).status(), CountDevices().status());
}

TEST_F(MachineTest, DevicesAreCountedAndChosenByNumber) {
  cuda_emulation::SetDevices(2);
  EXPECT_EQ(CountDevices().value(), 2);
  EXPECT_EQ(MakeCudaBackend({.ordinal = 2}).status(),
            absl::UnavailableError("there is no CUDA device 2: this machine has 2"));
  Backend second = MakeBackend({.ordinal = 1});
  Work work(second);
  cuda_emulation::FailNextKernel(1, cudaErrorAssert);
  work.Enqueue();
  EXPECT_THAT(Message(second.device->Synchronize()), HasSubstr("CUDA device 1 failed"));
  cuda_emulation::Recover(1);
}

TEST_F(MachineTest, TensorsTakeNoMoreThanTheirShare) {
  constexpr int64_t kBytes = int64_t{64} << 20;
  cuda_emulation::SetDevices(1, kBytes);
  const Backend half = MakeBackend({.memory_utilization = 0.5});
  EXPECT_EQ(half.device->FreeBytes(), kBytes / 2);
  ASSERT_TRUE(half.device->Allocate(DType::kByte, {kBytes / 2}).ok());
  EXPECT_EQ(half.device->FreeBytes(), 0);
  EXPECT_TRUE(absl::IsResourceExhausted(half.device->Allocate(DType::kByte, {1}).status()));
  // What others have taken before cannot be taken any more.
  const Backend rest = MakeBackend({.memory_utilization = 1});
  EXPECT_LE(rest.device->FreeBytes(), kBytes / 2);
}

TEST_F(MachineTest, MemoryThatTheDeviceRefusesIsExhaustedAndNoFailure) {
  constexpr int64_t kBytes = int64_t{64} << 20;
  cuda_emulation::SetDevices(1, kBytes);
  const Backend first = MakeBackend(), second = MakeBackend();
  ASSERT_TRUE(first.device->Allocate(DType::kByte, {kBytes / 2 + 1}).ok());
  const absl::Status status = second.device->Allocate(DType::kByte, {kBytes / 2}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr(fmt::format("the device refused {} bytes", kBytes / 2)));
  EXPECT_TRUE(second.device->Allocate(DType::kByte, {kBytes / 4}).ok());
  EXPECT_TRUE(second.device->Synchronize().ok());
}

}  // namespace
}  // namespace shoal::cuda
