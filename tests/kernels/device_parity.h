// What every Device promises: loads, copies in their order, and recorded work.
#pragma once

#include <algorithm>
#include <numeric>

#include "tests/kernels/ops_fixture.h"

namespace shoal {

class DeviceParity : public OpsParity {
 protected:
  /// 1, -2, 1/3 and 65504 as each type of a checkpoint.
  static constexpr float kValues[] = {1, -2, 0.333251953125f, 65504};
  static Tensor HostValues(DType dtype) {
    static float float32[] = {kValues[0], kValues[1], kValues[2], kValues[3]};
    static BFloat16 bfloat16[] = {BFloat16(kValues[0]), BFloat16(kValues[1]), BFloat16(kValues[2]),
                                  BFloat16(kValues[3])};
    static uint16_t float16[] = {0x3c00, 0xc000, 0x3555, 0x7bff};
    void* data = float32;
    if (dtype == DType::kBFloat16) data = bfloat16;
    if (dtype == DType::kFloat16) data = float16;
    return Tensor(data, dtype, {1, 4});
  }
  /// The same once they are stored as `dtype`.
  static std::vector<float> StoredValues(DType dtype) {
    std::vector<float> values(std::begin(kValues), std::end(kValues));
    for (float& value : values) value = Rounded(value, dtype);
    return values;
  }
};

TEST_P(DeviceParity, MemoryIsZeroedAndAligned) {
  for (int64_t count : {1, 1000, 3 << 20}) {
    const Tensor tensor = Zeros(DType::kInt32, {count});
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data) % 256, 0u);
    const auto values = DownloadRaw<int32_t>(tensor);
    EXPECT_EQ(std::count(values.begin(), values.end(), 0), count);
  }
}

TEST_P(DeviceParity, SaysWhatCannotBeAllocated) {
  EXPECT_GT(device().FreeBytes(), 0);
  const int64_t huge = int64_t{1} << 40;
  EXPECT_EQ(device().Allocate(DType::kFloat32, {huge, huge}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_P(DeviceParity, LoadsEveryTypeOfACheckpoint) {
  for (DType dtype : dtypes()) {
    for (DType from : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      const Tensor vector = device().LoadTensor(HostValues(from), dtype).value();
      EXPECT_EQ(vector.rank, 2);
      const bool is_wide = from == DType::kFloat32 || from == DType::kFloat16;
      EXPECT_EQ(Download(vector), StoredValues(is_wide ? dtype : DType::kBFloat16));
    }
  }
}

TEST_P(DeviceParity, LoadsBlocksOfRowsOneUnderTheOther) {
  const int64_t n = Features(4);
  for (DType dtype : dtypes()) {
    const std::vector<float> values = RandomValues(7 * n, dtype);
    const Tensor host(const_cast<float*>(values.data()), DType::kFloat32, {7, n});
    const Tensor blocks[] = {host.Rows(0, 2), host.Rows(2, 1), host.Rows(3, 4)};
    const Weight weight = device().LoadWeight(blocks, dtype).value();
    EXPECT_EQ(weight.out_features, 7);
    EXPECT_EQ(weight.in_features, n);
    const Tensor out = Zeros(dtype, {7, n});
    ops().Embed(UploadInts({0, 1, 2, 3, 4, 5, 6}, {7}), weight, out);
    EXPECT_EQ(Download(out), values);
  }
}

TEST_P(DeviceParity, HostMemoryMayChangeOnceItsCopyIsEnqueued) {
  std::vector<Tensor> tensors;
  const std::vector<int64_t> sizes = {1, 3, 1000, 1 << 20, 5, 70000, 1, 1 << 18, 64};
  for (int round = 0; round < 3; ++round) {
    for (int64_t size : sizes) {
      const auto number = static_cast<int32_t>(tensors.size());
      std::vector<int32_t> host(size);
      std::iota(host.begin(), host.end(), number);
      tensors.push_back(Zeros(DType::kInt32, {size}));
      device().CopyFromHost(host.data(), tensors.back());
      std::fill(host.begin(), host.end(), -1);
    }
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    std::vector<int32_t> expected(tensors[i].num_elements());
    std::iota(expected.begin(), expected.end(), static_cast<int32_t>(i));
    EXPECT_EQ(DownloadRaw<int32_t>(tensors[i]), expected) << i;
  }
}

TEST_P(DeviceParity, WaitsForWhatCameBeforeTheMark) {
  const Tensor table = UploadInts({4, 5, 6}, {3}), ids = UploadInts({2, 0}, {2});
  const Tensor out = Zeros(DType::kInt32, {2});
  std::vector<int32_t> first(2), second(2);
  ops().MapIds(ids, table, out);
  device().CopyToHost(out, first.data());
  const int64_t mark = device().Mark();
  device().CopyFromHost(std::vector<int32_t>{1, 1}.data(), ids);
  ops().MapIds(ids, table, out);
  device().CopyToHost(out, second.data());
  const int64_t last = device().Mark();
  EXPECT_TRUE(device().Wait(mark).ok());
  EXPECT_EQ(first, (std::vector<int32_t>{6, 4}));
  EXPECT_TRUE(device().Wait(last).ok());
  EXPECT_EQ(second, (std::vector<int32_t>{5, 5}));
  EXPECT_TRUE(device().Wait(mark).ok()) << "waiting again is nothing";
}

TEST_P(DeviceParity, RecordedWorkRunsAsOftenAsItIsReplayed) {
  const Tensor table = UploadInts({1, 2, 3, 0}, {4}), ids = UploadInts({0, 1}, {2});
  const Tensor between = Zeros(DType::kInt32, {2}), out = Zeros(DType::kInt32, {2});
  const auto enqueue = [&] {
    ops().MapIds(ids, table, between);
    ops().MapIds(between, table, out);
  };
  enqueue();  // the first run may load kernels, which cannot be recorded
  device().CopyFromHost(std::vector<int32_t>{1, 2}.data(), ids);
  const absl::StatusOr<std::unique_ptr<Graph>> graph = device().Record(enqueue);
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_EQ(DownloadRaw<int32_t>(out), (std::vector<int32_t>{2, 3})) << "it was only recorded";
  for (int32_t id = 0; id < 3; ++id) {
    device().CopyFromHost(std::vector<int32_t>{id, 3 - id}.data(), ids);
    *graph == nullptr ? enqueue() : device().Replay(**graph);
    EXPECT_EQ(DownloadRaw<int32_t>(out), (std::vector<int32_t>{(id + 2) % 4, (5 - id) % 4}));
  }
}

}  // namespace shoal
