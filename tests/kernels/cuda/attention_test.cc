// Attention at the lengths at which its kernels take turns.
#include "kernels/cuda/attention.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/kernels/cuda/kernel_fixture.h"

namespace shoal::cuda {
namespace {

using testing::Each;

constexpr uint16_t kUntouched = 0xc29a;  // -77

struct Shape {
  int num_heads = 1;
  int num_kv_heads = 1;
  int head_dim = 64;

  int64_t Width() const { return int64_t{num_heads + 2 * num_kv_heads} * head_dim; }
  int64_t OutWidth() const { return int64_t{num_heads} * head_dim; }
};

/// Tokens of a step: positions [begin, end) of a sequence.
struct Piece {
  int sequence = 0;
  int begin = 0;
  int end = 0;
};

struct Layout {
  int block_size = 16;
  int num_padding = 0;   // tokens after the last sequence
  int bounds_slack = 0;  // by how much the host's bounds are too high
};

/// A step in device memory, ready to run.
struct DeviceStep {
  AttentionArgs args;
  DeviceArray<int32_t> positions, starts, tables;
  DeviceArray<BFloat16> qkv, cache, out;

  void Run(void* workspace, cudaStream_t stream = nullptr) {
    args.positions = positions.data();
    args.cu_seqlens = starts.data();
    args.block_tables = tables.data();
    args.qkv = qkv.data();
    args.kv = cache.data();
    PagedAttention(args, workspace, out.data(), stream);
  }
};

class AttentionTest : public KernelTest {
 protected:
  /// Sequences of the given lengths, rotated already. As attention does not rotate, the values of
  /// keys and queries may be anything.
  void MakeSequences(const Shape& shape, const std::vector<int>& lengths) {
    shape_ = shape;
    counters_ = std::make_unique<DeviceArray<int32_t>>(AttentionCounterBytes(Args()) / 4, 0);
    workspace_ = std::make_unique<DeviceArray<uint8_t>>(AttentionWorkspaceBytes(Args()), 0xff);
    sequences_.clear();
    for (int length : lengths) sequences_.push_back(Random(length * shape.Width()));
  }

  AttentionArgs Args() const {
    return {.num_heads = shape_.num_heads,
            .num_kv_heads = shape_.num_kv_heads,
            .head_dim = shape_.head_dim,
            .counters = counters_ ? counters_->data() : nullptr};
  }

  BFloat16* Row(int sequence, int position) {
    return &sequences_[sequence][position * shape_.Width()];
  }
  int Length(int sequence) const {
    return static_cast<int>(sequences_[sequence].size() / shape_.Width());
  }

  /// One step over a cache that holds the pieces' sequences up to their ends, and NaN elsewhere.
  DeviceStep MakeStep(const std::vector<Piece>& pieces, const Layout& layout) {
    std::vector<int32_t> starts = {0}, positions;
    std::vector<BFloat16> qkv;
    AttentionArgs args = Args();
    args.block_size = layout.block_size;
    for (const Piece& piece : pieces) {
      for (int p = piece.begin; p < piece.end; ++p) {
        positions.push_back(p);
        qkv.insert(qkv.end(), Row(piece.sequence, p), Row(piece.sequence, p) + shape_.Width());
      }
      starts.push_back(static_cast<int32_t>(positions.size()));
      args.max_query_len = std::max<int64_t>(args.max_query_len, piece.end - piece.begin);
      args.max_context_len = std::max<int64_t>(args.max_context_len, piece.end);
    }
    args.max_blocks = (args.max_context_len + layout.block_size - 1) / layout.block_size;
    args.max_query_len += layout.bounds_slack;
    args.max_context_len += layout.bounds_slack;
    args.num_sequences = static_cast<int64_t>(pieces.size());
    positions.resize(positions.size() + layout.num_padding);
    qkv.resize(positions.size() * shape_.Width(), BFloat16(NAN));
    args.num_tokens = static_cast<int64_t>(positions.size());
    std::vector<int32_t> tables(pieces.size() * args.max_blocks);
    std::iota(tables.begin(), tables.end(), 0);
    std::shuffle(tables.begin(), tables.end(), random_);
    const size_t out_size = positions.size() * shape_.OutWidth();
    return {.args = args,
            .positions{positions},
            .starts{starts},
            .tables{tables},
            .qkv{qkv},
            .cache{FillCache(pieces, tables, args)},
            .out{out_size, std::bit_cast<BFloat16>(kUntouched)}};
  }

  /// The result of each piece, bit by bit.
  std::vector<std::vector<uint16_t>> ResultsOf(const DeviceStep& step) {
    const std::vector<uint16_t> bits = Bits(step.out.Read());
    EXPECT_THAT(counters_->Read(), Each(0));
    const std::vector<int32_t> starts = step.starts.Read();
    std::vector<std::vector<uint16_t>> results;
    for (size_t i = 0; i + 1 < starts.size(); ++i) {
      results.emplace_back(bits.begin() + starts[i] * shape_.OutWidth(),
                           bits.begin() + starts[i + 1] * shape_.OutWidth());
    }
    EXPECT_THAT(std::vector(bits.begin() + starts.back() * shape_.OutWidth(), bits.end()),
                Each(kUntouched));
    return results;
  }

  std::vector<std::vector<uint16_t>> Attend(const std::vector<Piece>& pieces,
                                            const Layout& layout = {}) {
    DeviceStep step = MakeStep(pieces, layout);
    step.Run(workspace());
    return ResultsOf(step);
  }
  void* workspace() const { return workspace_->data(); }

  /// All of a sequence in one step.
  std::vector<uint16_t> Whole(int sequence) { return Attend({{sequence, 0, Length(sequence)}})[0]; }

  /// Attention over a sequence in double precision, rows [begin, end).
  std::vector<double> Reference(int sequence, int begin, int end) {
    const int d = shape_.head_dim, group = shape_.num_heads / shape_.num_kv_heads;
    std::vector<double> out((end - begin) * shape_.OutWidth());
    for (int t = begin; t < end; ++t) {
      for (int h = 0; h < shape_.num_heads; ++h) {
        const BFloat16* query = Row(sequence, t) + h * d;
        double* result = &out[((t - begin) * shape_.num_heads + h) * d];
        std::vector<double> scores(t + 1);
        for (int j = 0; j <= t; ++j) {
          const BFloat16* key = Row(sequence, j) + (shape_.num_heads + h / group) * d;
          for (int i = 0; i < d; ++i) scores[j] += double{float(query[i])} * float(key[i]);
          scores[j] /= std::sqrt(d);
        }
        const double highest = *std::max_element(scores.begin(), scores.end());
        double total = 0;
        for (int j = 0; j <= t; ++j) {
          const int64_t head = shape_.num_heads + shape_.num_kv_heads + h / group;
          const BFloat16* value = Row(sequence, j) + head * d;
          const double weight = std::exp(scores[j] - highest);
          total += weight;
          for (int i = 0; i < d; ++i) result[i] += weight * float(value[i]);
        }
        for (int i = 0; i < d; ++i) result[i] /= total;
      }
    }
    return out;
  }

  /// Weights are rounded, too, which shows where there are few; and the result alone errs by up to
  /// 1 / 257.
  static void ExpectNear(const std::vector<uint16_t>& bits, const std::vector<double>& expected,
                         double tolerance) {
    ASSERT_EQ(bits.size(), expected.size());
    for (size_t i = 0; i < bits.size(); ++i) {
      const double actual = std::bit_cast<float>(static_cast<uint32_t>(bits[i]) << 16);
      const double error = std::abs(actual - expected[i]);
      ASSERT_LE(error, std::max(std::abs(expected[i]), 1.0) * tolerance) << i;
    }
  }
  static constexpr double kFewKeys = 1.0 / 150;
  static constexpr double kManyKeys = 1.0 / 250;

  Shape shape_;
  std::vector<std::vector<BFloat16>> sequences_;  // [length, width of qkv]

 private:
  std::vector<BFloat16> FillCache(const std::vector<Piece>& pieces,
                                  const std::vector<int32_t>& tables, const AttentionArgs& args) {
    const int64_t d = shape_.head_dim, heads = int64_t{2} * shape_.num_kv_heads;
    std::vector<BFloat16> cache(tables.size() * heads * args.block_size * d, BFloat16(NAN));
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (pieces[i].begin == pieces[i].end) continue;
      for (int p = 0; p < pieces[i].end; ++p) {
        const int64_t block = tables[i * args.max_blocks + p / args.block_size];
        for (int64_t h = 0; h < heads; ++h) {
          std::copy_n(Row(pieces[i].sequence, p) + (shape_.num_heads + h) * d, d,
                      &cache[((block * heads + h) * args.block_size + p % args.block_size) * d]);
        }
      }
    }
    return cache;
  }

  std::unique_ptr<DeviceArray<int32_t>> counters_;
  std::unique_ptr<DeviceArray<uint8_t>> workspace_;
};

constexpr Shape kShapes[] = {{2, 2, 128}, {6, 1, 64}, {1, 1, 16},  {3, 1, 80},
                             {2, 1, 32},  {1, 1, 48}, {2, 1, 144}, {1, 1, 256}};

TEST_P(AttentionTest, LongContextsAgreeWithTheReference) {
  MakeSequences(kShapes[GetParam() % std::size(kShapes)], {600});
  for (int length : {1, 2, 63, 64, 65, 255, 256, 257, 511, 512, 513, 600}) {
    const double tolerance = length < 64 ? kFewKeys : kManyKeys;
    ExpectNear(Attend({{0, length - 1, length}})[0], Reference(0, length - 1, length), tolerance);
  }
  for (int begin : {0, 200, 470, 583}) {
    const int end = begin == 583 ? 600 : begin + 66;
    const double tolerance = begin == 0 ? kFewKeys : kManyKeys;
    ExpectNear(Attend({{0, begin, end}})[0], Reference(0, begin, end), tolerance);
  }
}

TEST_P(AttentionTest, ResultsAreTheSameInChunksOfAnySize) {
  MakeSequences(kShapes[GetParam() % std::size(kShapes)], {Between(2, 600)});
  const int length = Length(0);
  const std::vector<uint16_t> whole = Whole(0);
  for (int begin = 0; begin < length;) {
    const int most = Between(0, 1) == 0 ? 20 : 300;
    const int end = std::min(length, begin + Between(1, most));
    const Layout layout = {.block_size = 1 << Between(0, 5)};
    const auto part = whole.begin() + begin * shape_.OutWidth();
    ASSERT_EQ(Attend({{0, begin, end}}, layout)[0],
              std::vector(part, part + (end - begin) * shape_.OutWidth()))
        << begin << " to " << end << ", block size " << layout.block_size;
    begin = end;
  }
}

TEST_P(AttentionTest, ResultsAreTheSameForSingleTokensAroundEachBoundary) {
  MakeSequences({2, 1, 64}, {520});
  const std::vector<uint16_t> whole = Whole(0);
  for (int boundary : {16, 64, 256, 320, 512}) {
    for (int p : {boundary - 1, boundary, boundary + 1}) {
      const auto part = whole.begin() + p * shape_.OutWidth();
      EXPECT_EQ(Attend({{0, p, p + 1}})[0], std::vector(part, part + shape_.OutWidth())) << p;
    }
  }
}

// Any other order of summation would show: the values cancel out, and what is left is rounding.
TEST_P(AttentionTest, ResultsAreTheSameWhereOnlyRoundingIsLeft) {
  for (int length : {290, 520}) {
    MakeSequences({2, 1, 64}, {length});
    std::vector<int> partners(length / 2);
    std::iota(partners.begin(), partners.end(), length / 2);
    std::shuffle(partners.begin(), partners.end(), random_);
    for (int p = 0; p < length; ++p) std::copy_n(Row(0, 0) + 128, 64, Row(0, p) + 128);  // keys
    for (int p = 0; p < length / 2; ++p) {
      for (int i = 192; i < 256; ++i) {
        Row(0, p)[i] = BFloat16(std::ldexp(float(Row(0, p)[i]), Between(-9, 9)));
        Row(0, partners[p])[i] = BFloat16(-float(Row(0, p)[i]));
      }
    }
    const std::vector<uint16_t> whole = Whole(0);
    const std::vector<uint16_t> last(whole.end() - shape_.OutWidth(), whole.end());
    EXPECT_THAT(last, testing::Not(Each(0)));
    EXPECT_EQ(Attend({{0, length - 1, length}})[0], last) << length;
  }
}

TEST_P(AttentionTest, NeighboursAndPaddingChangeNothing) {
  const Shape shape = kShapes[GetParam() % 4];
  MakeSequences(shape, {Between(257, 400), Between(1, 64), 300, 17, Between(65, 260)});
  std::vector<Piece> pieces;
  for (int i = 0; i < 5; ++i) {
    const int begin = Between(0, Length(i) - 1);
    pieces.push_back({i, begin, Between(begin, Length(i))});  // maybe no tokens
  }
  pieces.push_back({0, Length(0) - 1, Length(0)});
  pieces.push_back({3, 0, 0});
  pieces.push_back({2, 0, 300});
  std::shuffle(pieces.begin(), pieces.end(), random_);
  const Layout layout = {.block_size = 8, .num_padding = Between(0, 70), .bounds_slack = 300};
  const auto together = Attend(pieces, layout);
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].begin == pieces[i].end) continue;
    EXPECT_EQ(together[i], Attend({pieces[i]})[0]) << i;
  }
}

TEST_P(AttentionTest, DraftsOfManyTokensAreSplitToo) {
  MakeSequences(kShapes[GetParam() % 4], {Between(513, 600), Between(16, 300)});
  const std::vector<uint16_t> whole[] = {Whole(0), Whole(1)};
  for (int count : {1, 2, 5, 16}) {
    const int begin = Length(0) - count;
    const auto part =
        Attend({{1, Length(1) - 1, Length(1)}, {0, begin, begin + count}, {1, 0, count}});
    EXPECT_THAT(part[1], testing::ElementsAreArray(whole[0].end() - count * shape_.OutWidth(),
                                                   whole[0].end()));
    EXPECT_THAT(part[0],
                testing::ElementsAreArray(whole[1].end() - shape_.OutWidth(), whole[1].end()));
    EXPECT_THAT(part[2], testing::ElementsAreArray(whole[1].begin(),
                                                   whole[1].begin() + count * shape_.OutWidth()));
  }
}

// Bounds so high that the partial sums of all sequences, or of one, would not fit into memory.
TEST_P(AttentionTest, BoundsMayBeFarTooHigh) {
  MakeSequences({1, 1, 16}, {270, 3, 300, 257, 1});
  const std::vector<Piece> pieces = {
      {0, 269, 270}, {1, 2, 3}, {2, 295, 300}, {3, 256, 257}, {4, 0, 1}};
  const auto exact = Attend(pieces);
  for (int slack : {11, 200000, 2000000}) {
    EXPECT_EQ(Attend(pieces, {.block_size = 32, .bounds_slack = slack}), exact) << slack;
  }
}

TEST_P(AttentionTest, ManySequencesTakeSeveralLaunches) {
  MakeSequences({8, 8, 16}, {1, 2, 260, 40});  // more work than blocks
  std::vector<Piece> pieces;
  for (int i = 0; i < 530; ++i) {
    const int sequence = Between(0, 3);
    pieces.push_back({sequence, Length(sequence) - Between(0, 1), Length(sequence)});
  }
  const auto together = Attend(pieces, {.num_padding = 3, .bounds_slack = 13});
  std::vector<std::vector<uint16_t>> alone;
  for (int i = 0; i < 4; ++i) alone.push_back(Attend({{i, Length(i) - 1, Length(i)}})[0]);
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].begin == pieces[i].end) continue;
    ASSERT_EQ(together[i], alone[pieces[i].sequence]) << i;
  }
}

TEST_P(AttentionTest, ScoresOfAnySizeKeepTheirMeaning) {
  for (float scale : {10.0f, 1e-3f}) {
    MakeSequences({1, 1, 64}, {300});
    for (BFloat16& value : sequences_[0]) value = BFloat16(float(value) * scale);
    for (int p = 0; p < 300; ++p) {  // values stay near 1
      for (int i = 128; i < 192; ++i) Row(0, p)[i] = BFloat16(float(Row(0, p)[i]) / scale);
    }
    ExpectNear(Whole(0), Reference(0, 0, 300), kFewKeys);
  }
}

TEST_P(AttentionTest, EqualValuesHaveAnExactMean) {
  MakeSequences({2, 1, 32}, {300});
  for (int p = 0; p < 300; ++p) std::fill_n(Row(0, p) + 96, 32, BFloat16(1.25f));
  EXPECT_THAT(Whole(0), Each(BFloat16(1.25f).bits));
  EXPECT_THAT(Attend({{0, 299, 300}})[0], Each(BFloat16(1.25f).bits));
}

TEST_P(AttentionTest, GraphsMayBeReplayed) {
  MakeSequences({2, 2, 32}, {Between(257, 600), Between(513, 600), 100});
  const std::vector<Piece> pieces = {
      {0, Length(0) - 1, Length(0)}, {1, Length(1) - 20, Length(1)}, {2, 97, 100}};
  const auto expected = Attend(pieces);
  DeviceStep step = MakeStep(pieces, {.block_size = 32});
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaStreamCreate(&stream);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  step.Run(workspace(), stream);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (int i = 0; i < 3; ++i) {
    cudaMemset(step.out.data(), 0xff, step.args.num_tokens * shape_.OutWidth() * 2);
    cudaDeviceSynchronize();
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    EXPECT_EQ(ResultsOf(step), expected) << i;
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_P(AttentionTest, NoTokensAreNothing) {
  MakeSequences({1, 1, 16}, {5});
  PagedAttention(Args(), nullptr, nullptr, nullptr);
  RopeAndWriteKv(Args(), nullptr, nullptr);
  EXPECT_TRUE(Attend({{0, 0, 0}, {0, 0, 5}, {0, 0, 0}})[0].empty());
}

#ifdef SHOAL_EMULATION_SEEDS
TEST_P(AttentionTest, TilesInSharedMemoryHaveNoBankConflicts) {
  MakeSequences(kShapes[GetParam() % std::size(kShapes)], {300});
  cuda_emulation::ResetCounters();
  Attend({{0, 0, 300}, {0, 299, 300}});
  EXPECT_EQ(cuda_emulation::ReadCounters().bank_conflicts, 0u);
}
#endif

/// Memory beyond what tests usually take.
class LargeCacheTest : public AttentionTest {
 protected:
  void SetUp() override {
#ifdef SHOAL_EMULATION_SEEDS
    cuda_emulation::SetDevices(1, size_t{8} << 30);
#endif
    AttentionTest::SetUp();
  }
  void TearDown() override {
    cudaFree(cache_);
#ifdef SHOAL_EMULATION_SEEDS
    cuda_emulation::SetDevices(1);
#endif
  }

  BFloat16* cache_ = nullptr;
};

TEST_P(LargeCacheTest, OffsetsPassTwoToThe31) {
  constexpr int64_t kBlockSize = 32, kNumBlocks = 20000, kLength = 70;
  const Shape shape = {16, 16, 128};
  const int64_t elements = kNumBlocks * 2 * shape.num_kv_heads * kBlockSize * shape.head_dim;
  ASSERT_GT(elements, int64_t{1} << 31);
  if (cudaMalloc(reinterpret_cast<void**>(&cache_), elements * 2) != cudaSuccess) {
    cudaGetLastError();
    GTEST_SKIP() << "not enough memory";
  }
  cudaMemset(cache_, 0xff, elements * 2);
  AttentionArgs args = {.num_heads = shape.num_heads,
                        .num_kv_heads = shape.num_kv_heads,
                        .head_dim = shape.head_dim,
                        .block_size = kBlockSize,
                        .num_tokens = kLength,
                        .num_sequences = 1,
                        .max_blocks = 3,
                        .max_query_len = kLength,
                        .max_context_len = kLength};
  std::vector<int32_t> positions(kLength), slots(kLength);
  std::iota(positions.begin(), positions.end(), 0);
  const DeviceArray<int32_t> counters(AttentionCounterBytes(args) / 4, 0),
      starts(std::vector<int32_t>{0, kLength}), device_positions(positions);
  const DeviceArray<uint8_t> workspace(AttentionWorkspaceBytes(args), 0xff);
  const DeviceArray<float> rope(RandomFloats(kLength * shape.head_dim));
  const std::vector<BFloat16> qkv = Random(kLength * shape.Width());
  args.positions = device_positions.data();
  args.cu_seqlens = starts.data();
  args.counters = counters.data();
  args.kv = cache_;
  std::vector<std::vector<uint16_t>> results;
  for (const std::vector<int32_t>& blocks :
       {std::vector<int32_t>{0, 1, 2}, {kNumBlocks - 1, kNumBlocks - 3, kNumBlocks / 2}}) {
    for (int p = 0; p < kLength; ++p) {
      slots[p] = blocks[p / kBlockSize] * kBlockSize + p % kBlockSize;
    }
    const DeviceArray<int32_t> tables(blocks), device_slots(slots);
    const DeviceArray<BFloat16> device_qkv(qkv), out(kLength * shape.OutWidth(), BFloat16(0));
    args.block_tables = tables.data();
    args.slot_mapping = device_slots.data();
    args.qkv = device_qkv.data();
    RopeAndWriteKv(args, rope.data(), nullptr);
    PagedAttention(args, workspace.data(), out.data(), nullptr);
    results.push_back(Bits(out.Read()));
  }
  EXPECT_EQ(results[0], results[1]);
}

INSTANTIATE_TEST_SUITE_P(Seeds, AttentionTest, KernelTest::Seeds());
INSTANTIATE_TEST_SUITE_P(Seeds, LargeCacheTest, testing::Values(1));

}  // namespace
}  // namespace shoal::cuda
