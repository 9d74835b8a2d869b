// Ops that move data, and every op on no rows at all, for any backend.
#pragma once

#include <numeric>

#include "tests/kernels/ffn_parity.h"

namespace shoal {

TEST_P(OpsParity, MapIdsLooksUpEachElement) {
  const std::vector<int32_t> table = {40, 10, 30, 20};
  const std::vector<int32_t> ids = {3, 0, 1, 1, 2, 3};
  const Tensor out = Zeros(DType::kInt32, {2, 3});
  ops().MapIds(UploadInts(ids, {2, 3}), UploadInts(table, {4}), out);
  EXPECT_EQ(DownloadRaw<int32_t>(out), (std::vector<int32_t>{20, 40, 10, 10, 30, 20}));
  ops().MapIds(UploadInts({-1, 2, 0, -7, 3, -1}, {2, 3}), UploadInts(table, {4}), out);
  EXPECT_EQ(DownloadRaw<int32_t>(out), (std::vector<int32_t>{-1, 30, 40, -7, 20, -1}));
}

TEST_P(OpsParity, MapIdsOfManyElements) {
  constexpr int64_t kCount = 70000;
  std::vector<int32_t> table(64), ids(kCount), expected;
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>((7 * i) % 64);
  for (int32_t& id : ids) id = static_cast<int32_t>(random_() % 64);
  for (int32_t id : ids) expected.push_back(table[id]);
  const Tensor out = Zeros(DType::kInt32, {kCount});
  ops().MapIds(UploadInts(ids, {kCount}), UploadInts(table, {64}), out);
  EXPECT_EQ(DownloadRaw<int32_t>(out), expected);
}

TEST_P(OpsParity, CopyBlocksCopiesKeysAndValuesOfWholeBlocks) {
  constexpr int64_t kBlocks = 9, kHeads = 3, kBlockSize = 4;
  const int64_t head_dim = HeadDim(10), num_elements = 2 * kHeads * kBlockSize * head_dim;
  for (DType dtype : dtypes()) {
    const Mirror kv = Random(dtype, {kBlocks, 2, kHeads, kBlockSize, head_dim});
    // One source may have several targets.
    const std::vector<BlockCopy> copies = {{1, 8}, {5, 0}, {1, 2}, {6, 3}};
    const Tensor device_copies = Zeros(DType::kByte, {int64_t{4 * sizeof(BlockCopy)}});
    device().CopyFromHost(copies.data(), device_copies);
    ops().CopyBlocks(kv.device, device_copies);
    std::vector<float> expected = kv.host;
    for (const BlockCopy& copy : copies) {
      std::copy_n(kv.host.begin() + copy.source * num_elements, num_elements,
                  expected.begin() + copy.target * num_elements);
    }
    EXPECT_EQ(Download(kv.device), expected);
  }
}

TEST_P(OpsParity, ResolveTokensBringsTokensAndHistoryTogether) {
  const Tensor history = UploadInts({0, 1, 2, 10, -1, 12, 20, 21, -2}, {3, 3});
  const Tensor tokens = UploadInts({7, -1, -1, 8, -1, -5}, {6});
  ops().ResolveTokens(tokens, UploadInts({0, 0, 1, 2, 2, 1}, {6}),
                      UploadInts({2, 1, 1, 0, 2, 2}, {6}), history);
  EXPECT_EQ(DownloadRaw<int32_t>(tokens), (std::vector<int32_t>{7, 1, 0, 8, 0, 12}));
  EXPECT_EQ(DownloadRaw<int32_t>(history), (std::vector<int32_t>{0, 1, 7, 10, -1, 12, 8, 21, -2}));
}

TEST_P(OpsParity, ResolveTokensLeavesPaddingAlone) {
  const Tensor history = UploadInts({0, 1, 2, 3}, {2, 2});
  const Tensor tokens = UploadInts({-1, 7, -1, 8, -1}, {5});
  ops().ResolveTokens(tokens, UploadInts({1, 0, -1, -1, -1}, {5}), UploadInts({1, 0, 0, 1, 0}, {5}),
                      history);
  EXPECT_EQ(DownloadRaw<int32_t>(tokens), (std::vector<int32_t>{3, 7, -1, 8, -1}));
  EXPECT_EQ(DownloadRaw<int32_t>(history), (std::vector<int32_t>{7, 1, 2, 3}));
}

TEST_P(OpsParity, ResolveTokensSeesWhatWasRecorded) {
  const Tensor history = UploadInts({5, 6, -9}, {1, 3});
  const std::vector<SamplingRow> rows = {{.recorded = 1, .position = 2}};
  const Tensor device_rows = Zeros(DType::kByte, {int64_t{sizeof(SamplingRow)}});
  device().CopyFromHost(rows.data(), device_rows);
  ops().Sample(Upload({0, 3, 1}, DType::kFloat32, {1, 3}),
               {.rows = device_rows, .history = history, .biases = {}, .masks = {}},
               Zeros(DType::kByte, {int64_t{sizeof(SampledRow)}}));
  const Tensor tokens = UploadInts({-1}, {1});
  ops().ResolveTokens(tokens, UploadInts({0}, {1}), UploadInts({2}, {1}), history);
  EXPECT_EQ(DownloadRaw<int32_t>(tokens), std::vector<int32_t>{1});
}

/// A rank without tokens runs the forward pass all the same. Its tensors have no rows and may lack
/// memory.
class NoRows {
 public:
  explicit NoRows(Device& device, bool has_memory) : device_(device), has_memory_(has_memory) {}

  Tensor operator()(DType dtype, std::vector<int64_t> shape) const {
    shape.insert(shape.begin(), 0);
    if (!has_memory_) return {nullptr, dtype, shape};
    return device_.Allocate(dtype, std::span<const int64_t>(shape)).value();
  }

 private:
  Device& device_;
  const bool has_memory_;
};

TEST_P(FfnParity, EveryOpTakesNoRows) {
  constexpr int64_t kRoutes = 3, kVocab = 40;
  const DType dtype = dtypes().front();
  const int64_t hidden_size = Features(8);
  const AttentionShape shape = {2, 1, HeadDim(4)};
  const int64_t d = shape.head_dim;
  const FfnMirror ffn = RandomFfn(3, hidden_size, Features(8), dtype);
  const FfnMirror dense = RandomFfn(1, hidden_size, Features(8), dtype);
  const Weight weight =
      LoadWeight(RandomValues(kVocab * hidden_size, dtype), kVocab, hidden_size, dtype);
  const Norm norm = {Random(dtype, {hidden_size}).device, 1e-6f};
  const Router router = {.weight = weight, .renormalize = true, .num_shared = 1};
  const Mirror kv = Random(dtype, {3, 2, 1, 4, d});
  const Mirror rope = Random(DType::kFloat32, {5, d / 2, 2});
  const Tensor history = UploadInts({1, 2, 3, 4}, {2, 2});
  for (bool has_memory : {false, true}) {
    const NoRows none(device(), has_memory);
    const Tensor ids = none(DType::kInt32, {}), bytes = none(DType::kByte, {});
    const Tensor x = none(dtype, {hidden_size}), logits = none(DType::kFloat32, {kVocab});
    const Tensor rows = none(dtype, {kRoutes, hidden_size});
    const Routing routing = {none(DType::kInt32, {kRoutes}), none(DType::kFloat32, {kRoutes}), {}};
    ops().ResolveTokens(ids, ids, ids, history);
    ops().CopyBlocks(kv.device, bytes);
    ops().Embed(ids, weight, x);
    ops().AddRmsNorm({}, x, norm, x);
    ops().AddRmsNorm(x, x, norm, x);
    ops().Linear(x, weight, {}, logits);
    const AttentionMeta meta = {ids, ids, UploadInts({0}, {1}), none(DType::kInt32, {3}), 0, 0};
    const Tensor qkv = none(dtype, {4 * d});
    ops().RopeAndWriteKv(qkv, rope.device, meta, shape, kv.device);
    ops().PagedAttention(qkv, kv.device, meta, shape, none(dtype, {2 * d}));
    ops().DenseFfn(x, dense.device, x);
    ops().AddRmsNormRoute(x, x, norm, router, x, routing);
    ops().MapIds(routing.expert_ids, ids, routing.expert_ids);
    ops().ExpertFfn(x, routing.expert_ids, {ffn.device, 0}, rows);
    ops().Combine(rows, routing, x, norm, x);
    ops().GatherRows(x, ids, x);
    ops().Sample(logits, {.rows = bytes, .history = history, .biases = {}, .masks = {}}, bytes);
    EXPECT_TRUE(device().Synchronize().ok());
  }
  EXPECT_EQ(Download(kv.device), kv.host);
  EXPECT_EQ(DownloadRaw<int32_t>(history), (std::vector<int32_t>{1, 2, 3, 4}));
}

}  // namespace shoal
