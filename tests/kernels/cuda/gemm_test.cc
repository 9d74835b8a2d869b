// Matrix products and feed-forward networks by every tile, on the device or under the emulator.
#include "kernels/cuda/gemm.h"

#include <array>
#include <cmath>
#include <numeric>

#include "kernels/cuda/gemm_tile.h"
#include "tests/kernels/cuda/kernel_fixture.h"

namespace shoal::cuda {
namespace {

/// |actual - expected| <= tolerance * max(|expected|, 1), element by element.
void ExpectNear(const std::vector<BFloat16>& actual, const std::vector<double>& expected,
                double tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(static_cast<float>(actual[i]), expected[i],
                tolerance * std::max(std::abs(expected[i]), 1.0))
        << "element " << i;
  }
}

constexpr double kRounded = 1.0 / 250;  // once to bfloat16
constexpr float kUntouched = -77;

/// Every tile, with as many blocks as it wants, and with so few that each has many tiles.
std::vector<Cut> AllCuts() {
  std::vector<Cut> cuts;
  for (int tile = 0; tile < kNumTiles; ++tile) {
    if (SharedBytes(kTiles[tile]) > ThisMachine().block_shared_bytes) continue;
    for (int max_blocks : {1000, 3, 1}) cuts.push_back({tile, max_blocks});
  }
  return cuts;
}

class GemmTest : public KernelTest {
 protected:
  std::vector<int32_t> RandomIds(int64_t count, int first, int last) {
    std::vector<int32_t> ids(count);
    for (int32_t& id : ids) id = Between(first, last);
    return ids;
  }
};

/// A linear layer on both sides.
struct LinearCase {
  int64_t num_tokens, num_outputs, in_features;
  std::vector<BFloat16> x, weight, bias;

  std::vector<double> Expected() const {
    std::vector<double> out;
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t o = 0; o < num_outputs; ++o) {
        double sum = static_cast<float>(bias[o]);
        for (int64_t i = 0; i < in_features; ++i) {
          sum += double{static_cast<float>(x[t * in_features + i])} *
                 static_cast<float>(weight[o * in_features + i]);
        }
        out.push_back(sum);
      }
    }
    return out;
  }

  /// The first rows of it, as T, by a cut or by that of Linear()'s own choice.
  template <typename T>
  std::vector<T> Run(int64_t count, bool with_bias, const Cut* cut = nullptr) const {
    const DeviceArray<BFloat16> x_rows(std::vector(x.begin(), x.begin() + count * in_features));
    const DeviceArray<BFloat16> weights(weight), biases(bias);
    const DeviceArray<T> out(count * num_outputs, T(kUntouched));
    LinearArgs args;
    args.x = x_rows.data();
    args.weight = weights.data();
    if (with_bias) args.bias = biases.data();
    args.out = out.data();
    args.float_out = sizeof(T) == sizeof(float);
    args.num_tokens = count;
    args.in_features = in_features;
    args.num_outputs = num_outputs;
    if (cut == nullptr) {
      Linear(args, nullptr);
    } else {
      Linear(args, *cut, nullptr);
    }
    return out.Read();
  }
};

TEST_P(GemmTest, LinearIsTheSameInEveryTile) {
  for (const auto& [tokens, outputs, in_features] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 8}, {9, 77, 200}, {40, 130, 64}, {131, 260, 72}}) {
    const float scale = 1 / std::sqrt(static_cast<float>(in_features));
    const LinearCase linear = {tokens,
                               outputs,
                               in_features,
                               Random(tokens * in_features),
                               Random(outputs * in_features, scale),
                               Random(outputs)};
    const std::vector<BFloat16> first = linear.Run<BFloat16>(tokens, true);
    const std::vector<float> first_sums = linear.Run<float>(tokens, false);
    ExpectNear(first, linear.Expected(), kRounded);
    for (const Cut& cut : AllCuts()) {
      ASSERT_EQ(Bits(linear.Run<BFloat16>(tokens, true, &cut)), Bits(first))
          << cut.tile << " " << cut.max_blocks;
      ASSERT_EQ(linear.Run<float>(tokens, false, &cut), first_sums) << cut.tile;
    }
  }
}

TEST_P(GemmTest, LinearRowsDoNotDependOnTheirNumber) {
  constexpr int64_t kTokens = 300, kOutputs = 20, kIn = 136;
  const LinearCase linear = {
      kTokens, kOutputs, kIn, Random(kTokens * kIn), Random(kOutputs * kIn), Random(kOutputs)};
  const std::vector<float> all = linear.Run<float>(kTokens, true);
  for (int64_t count = 1; count < kTokens; count += count < 20 ? 1 : 31) {
    ASSERT_EQ(linear.Run<float>(count, true),
              std::vector(all.begin(), all.begin() + count * kOutputs));
  }
}

/// What is no number stays in its row, also where tiles are not full.
TEST_P(GemmTest, RowsDoNotMix) {
  constexpr int64_t kTokens = 21, kOutputs = 24, kIn = 40;
  LinearCase linear = {
      kTokens, kOutputs, kIn, Random(kTokens * kIn), Random(kOutputs * kIn), Random(kOutputs)};
  for (const Cut& cut : AllCuts()) {
    const std::vector<float> clean = linear.Run<float>(kTokens, true, &cut);
    LinearCase poisoned = linear;
    for (int64_t i = 0; i < kIn; ++i) poisoned.x[5 * kIn + i] = BFloat16(NAN);
    const std::vector<float> out = poisoned.Run<float>(kTokens, true, &cut);
    for (int64_t i = 0; i < kTokens * kOutputs; ++i) {
      if (i / kOutputs == 5) {
        ASSERT_TRUE(std::isnan(out[i]));
      } else {
        ASSERT_EQ(out[i], clean[i]);
      }
    }
  }
}

/// Experts on both sides.
struct FfnCase {
  FfnShape shape;
  int64_t num_tokens = 0, num_routes = 1;
  int first_expert = 0;
  std::vector<BFloat16> gate_up, down, x;
  std::vector<int32_t> ids;  // empty: dense

  /// Expert e applied to token t, in double precision, the hidden values rounded.
  std::vector<double> Apply(int64_t e, int64_t t) const {
    const int64_t n = shape.hidden_size;
    std::vector<double> out(n);
    const auto dot = [&](int64_t weight_row) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) {
        sum += double{static_cast<float>(x[t * n + i])} *
               static_cast<float>(gate_up[(e * 2 * shape.width + weight_row) * n + i]);
      }
      return sum;
    };
    for (int64_t f = 0; f < shape.width; ++f) {
      const int64_t gate_row = f / 8 * 16 + f % 8;
      const double gate = dot(gate_row), up = dot(gate_row + 8);
      const BFloat16 hidden(static_cast<float>(gate / (1 + std::exp(-gate)) * up));
      for (int64_t i = 0; i < n; ++i) {
        out[i] += double{static_cast<float>(hidden)} *
                  static_cast<float>(down[(e * n + i) * shape.width + f]);
      }
    }
    return out;
  }

  std::vector<double> Expected() const {
    std::vector<double> out;
    for (int64_t pair = 0; pair < num_tokens * num_routes; ++pair) {
      const int64_t e = ids.empty() ? 0 : int64_t{ids[pair]} - first_expert;
      const bool local = e >= 0 && e < shape.num_experts;
      const std::vector<double> row =
          local ? Apply(e, pair / num_routes) : std::vector<double>(shape.hidden_size, kUntouched);
      out.insert(out.end(), row.begin(), row.end());
    }
    return out;
  }

  /// Tokens [begin, begin + count), by a cut or by that of Ffn()'s own choice.
  std::vector<BFloat16> Run(int64_t begin, int64_t count, const Cut* cut = nullptr) const {
    const int64_t num_rows = count * num_routes, n = shape.hidden_size;
    const DeviceArray<BFloat16> gate_ups(gate_up), downs(down);
    const DeviceArray<BFloat16> tokens(
        std::vector(x.begin() + begin * n, x.begin() + (begin + count) * n));
    const DeviceArray<BFloat16> rows(num_rows * n, BFloat16(kUntouched));
    const DeviceArray<unsigned char> workspace(FfnWorkspaceBytes(shape, num_rows), 0xff);
    const DeviceArray<int32_t> expert_ids(
        ids.empty() ? ids
                    : std::vector(ids.begin() + begin * num_routes,
                                  ids.begin() + (begin + count) * num_routes));
    FfnArgs args;
    args.shape = shape;
    args.gate_up = gate_ups.data();
    args.down = downs.data();
    args.x = tokens.data();
    if (!ids.empty()) args.expert_ids = expert_ids.data();
    args.first_expert = first_expert;
    args.num_tokens = count;
    args.num_routes = num_routes;
    args.rows = rows.data();
    args.workspace = workspace.data();
    if (cut == nullptr) {
      Ffn(args, nullptr);
    } else {
      Ffn(args, *cut, nullptr);
    }
    return rows.Read();
  }
};

class FfnTest : public GemmTest {
 protected:
  FfnCase RandomCase(const FfnShape& shape, int64_t num_tokens, int64_t num_routes) {
    const float scale = 1 / std::sqrt(static_cast<float>(shape.hidden_size));
    const float down_scale = 1 / std::sqrt(static_cast<float>(shape.width));
    const int64_t matrix = shape.num_experts * shape.hidden_size * shape.width;
    FfnCase ffn;
    ffn.shape = shape;
    ffn.num_tokens = num_tokens;
    ffn.num_routes = num_routes;
    ffn.gate_up = Random(2 * matrix, scale);
    ffn.down = Random(matrix, down_scale);
    ffn.x = Random(num_tokens * shape.hidden_size);
    return ffn;
  }
};

/// Experts with no row, with one, with a tile's and with many; ids of no local expert.
TEST_P(FfnTest, ExpertsAreTheSameInEveryTile) {
  FfnCase ffn = RandomCase({6, 72, 88}, 61, 3);
  ffn.first_expert = 10;
  ffn.ids = RandomIds(61 * 3, 6, 19);
  for (int64_t i = 0; i < std::ssize(ffn.ids); ++i) {
    int32_t& id = ffn.ids[i];
    if (id == 10) id = -1;                     // none
    if (id == 11) id = 16;                     // one
    if (i % 3 == 2) id = i / 3 < 8 ? 12 : 13;  // eight and a few; many
  }
  ffn.ids[40] = 11;
  const std::vector<BFloat16> first = ffn.Run(0, ffn.num_tokens);
  ExpectNear(first, ffn.Expected(), 2 * kRounded);
  for (const Cut& cut : AllCuts()) {
    ASSERT_EQ(Bits(ffn.Run(0, ffn.num_tokens, &cut)), Bits(first))
        << cut.tile << " " << cut.max_blocks;
  }
}

/// A single token takes another way: its experts are not sorted.
TEST_P(FfnTest, OneTokenIsTheSameAsAmongOthers) {
  FfnCase ffn = RandomCase({9, 40, 24}, 12, 4);
  for (int64_t t = 0; t < ffn.num_tokens; ++t) {
    std::vector<int32_t> experts(12);
    std::iota(experts.begin(), experts.end(), -1);
    std::shuffle(experts.begin(), experts.end(), random_);
    ffn.ids.insert(ffn.ids.end(), experts.begin(), experts.begin() + ffn.num_routes);
  }
  const std::vector<BFloat16> all = ffn.Run(0, ffn.num_tokens);
  ExpectNear(all, ffn.Expected(), 2 * kRounded);
  const int64_t row = ffn.num_routes * ffn.shape.hidden_size;
  for (int64_t t = 0; t < ffn.num_tokens; ++t) {
    const std::vector<uint16_t> expected =
        Bits(std::vector(all.begin() + t * row, all.begin() + (t + 1) * row));
    ASSERT_EQ(Bits(ffn.Run(t, 1)), expected);
    for (const Cut& cut : AllCuts()) {
      if (t == 0) ASSERT_EQ(Bits(ffn.Run(t, 1, &cut)), expected);
    }
  }
}

TEST_P(FfnTest, ExpertRowsDoNotDependOnTheirNumber) {
  FfnCase ffn = RandomCase({5, 64, 24}, 150, 2);
  ffn.ids = RandomIds(300, -1, 5);
  const std::vector<BFloat16> all = ffn.Run(0, ffn.num_tokens);
  const int64_t row = ffn.num_routes * ffn.shape.hidden_size;
  for (int64_t count : {2, 3, 7, 20, 77, 149}) {
    const int64_t begin = (ffn.num_tokens - count) / 2;
    ASSERT_EQ(Bits(ffn.Run(begin, count)),
              Bits(std::vector(all.begin() + begin * row, all.begin() + (begin + count) * row)));
  }
}

/// The first layer of DeepSeekMoE 16B: a width that only the smaller tiles divide.
TEST_P(FfnTest, DenseOfWidth10944) {
  const FfnCase ffn = RandomCase({1, 32, 10944}, 3, 1);
  const std::vector<BFloat16> out = ffn.Run(0, 3);
  ExpectNear(out, ffn.Expected(), 2 * kRounded);
  const Cut largest = AllCuts().back();
  ASSERT_EQ(Bits(ffn.Run(0, 3, &largest)), Bits(out));
}

TEST_P(FfnTest, NoTokensEnqueueNothing) {
  Linear(LinearArgs{.in_features = 8, .num_outputs = 8}, nullptr);
  Ffn(FfnArgs{.shape = {4, 8, 8}, .num_routes = 2}, nullptr);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

#ifdef SHOAL_EMULATION_SEEDS
TEST_P(FfnTest, NoBankConflicts) {
  FfnCase ffn = RandomCase({2, 136, 72}, 40, 1);
  ffn.ids = RandomIds(40, 0, 1);
  cuda_emulation::ResetCounters();
  for (const Cut& cut : AllCuts()) ffn.Run(0, ffn.num_tokens, &cut);
  EXPECT_GT(cuda_emulation::ReadCounters().launches, 0u);
  EXPECT_EQ(cuda_emulation::ReadCounters().bank_conflicts, 0u);
}
#endif

INSTANTIATE_TEST_SUITE_P(Seeds, GemmTest, KernelTest::Seeds());
INSTANTIATE_TEST_SUITE_P(Seeds, FfnTest, KernelTest::Seeds());

// Offsets of a layer's experts, of a prefill's rows and of the head's logits pass 2^31.
static_assert(WeightOffset(511, 2815, 2816, 2048) == (int64_t{511} * 2816 + 2815) * 2048);
static_assert(WeightOffset(511, 2815, 2816, 2048) > int64_t{1} << 31);
static_assert(RowOffset((1 << 20) - 1, 10944) == ((int64_t{1} << 20) - 1) * 10944);
static_assert(RowOffset(65535, 102400) > int64_t{1} << 32);

constexpr Machine kH200 = {132, 228 << 10, 227 << 10};
constexpr Machine kAda = {142, 100 << 10, 99 << 10};

GemmArgs Shape(int num_groups, int num_rows, int num_outputs, int depth) {
  GemmArgs args;
  args.groups.num_groups = num_groups;
  args.groups.num_rows = num_rows;
  args.num_outputs = num_outputs;
  args.depth = depth;
  return args;
}

TEST(CutTest, FewRowsTakeSmallTilesAndManyTakeLargeOnes) {
  for (const Machine& machine : {kH200, kAda}) {
    int last = 0;
    for (int rows : {1, 8, 64, 512, 4096, 65536}) {
      const Cut cut = ChooseCut(Shape(1, rows, 6144, 2048), machine);
      EXPECT_LE(SharedBytes(kTiles[cut.tile]), machine.block_shared_bytes);
      EXPECT_GE(cut.tile, last) << rows;
      EXPECT_GE(cut.max_blocks, machine.multiprocessors);
      last = cut.tile;
    }
  }
  EXPECT_EQ(ChooseCut(Shape(1, 1, 2048, 2048), kH200).tile, 0);
  EXPECT_EQ(ChooseCut(Shape(66, 8192 * 8, 2816, 2048), kH200).tile, kNumTiles - 1);
}

/// So many bytes of weights on their way that device memory is busy: a multiprocessor of an H200
/// has 33 bytes per nanosecond of it, which take a microsecond.
TEST(CutTest, SmallTilesKeepTheMemoryBusy) {
  for (int tile = 0; tile < kNumTiles - 1; ++tile) {
    const Tile& t = kTiles[tile];
    const int blocks = std::min(t.blocks, kH200.shared_bytes / (SharedBytes(t) + 1024));
    EXPECT_EQ(blocks, t.blocks);
    EXPECT_GE(blocks * (t.stages - 2) * t.outputs * kStageDepth * 2, 64 << 10);
  }
}

}  // namespace
}  // namespace shoal::cuda
