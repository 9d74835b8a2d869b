// Rotary embedding and paged attention against naive loops in double precision, for any backend.
#pragma once

#include <algorithm>
#include <numeric>

#include "tests/kernels/ops_fixture.h"

namespace shoal {

class AttentionParity : public OpsParity {
 protected:
  /// A paged cache whose sequences lie in shuffled blocks. What is not written yet is NaN.
  struct Cache {
    int64_t block_size = 0;
    int64_t max_blocks = 0;  // per sequence
    std::vector<int32_t> tables;
    Tensor kv;

    int32_t Slot(int64_t sequence, int64_t position) const {
      const int32_t block = tables[sequence * max_blocks + position / block_size];
      return static_cast<int32_t>(block * block_size + position % block_size);
    }
  };

  /// Tokens of a step: positions [begin, end) of a sequence.
  struct Piece {
    int64_t sequence = 0;
    int64_t begin = 0;
    int64_t end = 0;
  };

  /// One step. Empty pieces are sequences without tokens.
  struct Step {
    std::vector<Piece> pieces;
    int64_t num_padding = 0;   // tokens after those of the pieces
    int64_t bounds_slack = 0;  // by which the bounds are larger than need be
  };

  static constexpr int64_t kMaxPositions = 300;

  Cache MakeCache(int64_t num_sequences, int64_t block_size, const AttentionShape& shape,
                  DType dtype) {
    Cache cache;
    cache.block_size = block_size;
    cache.max_blocks = (kMaxPositions - 1) / block_size + 1;
    cache.tables.resize(num_sequences * cache.max_blocks);
    std::iota(cache.tables.begin(), cache.tables.end(), 1);  // block 0 stays unused
    std::shuffle(cache.tables.begin(), cache.tables.end(), random_);
    const auto num_blocks = static_cast<int64_t>(cache.tables.size()) + 1;
    const int64_t num_elements = num_blocks * 2 * shape.num_kv_heads * block_size * shape.head_dim;
    cache.kv = Upload(std::vector<float>(num_elements, NAN), dtype,
                      {num_blocks, 2, shape.num_kv_heads, block_size, shape.head_dim});
    return cache;
  }

  AttentionMeta MakeMeta(const Cache& cache, const Step& step) {
    std::vector<int32_t> positions, slots, starts = {0}, tables;
    int64_t max_query_len = step.bounds_slack, max_context_len = step.bounds_slack;
    for (const Piece& piece : step.pieces) {
      for (int64_t p = piece.begin; p < piece.end; ++p) {
        positions.push_back(static_cast<int32_t>(p));
        slots.push_back(cache.Slot(piece.sequence, p));
      }
      starts.push_back(static_cast<int32_t>(positions.size()));
      const auto table = cache.tables.begin() + piece.sequence * cache.max_blocks;
      tables.insert(tables.end(), table, table + (piece.end - 1) / cache.block_size + 1);
      tables.resize(cache.max_blocks * (std::ssize(starts) - 1));  // blocks past the sequence's: 0
      max_query_len = std::max(max_query_len, piece.end - piece.begin + step.bounds_slack);
      max_context_len = std::max(max_context_len, piece.end + step.bounds_slack);
    }
    positions.resize(positions.size() + step.num_padding, 0);
    slots.resize(positions.size(), -1);
    const auto num_tokens = static_cast<int64_t>(positions.size());
    const auto num_pieces = static_cast<int64_t>(step.pieces.size());
    return {.positions = UploadInts(positions, {num_tokens}),
            .slot_mapping = UploadInts(slots, {num_tokens}),
            .cu_seqlens = UploadInts(starts, {num_pieces + 1}),
            .block_tables = UploadInts(tables, {num_pieces, cache.max_blocks}),
            .max_query_len = max_query_len,
            .max_context_len = max_context_len};
  }

  std::vector<float> RopeTable(int64_t head_dim) {
    std::vector<float> table;
    for (int64_t p = 0; p < kMaxPositions; ++p) {
      for (int64_t i = 0; i < head_dim / 2; ++i) {
        const double angle = static_cast<double>(p) * std::pow(10000.0, -2.0 * i / head_dim);
        table.push_back(static_cast<float>(std::cos(angle)));
        table.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    return table;
  }

  /// Runs both ops, step by step; the output of every token by its sequence and position. qkv: by
  /// sequence, [positions, width].
  std::vector<std::vector<float>> Attend(const std::vector<std::vector<float>>& qkv,
                                         const std::vector<Step>& steps, int64_t block_size,
                                         const AttentionShape& shape, DType dtype) {
    const Cache cache = MakeCache(static_cast<int64_t>(qkv.size()), block_size, shape, dtype);
    const Tensor rope =
        Upload(RopeTable(shape.head_dim), DType::kFloat32, {kMaxPositions, shape.head_dim / 2, 2});
    const int64_t width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    const int64_t out_width = shape.num_heads * shape.head_dim;
    std::vector<std::vector<float>> out(qkv.size());
    for (size_t s = 0; s < qkv.size(); ++s) out[s].resize(qkv[s].size() / width * out_width);
    for (const Step& step : steps) {
      std::vector<float> rows;
      for (const Piece& p : step.pieces) {
        const auto begin = qkv[p.sequence].begin();
        rows.insert(rows.end(), begin + p.begin * width, begin + p.end * width);
      }
      rows.resize(rows.size() + step.num_padding * width, NAN);
      const auto num_tokens = static_cast<int64_t>(rows.size()) / width;
      const Tensor x = Upload(rows, dtype, {num_tokens, width});
      const Tensor result = Zeros(dtype, {num_tokens, out_width});
      const AttentionMeta meta = MakeMeta(cache, step);
      ops().RopeAndWriteKv(x, rope, meta, shape, cache.kv);
      ops().PagedAttention(x, cache.kv, meta, shape, result);
      std::vector<float> values = Download(result);
      auto from = values.begin();
      for (const Piece& p : step.pieces) {
        const int64_t count = (p.end - p.begin) * out_width;
        std::copy_n(from, count, out[p.sequence].begin() + p.begin * out_width);
        from += count;
      }
    }
    return out;
  }

  /// The same for one sequence, in double precision; queries and keys are rounded after rotation.
  std::vector<double> Reference(const std::vector<float>& qkv, const AttentionShape& shape,
                                DType dtype) {
    const int64_t d = shape.head_dim, group = shape.num_heads / shape.num_kv_heads;
    const int64_t width = (shape.num_heads + 2 * shape.num_kv_heads) * d;
    const auto length = static_cast<int64_t>(qkv.size()) / width;
    std::vector<float> x = qkv;
    const std::vector<float> table = RopeTable(d);
    for (int64_t t = 0; t < length; ++t) {
      for (int64_t h = 0; h < shape.num_heads + shape.num_kv_heads; ++h) {
        float* head = &x[t * width + h * d];
        for (int64_t i = 0; i < d / 2; ++i) {
          const double c = table[(t * d / 2 + i) * 2], s = table[(t * d / 2 + i) * 2 + 1];
          const double a = head[i], b = head[i + d / 2];
          head[i] = Rounded(static_cast<float>(a * c - b * s), dtype);
          head[i + d / 2] = Rounded(static_cast<float>(b * c + a * s), dtype);
        }
      }
    }
    std::vector<double> out(length * shape.num_heads * d);
    for (int64_t t = 0; t < length; ++t) {
      for (int64_t h = 0; h < shape.num_heads; ++h) {
        const float* q = &x[t * width + h * d];
        double* result = &out[(t * shape.num_heads + h) * d];
        double total = 0;
        for (int64_t j = 0; j <= t; ++j) {
          const float* k = &x[j * width + (shape.num_heads + h / group) * d];
          const float* v = k + shape.num_kv_heads * d;
          const double weight = std::exp(std::inner_product(q, q + d, k, 0.0) / std::sqrt(d));
          total += weight;
          for (int64_t i = 0; i < d; ++i) result[i] += weight * v[i];
        }
        for (int64_t i = 0; i < d; ++i) result[i] /= total;
      }
    }
    return out;
  }

  /// A rotated element may round to the other side.
  static double AttentionTolerance(DType dtype) {
    return dtype == DType::kBFloat16 ? 1.0 / 100 : 5e-6;
  }

  std::vector<float> RandomSequence(int64_t length, const AttentionShape& shape, DType dtype) {
    const int64_t width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    return RandomValues(length * width, dtype);
  }
};

TEST_P(AttentionParity, AttendsCausallyPerSequence) {
  for (DType dtype : dtypes()) {
    for (const AttentionShape& shape :
         {AttentionShape{1, 1, HeadDim(2)}, AttentionShape{4, 2, HeadDim(6)},
          AttentionShape{6, 1, HeadDim(80)}, AttentionShape{2, 2, HeadDim(128)}}) {
      const std::vector<std::vector<float>> qkv = {RandomSequence(1, shape, dtype),
                                                   RandomSequence(131, shape, dtype),
                                                   RandomSequence(64, shape, dtype)};
      const auto out = Attend(qkv, {{{{1, 0, 131}, {0, 0, 1}, {2, 0, 64}}}}, 16, shape, dtype);
      for (size_t s = 0; s < qkv.size(); ++s) {
        ExpectNear(out[s], Reference(qkv[s], shape, dtype), AttentionTolerance(dtype));
      }
    }
  }
}

/// Lengths around the borders of blocks and of what kernels take at a time, the last token alone.
TEST_P(AttentionParity, AttendsAtTheBordersOfBlocks) {
  const AttentionShape shape = {2, 1, HeadDim(8)};
  for (DType dtype : dtypes()) {
    for (int64_t block_size : {16, 32}) {
      std::vector<std::vector<float>> qkv;
      Step prompts, decodes;
      for (int64_t length : {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 255, 256, 257}) {
        const auto sequence = static_cast<int64_t>(qkv.size());
        qkv.push_back(RandomSequence(length, shape, dtype));
        prompts.pieces.push_back({sequence, 0, length - 1});
        decodes.pieces.push_back({sequence, length - 1, length});
      }
      const auto out = Attend(qkv, {prompts, decodes}, block_size, shape, dtype);
      for (size_t s = 0; s < qkv.size(); ++s) {
        ExpectNear(out[s], Reference(qkv[s], shape, dtype), AttentionTolerance(dtype));
      }
    }
  }
}

TEST_P(AttentionParity, WritesRotatedKeysAndPlainValuesToTheirSlots) {
  constexpr int64_t kBlock = 8, kPosition = 21;
  const int64_t d = HeadDim(4), half = d / 2;
  const AttentionShape shape = {2, 1, static_cast<int>(d)};
  for (DType dtype : dtypes()) {
    const Cache cache = MakeCache(1, kBlock, shape, dtype);
    const Mirror qkv = Random(dtype, {3, 4 * d});
    const Tensor rope = Upload(RopeTable(d), DType::kFloat32, {kMaxPositions, half, 2});
    const AttentionMeta meta = MakeMeta(
        cache, {.pieces = {{0, kPosition, kPosition + 1}}, .num_padding = 2, .bounds_slack = 0});
    ops().RopeAndWriteKv(qkv.device, rope, meta, shape, cache.kv);
    const std::vector<float> kv = Download(cache.kv), rotated = Download(qkv.device);
    const int64_t slot = cache.Slot(0, kPosition);
    const float* key = &kv[(slot / kBlock * 2 * kBlock + slot % kBlock) * d];
    for (int64_t i = 0; i < d; ++i) {
      EXPECT_EQ(key[i], rotated[2 * d + i]);
      EXPECT_EQ(key[kBlock * d + i], qkv.host[3 * d + i]) << "the value";
    }
    const float* plain = &qkv.host[2 * d];
    const double cosine = std::cos(double{kPosition}), sine = std::sin(double{kPosition});
    const double tolerance = dtype == DType::kBFloat16 ? 0.02 : 1e-5;
    EXPECT_NEAR(key[0], plain[0] * cosine - plain[half] * sine, tolerance);
    EXPECT_NEAR(key[half], plain[half] * cosine + plain[0] * sine, tolerance);
    EXPECT_EQ(std::count_if(kv.begin(), kv.end(), [](float v) { return !std::isnan(v); }), 2 * d)
        << "padding goes nowhere";
  }
}

TEST_P(AttentionParity, ResultDependsOnNeitherBlockSizeNorChunksNorNeighbours) {
  for (DType dtype : dtypes()) {
    for (const AttentionShape& shape :
         {AttentionShape{4, 2, HeadDim(10)}, AttentionShape{2, 2, HeadDim(64)}}) {
      const std::vector<std::vector<float>> qkv = {RandomSequence(280, shape, dtype),
                                                   RandomSequence(70, shape, dtype)};
      const auto whole = Attend({qkv[0]}, {{{{0, 0, 280}}}}, 16, shape, dtype);
      const auto other = Attend({qkv[1]}, {{{{0, 0, 70}}}}, 16, shape, dtype);
      for (int64_t block_size : {1, 8, 16, 32}) {
        std::vector<Step> steps = {{{{0, 0, 5}, {1, 0, 33}}}, {{{1, 33, 34}, {0, 5, 67}}}};
        for (int64_t p = 67; p < 72; ++p) steps.push_back({{{0, p, p + 1}, {1, p - 33, p - 32}}});
        steps.push_back({{{1, 39, 70}, {0, 72, 254}}});
        for (int64_t p = 254; p < 259; ++p) steps.push_back({{{0, p, p + 1}}});
        steps.push_back({{{0, 259, 280}}});
        const auto out = Attend(qkv, steps, block_size, shape, dtype);
        EXPECT_EQ(out[0], whole[0]) << block_size;
        EXPECT_EQ(out[1], other[0]) << block_size;
      }
    }
  }
}

TEST_P(AttentionParity, PaddingAndLooseBoundsChangeNothing) {
  const AttentionShape shape = {4, 2, HeadDim(8)};
  for (DType dtype : dtypes()) {
    const std::vector<std::vector<float>> qkv = {RandomSequence(40, shape, dtype),
                                                 RandomSequence(18, shape, dtype)};
    const std::vector<Step> plain = {{{{0, 0, 39}, {1, 0, 17}}}, {{{0, 39, 40}, {1, 17, 18}}}};
    const auto expected = Attend(qkv, plain, 16, shape, dtype);
    const std::vector<Step> padded = {
        {.pieces = {{0, 0, 39}, {1, 0, 17}, {0, 0, 0}}, .num_padding = 8, .bounds_slack = 3},
        {.pieces = {{0, 39, 40}, {1, 0, 0}, {1, 17, 18}, {0, 0, 0}, {0, 0, 0}},
         .num_padding = 6,
         .bounds_slack = 250}};
    EXPECT_EQ(Attend(qkv, padded, 16, shape, dtype), expected);
  }
}

TEST_P(AttentionParity, KeepsPoisonInItsSequence) {
  const AttentionShape shape = {2, 2, HeadDim(8)};
  for (DType dtype : dtypes()) {
    std::vector<std::vector<float>> qkv = {RandomSequence(50, shape, dtype),
                                           RandomSequence(35, shape, dtype),
                                           RandomSequence(41, shape, dtype)};
    const std::vector<Step> steps = {{{{0, 0, 49}, {1, 0, 34}, {2, 0, 40}}},
                                     {{{0, 49, 50}, {1, 34, 35}, {2, 40, 41}}}};
    const auto clean = Attend(qkv, steps, 16, shape, dtype);
    std::fill(qkv[1].begin(), qkv[1].end(), NAN);
    const auto out = Attend(qkv, steps, 16, shape, dtype);
    EXPECT_EQ(out[0], clean[0]);
    EXPECT_EQ(out[2], clean[2]);
  }
}

TEST_P(AttentionParity, EmptyBatchIsNothing) {
  const AttentionShape shape = {2, 1, HeadDim(8)};
  for (DType dtype : dtypes()) {
    EXPECT_EQ(Attend({{}}, {{{{0, 0, 0}}}}, 16, shape, dtype)[0].size(), 0u);
  }
}

}  // namespace shoal
