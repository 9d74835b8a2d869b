#include "engine/execution/input_buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/cpu/cpu_backend.h"

namespace shoal {
namespace {

using testing::ElementsAre;

template <typename T>
std::vector<T> Read(Device& device, const Tensor& tensor) {
  std::vector<T> host(static_cast<size_t>(tensor.size_bytes()) / sizeof(T));
  device.CopyToHost(tensor, host.data());
  EXPECT_TRUE(device.Synchronize().ok());
  return host;
}

TEST(InputBuffer, BringsPartsOfAnyTypeToTheDevice) {
  const Backend backend = *MakeCpuBackend({.num_threads = 1});
  InputBuffer buffer = *InputBuffer::Create(4 * InputBuffer::PartBytes(1), backend.device.get());
  for (const int32_t first : {10, 20}) {  // the second time over the first
    buffer.Clear();
    const Tensor ids = buffer.Add(DType::kInt32, {3});
    const Tensor none = buffer.Add(DType::kInt32, {0, 7});
    const Tensor numbers = buffer.Add(DType::kByte, {2 * sizeof(double)});
    const Tensor table = buffer.Add(DType::kInt32, {2, 2});
    std::iota(buffer.Host<int32_t>(table).begin(), buffer.Host<int32_t>(table).end(), first);
    buffer.Host<double>(numbers)[0] = 0.5;
    buffer.Host<double>(numbers)[1] = -first;
    std::ranges::fill(buffer.Host<int32_t>(ids), first);
    EXPECT_TRUE(buffer.Host<int32_t>(none).empty());
    buffer.Upload();
    EXPECT_THAT(Read<int32_t>(*backend.device, ids), ElementsAre(first, first, first));
    EXPECT_THAT(Read<double>(*backend.device, numbers), ElementsAre(0.5, -first));
    EXPECT_THAT(Read<int32_t>(*backend.device, table),
                ElementsAre(first, first + 1, first + 2, first + 3));
  }
}

TEST(InputBuffer, PutsPartsOfTheSameShapesInTheSameAlignedPlaces) {
  const Backend backend = *MakeCpuBackend({.num_threads = 1});
  InputBuffer buffer = *InputBuffer::Create(2 * InputBuffer::PartBytes(1000), backend.device.get());
  const void* first = buffer.Add(DType::kByte, {257}).data;
  const void* second = buffer.Add(DType::kByte, {1}).data;
  EXPECT_EQ(reinterpret_cast<uintptr_t>(second) % 256, 0u);
  buffer.Clear();
  EXPECT_EQ(buffer.Add(DType::kByte, {257}).data, first);
  EXPECT_EQ(buffer.Add(DType::kByte, {1}).data, second);
}

}  // namespace
}  // namespace shoal
