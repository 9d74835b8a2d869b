// The rotary embedding and the write to the KV cache.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "kernels/cuda/attention.h"
#include "tests/kernels/cuda/kernel_fixture.h"

namespace shoal::cuda {
namespace {

constexpr uint16_t kUntouched = 0xc29a;  // -77

class RopeTest : public KernelTest {};

TEST_P(RopeTest, WritesWhatItRotatesAndSkipsPadding) {
  for (int head_dim : {16, 48, 64, 80, 128, 256}) {
    constexpr int kHeads = 5, kKvHeads = 2, kBlockSize = 4, kSlots[] = {9, -1, 0, 23, -1};
    constexpr int kTokens = std::size(kSlots);
    const int64_t width = int64_t{kHeads + 2 * kKvHeads} * head_dim;
    const std::vector<BFloat16> plain = Random(kTokens * width);
    std::vector<float> table = RandomFloats(10 * head_dim);  // any numbers will do
    const DeviceArray<BFloat16> qkv(plain),
        cache(6 * 2 * kKvHeads * kBlockSize * head_dim, std::bit_cast<BFloat16>(kUntouched));
    const DeviceArray<float> device_table(table);
    const DeviceArray<int32_t> positions({3, 2, 9, 0, -5}),
        slots(std::vector<int32_t>(kSlots, kSlots + kTokens));
    RopeAndWriteKv({.num_heads = kHeads,
                    .num_kv_heads = kKvHeads,
                    .head_dim = head_dim,
                    .block_size = kBlockSize,
                    .num_tokens = kTokens,
                    .positions = positions.data(),
                    .slot_mapping = slots.data(),
                    .qkv = qkv.data(),
                    .kv = cache.data()},
                   device_table.data(), nullptr);
    const std::vector<BFloat16> rotated = qkv.Read(), written = cache.Read();
    const std::vector<int32_t> position = positions.Read();
    for (int t = 0; t < kTokens; ++t) {
      for (int64_t i = 0; i < width; ++i) {
        const int64_t head = i / head_dim, column = i % head_dim, half = head_dim / 2;
        const int64_t at = t * width + i;
        const bool is_value = head >= kHeads + kKvHeads;
        if (kSlots[t] < 0 || is_value) {
          ASSERT_EQ(rotated[at].bits, plain[at].bits);
        } else {
          const bool low = column < half;
          const float* angle = &table[position[t] * head_dim + column % half * 2];
          const float other = float(plain[at + (low ? half : -half)]) * (low ? -1 : 1);
          const float expected = float(plain[at]) * angle[0] + other * angle[1];
          ASSERT_NEAR(float(rotated[at]), expected, std::max(std::abs(expected), 0.1f) / 250);
        }
        if (kSlots[t] < 0 || head < kHeads) continue;
        const int64_t row = (kSlots[t] / kBlockSize * 2 * kKvHeads + head - kHeads) * kBlockSize +
                            kSlots[t] % kBlockSize;
        ASSERT_EQ(written[row * head_dim + column].bits, rotated[at].bits);
      }
    }
    const int64_t num_written = 3 * 2 * kKvHeads * head_dim;
    EXPECT_GE(std::count_if(written.begin(), written.end(),
                            [](BFloat16 value) { return value.bits == kUntouched; }),
              static_cast<int64_t>(written.size()) - num_written);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, RopeTest, KernelTest::Seeds());

}  // namespace
}  // namespace shoal::cuda
