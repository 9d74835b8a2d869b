// Safetensors files: memory-mapped reading of one or several shards, and writing.
// Format: 8 bytes little-endian header length, JSON header {name: {dtype, shape, data_offsets}}, data.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "kernels/tensor.h"

namespace shoal {

/// Name, dtype, shape and byte range [begin, end) in the data section of one tensor.
struct TensorInfo {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  int64_t begin = 0;
  int64_t end = 0;
};

/// Parses the header of a file of `file_bytes` bytes whose beginning is `bytes`. Every number is checked:
/// the header fits the file and is at most 100 MB, ranges are ordered, inside the file, without gap or
/// overlap, and match dtype and shape. INVALID_ARGUMENT names the tensor and both values.
absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(std::span<const std::byte> bytes,
                                                               int64_t file_bytes);

/// The tensors of a checkpoint directory: model.safetensors.index.json and its shards, or the single
/// model.safetensors. Files stay mapped for the life of the object. Thread: any, once opened.
class Checkpoint {
 public:
  /// NOT_FOUND names the missing file; INVALID_ARGUMENT the file and what is wrong with it.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);
  virtual ~Checkpoint() = default;

  /// A view into the mapped file; read only. NOT_FOUND if absent; INVALID_ARGUMENT, with both shapes, if
  /// its shape is not `shape`.
  virtual absl::StatusOr<Tensor> Get(std::string_view name, std::span<const int64_t> shape) const = 0;
  virtual bool Contains(std::string_view name) const = 0;
  virtual int64_t total_bytes() const = 0;
};

}  // namespace shoal
