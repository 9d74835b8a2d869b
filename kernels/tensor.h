// Tensor: a non-owning view of dense row-major memory on a device. Knows no model.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>

#include "kernels/bfloat16.h"
#include "kernels/status.h"

namespace shoal {

// Dimensions, as shapes in this code name them:
//   num_tokens      rows of one step, all sequences together
//   num_sequences   sequences of one step
//   hidden_size     width of the residual stream
//   num_heads, num_kv_heads, head_dim   attention
//   width           inner width of one feed-forward expert
//   top_k           routed experts per token
//   num_blocks, block_size              paged KV cache: blocks, tokens per block

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16, kInt32, kByte };

/// Bytes of one element.
constexpr int64_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
    case DType::kByte:
      return 1;
  }
  return 0;
}

/// "float32", "bfloat16", ...: the names of PyTorch and of Hugging Face's config.json.
constexpr std::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kInt32:
      return "int32";
    case DType::kByte:
      return "byte";
  }
  return "?";
}

/// A view of `shape[0] x ... x shape[rank-1]` elements, contiguous and row-major, in memory that
/// somebody else owns. Copying copies the view. Thread: any; the memory has its owner's rules.
struct Tensor {
  static constexpr int kMaxRank = 5;

  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape = {};

  Tensor() = default;
  Tensor(void* data, DType dtype, std::span<const int64_t> dims) : data(data), dtype(dtype) {
    SHOAL_CHECK(dims.size() <= kMaxRank, "a tensor has at most {} dimensions", kMaxRank);
    for (int64_t dim : dims) shape[rank++] = dim;
  }
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> dims)
      : Tensor(data, dtype, std::span(dims.begin(), dims.size())) {}

  bool empty() const { return data == nullptr; }
  int64_t num_elements() const {
    int64_t count = 1;
    for (int i = 0; i < rank; ++i) count *= shape[i];
    return count;
  }
  int64_t size_bytes() const { return num_elements() * SizeOf(dtype); }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  /// Rows [begin, begin + count) of the first dimension.
  Tensor Rows(int64_t begin, int64_t count) const {
    SHOAL_CHECK(rank > 0 && begin >= 0 && count >= 0 && begin + count <= shape[0],
                "rows [{}, {}) of {}", begin, begin + count, shape[0]);
    Tensor rows = *this;
    rows.shape[0] = count;
    const int64_t row_elements = shape[0] == 0 ? 0 : num_elements() / shape[0];
    rows.data = static_cast<std::byte*>(data) + begin * row_elements * SizeOf(dtype);
    return rows;
  }
};

}  // namespace shoal
