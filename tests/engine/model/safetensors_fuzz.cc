// Arbitrary bytes as a safetensors file, and as the header of one.
#include <algorithm>
#include <cstdint>
#include <string>

#include "engine/model/safetensors.h"

namespace {

/// Whatever is accepted must lie inside the file and fill it.
void Check(const std::string& file, int64_t file_bytes) {
  const auto tensors = shoal::ParseSafetensorsHeader(std::as_bytes(std::span(file)), file_bytes);
  if (!tensors.ok()) return;
  int64_t next = 0;
  for (const shoal::TensorInfo& tensor : *tensors) {
    int64_t bytes = SizeOf(tensor.dtype);
    for (int64_t dim : tensor.shape) bytes *= dim;
    SHOAL_CHECK(tensor.begin == next && tensor.end == next + bytes, "a range is not as promised");
    next = tensor.end;
  }
  SHOAL_CHECK(next < file_bytes, "the data does not fit the file");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  Check(input, static_cast<int64_t>(size));
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(size >> (8 * i) & 0xff);
  // The last byte doubles as the size of the data, so that some headers fit their file.
  const int64_t data_bytes = size > 1 ? data[size - 1] : 0;
  Check(length + input, static_cast<int64_t>(8 + size) + data_bytes);
  return 0;
}
