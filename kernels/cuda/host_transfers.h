// HostTransfers: copies between the host's memory and the device's, by way of pinned memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>

#include "kernels/cuda/cuda_stream.h"
#include "kernels/tensor.h"

namespace shoal::cuda {

/// How the elements of a host tensor lie on the device: so many next to each other, then the next
/// ones `pitch` elements after the first of these.
struct Runs {
  int64_t length = 0;
  int64_t pitch = 0;
};

/// A ring of pinned memory. While the device copies one piece of it, the host fills the next; a
/// piece is used again once the device is done with it. Thread: that of the stream.
class HostTransfers {
 public:
  static constexpr int kNumSegments = 4;
  static constexpr int64_t kSegmentBytes = int64_t{2} << 20;

  /// RESOURCE_EXHAUSTED: the system gives no pinned memory.
  static absl::StatusOr<std::unique_ptr<HostTransfers>> Create(std::shared_ptr<CudaStream> stream);
  ~HostTransfers();

  /// Enqueues the copy of a host tensor, converted to `dtype` (see ConvertElements()). The host's
  /// memory is free after the call. The last run may be shorter.
  void Upload(const Tensor& host, DType dtype, const Runs& runs, void* device);

  /// Enqueues a copy. The host has the bytes after a Deliver() of them.
  void Download(const void* device, int64_t bytes, void* host);

  /// Hands over all that came before the last mark that is done.
  void Deliver();

 private:
  struct Segment {
    std::byte* data = nullptr;
    int64_t mark = 0;  // what was last in it is done when this is
  };
  /// What lies in the ring, or will, for somebody on the host.
  struct Delivery {
    int64_t mark = 0;
    const std::byte* pinned = nullptr;
    int64_t bytes = 0;
    void* host = nullptr;
  };

  explicit HostTransfers(std::shared_ptr<CudaStream> stream) : stream_(std::move(stream)) {}
  std::byte* Take(int64_t bytes);

  const std::shared_ptr<CudaStream> stream_;
  std::byte* pinned_ = nullptr;
  std::array<Segment, kNumSegments> segments_ = {};
  int current_ = 0;
  int64_t offset_ = 0;  // of what is free in the current segment
  std::deque<Delivery> deliveries_;
};

}  // namespace shoal::cuda
