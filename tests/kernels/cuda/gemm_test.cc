// Matrix products and feed-forward networks by every tile, on the device or under the emulator.
#include "kernels/cuda/gemm.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/plan.h"
#ifdef SHOAL_EMULATION_SEEDS
#include "tests/cuda_emulation/emulator.h"
#endif

namespace shoal::cuda {
namespace {

/// Values in device memory. They end where the allocation does.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : size_(values.size()) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), std::max<size_t>(size_, 1) * sizeof(T)),
              cudaSuccess);
    cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice);
  }
  DeviceArray(size_t size, T value) : DeviceArray(std::vector<T>(size, value)) {}
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost);
    return values;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
};

std::vector<uint16_t> Bits(const std::vector<BFloat16>& values) {
  std::vector<uint16_t> bits;
  for (BFloat16 value : values) bits.push_back(value.bits);
  return bits;
}

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

/// The parameter is the emulator's seed.
class GemmTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no device";
#ifdef SHOAL_EMULATION_SEEDS
    cuda_emulation::Seed(GetParam());
#endif
    random_.seed(GetParam());
  }

  std::vector<BFloat16> Random(int64_t count, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<BFloat16> values(count);
    for (BFloat16& value : values) value = BFloat16(normal(random_));
    return values;
  }

  std::vector<int32_t> RandomIds(int64_t count, int begin, int end) {
    std::vector<int32_t> ids(count);
    for (int32_t& id : ids) id = std::uniform_int_distribution(begin, end - 1)(random_);
    return ids;
  }

  std::mt19937 random_;
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
  ffn.ids = RandomIds(61 * 3, 6, 20);
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
  ffn.ids = RandomIds(300, -1, 6);
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

struct PlanResult {
  std::vector<int32_t> offsets, tile_offsets, row_tokens, row_pairs;
};

PlanResult RunPlan(const std::vector<int32_t>& ids, PlanArgs args) {
  const auto size = static_cast<int64_t>(ids.size());
  const DeviceArray<int32_t> expert_ids(ids), offsets(args.num_experts + 1, -1),
      tile_offsets(args.num_experts + 1, -1), row_tokens(size, -1), row_pairs(size, -1),
      counts(PlanCounts(args.num_experts, size), -1);
  args.expert_ids = expert_ids.data();
  args.num_rows = static_cast<int>(size);
  args.offsets = offsets.data();
  args.tile_offsets = tile_offsets.data();
  args.row_tokens = row_tokens.data();
  args.row_pairs = row_pairs.data();
  args.counts = counts.data();
  EnqueuePlan(args, nullptr);
  return {offsets.Read(), tile_offsets.Read(), row_tokens.Read(), row_pairs.Read()};
}

PlanResult ExpectedPlan(const std::vector<int32_t>& ids, const PlanArgs& args) {
  PlanResult expected;
  int tiles = 0;
  for (int e = 0; e < args.num_experts; ++e) {
    const auto begin = static_cast<int>(expected.row_pairs.size());
    expected.offsets.push_back(begin);
    expected.tile_offsets.push_back(tiles);
    for (int i = 0; i < std::ssize(ids); ++i) {
      if (ids[i] - args.first_expert != e) continue;
      expected.row_pairs.push_back(i);
      expected.row_tokens.push_back(i / args.num_routes);
    }
    const auto end = static_cast<int>(expected.row_pairs.size());
    tiles += (end - begin + args.tile_rows - 1) / args.tile_rows;
  }
  expected.offsets.push_back(static_cast<int>(expected.row_pairs.size()));
  expected.tile_offsets.push_back(tiles);
  expected.row_pairs.resize(ids.size(), -1);
  expected.row_tokens.resize(ids.size(), -1);
  return expected;
}

TEST_P(GemmTest, PlanIsAStableSort) {
  struct Case {
    int num_experts, num_routes, num_tokens, first_expert, tile_rows;
  };
  for (const Case& c : std::vector<Case>{{1, 1, 1, 0, 8},
                                         {66, 8, 1, 0, 16},
                                         {66, 8, 64, 0, 16},
                                         {33, 6, 500, 31, 32},
                                         {64, 8, 512, 0, 8},
                                         {10, 16, 257, 50, 128},
                                         {512, 3, 7000, 3, 64}}) {
    const std::vector<int32_t> ids =
        RandomIds(int64_t{c.num_tokens} * c.num_routes, -2, c.first_expert + c.num_experts + 3);
    PlanArgs args;
    args.first_expert = c.first_expert;
    args.num_experts = c.num_experts;
    args.num_routes = c.num_routes;
    args.tile_rows = c.tile_rows;
    const PlanResult actual = RunPlan(ids, args), expected = ExpectedPlan(ids, args);
    ASSERT_EQ(actual.offsets, expected.offsets);
    ASSERT_EQ(actual.tile_offsets, expected.tile_offsets);
    ASSERT_EQ(actual.row_tokens, expected.row_tokens);
    ASSERT_EQ(actual.row_pairs, expected.row_pairs);

    RowGroups groups;
    groups.num_groups = c.num_experts;
    groups.num_rows = static_cast<int>(ids.size());
    groups.offsets = expected.offsets.data();
    const Tile tile = {.outputs = 16, .rows = c.tile_rows};
    EXPECT_GE(MaxTiles(groups, 16, tile), expected.tile_offsets.back());
  }
}

/// A skewed routing: all rows of one expert, all of none.
TEST_P(GemmTest, PlanOfOneExpertAndOfNone) {
  PlanArgs args;
  args.num_experts = 40;
  args.num_routes = 2;
  args.tile_rows = 8;
  for (int32_t id : {39, 40, -1}) {
    const std::vector<int32_t> ids(5000, id);
    const PlanResult actual = RunPlan(ids, args), expected = ExpectedPlan(ids, args);
    ASSERT_EQ(actual.tile_offsets, expected.tile_offsets);
    ASSERT_EQ(actual.row_pairs, expected.row_pairs);
  }
}

#ifdef SHOAL_EMULATION_SEEDS
TEST_P(FfnTest, NoBankConflicts) {
  FfnCase ffn = RandomCase({2, 136, 72}, 40, 1);
  ffn.ids = RandomIds(40, 0, 2);
  cuda_emulation::ResetCounters();
  for (const Cut& cut : AllCuts()) ffn.Run(0, ffn.num_tokens, &cut);
  EXPECT_GT(cuda_emulation::ReadCounters().launches, 0u);
  EXPECT_EQ(cuda_emulation::ReadCounters().bank_conflicts, 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, GemmTest, testing::Range(1, SHOAL_EMULATION_SEEDS + 1));
INSTANTIATE_TEST_SUITE_P(Seeds, FfnTest, testing::Range(1, SHOAL_EMULATION_SEEDS + 1));
#else
INSTANTIATE_TEST_SUITE_P(Device, GemmTest, testing::Values(1));
INSTANTIATE_TEST_SUITE_P(Device, FfnTest, testing::Values(1));
#endif

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
