#include "engine/execution/kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "kernels/cpu/cpu_backend.h"

namespace shoal {
namespace {

using testing::HasSubstr;

constexpr int64_t kTokenBytes = 10;
constexpr KvCacheConfig kConfig = {.block_size = 16, .max_model_len = 100, .max_num_seqs = 4};

TEST(KvCache, HoldsAllSequencesIfHalfOfTheMemoryIsEnough) {
  EXPECT_EQ(*ChooseNumBlocks(kConfig, 1, kTokenBytes, 1'000'000), 4 * 7);
}

TEST(KvCache, TakesAtMostHalfOfTheMemory) {
  EXPECT_EQ(*ChooseNumBlocks(kConfig, 1, kTokenBytes, 2 * 10 * 160 + 1), 10);
}

TEST(KvCache, TakesAllOfAnExclusiveDevice) {
  KvCacheConfig config = kConfig;
  config.exclusive_device = true;
  EXPECT_EQ(*ChooseNumBlocks(config, 1, kTokenBytes, 1'000 * 160 + 159), 1'000);
  EXPECT_EQ(*ChooseNumBlocks(config, 2, kTokenBytes, 1'000 * 160), 1'000) << "each has its device";
  const absl::Status status = ChooseNumBlocks(config, 1, kTokenBytes, 7 * 160 - 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1119 bytes are left on the device"));
  config.memory_bytes = 10 * 160;
  EXPECT_EQ(*ChooseNumBlocks(config, 1, kTokenBytes, 1'000 * 160), 10);
}

TEST(KvCache, TakesTheMemoryItIsGiven) {
  KvCacheConfig config = kConfig;
  config.memory_bytes = 1000 * 160 + 159;
  EXPECT_EQ(*ChooseNumBlocks(config, 1, kTokenBytes, 0), 1000);
}

TEST(KvCache, SharesMemoryAndSequencesOutAmongTheRanks) {
  EXPECT_EQ(*ChooseNumBlocks(kConfig, 2, kTokenBytes, 1'000'000), 2 * 7);
  EXPECT_EQ(*ChooseNumBlocks(kConfig, 3, kTokenBytes, 1'000'000), 2 * 7);
  EXPECT_EQ(*ChooseNumBlocks(kConfig, 8, kTokenBytes, 1'000'000), 7) << "one sequence at least";
  KvCacheConfig config = kConfig;
  config.memory_bytes = 1000 * 160;
  EXPECT_EQ(*ChooseNumBlocks(config, 8, kTokenBytes, 0), 125);
  config.memory_bytes = 8 * 7 * 160 - 1;
  EXPECT_EQ(ChooseNumBlocks(config, 8, kTokenBytes, 0).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(KvCache, SaysWhatToChangeIfOneSequenceDoesNotFit) {
  const absl::Status automatic = ChooseNumBlocks(kConfig, 1, kTokenBytes, 2 * 7 * 160 - 1).status();
  EXPECT_EQ(automatic.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(automatic.message()),
              testing::AllOf(HasSubstr("max_model_len 100 tokens needs 1120 bytes"),
                             HasSubstr("set kv_cache_memory_bytes")));
  KvCacheConfig config = kConfig;
  config.memory_bytes = 7 * 160 - 1;
  EXPECT_THAT(
      std::string(ChooseNumBlocks(config, 1, kTokenBytes, 1'000'000).status().message()),
      HasSubstr("1119 bytes are given: lower max_model_len or raise kv_cache_memory_bytes"));
  config.memory_bytes = 7 * 160;
  EXPECT_EQ(*ChooseNumBlocks(config, 1, kTokenBytes, 1'000'000), 7);
}

TEST(KvCache, KeepsSlotsWithinInt32) {
  KvCacheConfig config = kConfig;
  config.memory_bytes = std::numeric_limits<int64_t>::max() / 2;
  EXPECT_EQ(*ChooseNumBlocks(config, 1, kTokenBytes, 0), std::numeric_limits<int32_t>::max() / 16);
}

TEST(KvCache, HasOneTensorPerLayer) {
  const ModelConfig model = {.hidden_size = 64,
                             .num_hidden_layers = 3,
                             .num_attention_heads = 4,
                             .num_key_value_heads = 2};
  const auto backend = MakeCpuBackend({.num_threads = 1});
  ASSERT_TRUE(backend.ok());
  const auto cache = KvCache::Create(model, DType::kBFloat16, 8, 5, *backend->device);
  ASSERT_TRUE(cache.ok());
  EXPECT_EQ(cache->num_blocks(), 5);
  ASSERT_EQ(cache->layers().size(), 3u);
  int64_t bytes = 0;
  for (const Tensor& layer : cache->layers()) {
    EXPECT_EQ(layer.shape, (std::array<int64_t, 5>{5, 2, 2, 8, 16}));
    EXPECT_EQ(layer.dtype, DType::kBFloat16);
    bytes += layer.size_bytes();
  }
  EXPECT_EQ(bytes, 5 * 8 * KvBytesPerToken(model, DType::kBFloat16));
}

}  // namespace
}  // namespace shoal
