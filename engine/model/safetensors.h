// The safetensors file format: 8 bytes little-endian header length, JSON header
// {name: {dtype, shape, data_offsets}}, data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
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

  bool operator==(const TensorInfo&) const = default;
};

/// Parses the header of a file of `file_bytes` bytes whose beginning is `bytes`; the result is in
/// the order of the data. Every number is checked: the header fits the file and is at most 100 MB,
/// names are unique, ranges are ordered, inside the file, without gap or overlap, aligned to the
/// element, and match dtype (BF16, F16 or F32) and shape. INVALID_ARGUMENT names the tensor and
/// both values.
absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(std::span<const std::byte> bytes,
                                                               int64_t file_bytes);

/// Length and header of a file with these tensors, padded to a multiple of 8 bytes; the data
/// follows.
std::string FormatSafetensorsHeader(std::span<const TensorInfo> tensors);

}  // namespace shoal
