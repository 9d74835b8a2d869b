// Rotary embedding and paged attention against naive loops in double precision, for any backend.
#pragma once

#include <algorithm>
#include <numeric>

#include "tests/kernels/ops_fixture.h"

namespace shoal {

class AttentionParity : public OpsParity {
 protected:
  /// A paged cache whose sequences lie in shuffled blocks.
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
    cache.kv = Zeros(dtype, {num_blocks, 2, shape.num_kv_heads, block_size, shape.head_dim});
    return cache;
  }

  AttentionMeta MakeMeta(const Cache& cache, const std::vector<Piece>& pieces) {
    std::vector<int32_t> positions, slots, starts = {0}, tables;
    for (const Piece& piece : pieces) {
      for (int64_t p = piece.begin; p < piece.end; ++p) {
        positions.push_back(static_cast<int32_t>(p));
        slots.push_back(cache.Slot(piece.sequence, p));
      }
      starts.push_back(static_cast<int32_t>(positions.size()));
      const auto table = cache.tables.begin() + piece.sequence * cache.max_blocks;
      tables.insert(tables.end(), table, table + cache.max_blocks);
    }
    const auto num_tokens = static_cast<int64_t>(positions.size());
    const auto num_pieces = static_cast<int64_t>(pieces.size());
    return {UploadInts(positions, {num_tokens}), UploadInts(slots, {num_tokens}),
            UploadInts(starts, {num_pieces + 1}),
            UploadInts(tables, {num_pieces, cache.max_blocks})};
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

  /// Runs both ops over the pieces, one step per inner list; the output of every token by its
  /// sequence and position. qkv: by sequence, [positions, width].
  std::vector<std::vector<float>> Attend(const std::vector<std::vector<float>>& qkv,
                                         const std::vector<std::vector<Piece>>& steps,
                                         int64_t block_size, const AttentionShape& shape,
                                         DType dtype) {
    const Cache cache = MakeCache(static_cast<int64_t>(qkv.size()), block_size, shape, dtype);
    const Tensor rope =
        Upload(RopeTable(shape.head_dim), DType::kFloat32, {kMaxPositions, shape.head_dim / 2, 2});
    const int64_t width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    const int64_t out_width = shape.num_heads * shape.head_dim;
    std::vector<std::vector<float>> out(qkv.size());
    for (size_t s = 0; s < qkv.size(); ++s) out[s].resize(qkv[s].size() / width * out_width);
    for (const std::vector<Piece>& step : steps) {
      std::vector<float> rows;
      for (const Piece& p : step) {
        const auto begin = qkv[p.sequence].begin();
        rows.insert(rows.end(), begin + p.begin * width, begin + p.end * width);
      }
      const auto num_tokens = static_cast<int64_t>(rows.size()) / width;
      const Tensor x = Upload(rows, dtype, {num_tokens, width});
      const Tensor result = Zeros(dtype, {num_tokens, out_width});
      const AttentionMeta meta = MakeMeta(cache, step);
      ops().RopeAndWriteKv(x, rope, meta, shape, cache.kv);
      ops().PagedAttention(x, cache.kv, meta, shape, result);
      std::vector<float> values = Download(result);
      auto from = values.begin();
      for (const Piece& p : step) {
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
          const double score = std::inner_product(q, q + d, k, 0.0) / std::sqrt(d);
          total += std::exp(score);
          for (int64_t i = 0; i < d; ++i) result[i] += std::exp(score) * v[i];
        }
        for (int64_t i = 0; i < d; ++i) result[i] /= total;
      }
    }
    return out;
  }

  std::vector<float> RandomSequence(int64_t length, const AttentionShape& shape, DType dtype) {
    const int64_t width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    return RandomValues(length * width, dtype);
  }
};

TEST_P(AttentionParity, AttendsCausallyPerSequence) {
  for (DType dtype : kStorageTypes) {
    for (const AttentionShape& shape : {AttentionShape{1, 1, 2}, AttentionShape{4, 2, 6},
                                        AttentionShape{6, 1, 80}, AttentionShape{2, 2, 128}}) {
      const std::vector<std::vector<float>> qkv = {RandomSequence(1, shape, dtype),
                                                   RandomSequence(131, shape, dtype),
                                                   RandomSequence(64, shape, dtype)};
      const auto out = Attend(qkv, {{{1, 0, 131}, {0, 0, 1}, {2, 0, 64}}}, 16, shape, dtype);
      for (size_t s = 0; s < qkv.size(); ++s) {
        // A rotated element may round to the other side.
        ExpectNear(out[s], Reference(qkv[s], shape, dtype),
                   dtype == DType::kBFloat16 ? 1.0 / 100 : 5e-6);
      }
    }
  }
}

TEST_P(AttentionParity, WritesRotatedKeysAndPlainValuesToTheirSlots) {
  const AttentionShape shape = {2, 1, 4};
  const Cache cache = MakeCache(1, 8, shape, DType::kFloat32);
  const Mirror qkv = Random(DType::kFloat32, {1, 16});
  const Tensor rope = Upload(RopeTable(4), DType::kFloat32, {kMaxPositions, 2, 2});
  const AttentionMeta meta = MakeMeta(cache, {{0, 21, 22}});
  ops().RopeAndWriteKv(qkv.device, rope, meta, shape, cache.kv);
  const std::vector<float> kv = Download(cache.kv), rotated = Download(qkv.device);
  const int64_t slot = cache.Slot(0, 21);
  const float* key = &kv[(slot / 8 * 2 * 8 + slot % 8) * 4];
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(key[i], rotated[8 + i]);
    EXPECT_EQ(key[8 * 4 + i], qkv.host[12 + i]);
  }
  const double angle = 21;
  EXPECT_NEAR(key[0], qkv.host[8] * std::cos(angle) - qkv.host[10] * std::sin(angle), 1e-5);
  EXPECT_NEAR(key[2], qkv.host[10] * std::cos(angle) + qkv.host[8] * std::sin(angle), 1e-5);
  EXPECT_EQ(std::count_if(kv.begin(), kv.end(), [](float v) { return v != 0; }), 8);
}

TEST_P(AttentionParity, ResultDependsOnNeitherBlockSizeNorChunksNorNeighbours) {
  for (DType dtype : kStorageTypes) {
    for (const AttentionShape& shape : {AttentionShape{4, 2, 10}, AttentionShape{2, 2, 64}}) {
      const std::vector<std::vector<float>> qkv = {RandomSequence(150, shape, dtype),
                                                   RandomSequence(70, shape, dtype)};
      const auto whole = Attend({qkv[0]}, {{{0, 0, 150}}}, 16, shape, dtype);
      const auto other = Attend({qkv[1]}, {{{0, 0, 70}}}, 16, shape, dtype);
      for (int64_t block_size : {1, 8, 16, 32}) {
        std::vector<std::vector<Piece>> steps = {{{0, 0, 5}, {1, 0, 33}},
                                                 {{1, 33, 34}, {0, 5, 67}}};
        for (int64_t p = 67; p < 80; ++p) steps.push_back({{0, p, p + 1}, {1, p - 33, p - 32}});
        steps.push_back({{1, 47, 70}, {0, 80, 150}});
        const auto out = Attend(qkv, steps, block_size, shape, dtype);
        EXPECT_EQ(out[0], whole[0]) << block_size;
        EXPECT_EQ(out[1], other[0]) << block_size;
      }
    }
  }
}

TEST_P(AttentionParity, EmptyBatchIsNothing) {
  const AttentionShape shape = {2, 1, 8};
  EXPECT_EQ(Attend({{}}, {{{0, 0, 0}}}, 16, shape, DType::kFloat32)[0].size(), 0u);
}

}  // namespace shoal
