#include "engine/execution/input_buffer.h"

namespace shoal {

absl::StatusOr<InputBuffer> InputBuffer::Create(int64_t capacity_bytes, Device* device) {
  InputBuffer buffer(device);
  ASSIGN_OR_RETURN(buffer.memory_, device->Allocate(DType::kByte, {capacity_bytes}));
  buffer.host_.resize(static_cast<size_t>(capacity_bytes));
  return buffer;
}

Tensor InputBuffer::Add(DType dtype, std::initializer_list<int64_t> shape) {
  const Tensor part(memory_.as<std::byte>() + size_bytes_, dtype, shape);
  size_bytes_ += PartBytes(part.size_bytes());
  SHOAL_CHECK(size_bytes_ <= memory_.shape[0], "inputs of {} bytes, at most {} are possible",
              size_bytes_, memory_.shape[0]);
  return part;
}

}  // namespace shoal
