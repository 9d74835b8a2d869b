#include "kernels/cuda/host_transfers.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cuda/convert.h"

namespace shoal::cuda {

absl::StatusOr<std::unique_ptr<HostTransfers>> HostTransfers::Create(
    std::shared_ptr<CudaStream> stream) {
  std::unique_ptr<HostTransfers> transfers(new HostTransfers(std::move(stream)));
  constexpr int64_t kBytes = kNumSegments * kSegmentBytes;
  void* pinned = nullptr;
  const cudaError_t error = cudaHostAlloc(&pinned, kBytes, cudaHostAllocDefault);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // no failure of the device: the next call shall not find it
    return absl::ResourceExhaustedError(
        fmt::format("the system refused {} bytes of pinned memory", kBytes));
  }
  if (!transfers->stream_->Check(error, "cudaHostAlloc")) return transfers->stream_->status();
  transfers->pinned_ = static_cast<std::byte*>(pinned);
  for (int i = 0; i < kNumSegments; ++i) {
    transfers->segments_[i].data = transfers->pinned_ + i * kSegmentBytes;
  }
  return transfers;
}

HostTransfers::~HostTransfers() {
  // A device that hangs may still write to it.
  if (pinned_ != nullptr && stream_->Drain()) cudaFreeHost(pinned_);
}

/// The next `bytes` of the ring, at most those of a segment, on a 256-byte boundary. Null: the
/// stream has failed.
std::byte* HostTransfers::Take(int64_t bytes) {
  constexpr int64_t kAlignment = 256;
  SHOAL_CHECK(!stream_->is_recording(), "a copy from or to the host inside a recording");
  if (offset_ + bytes > kSegmentBytes) {
    segments_[current_].mark = stream_->Mark();
    current_ = (current_ + 1) % kNumSegments;
    offset_ = 0;
    if (stream_->Wait(segments_[current_].mark).ok()) Deliver();
  }
  if (!stream_->status().ok()) return nullptr;
  std::byte* const piece = segments_[current_].data + offset_;
  offset_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return piece;
}

void HostTransfers::Upload(const Tensor& host, DType dtype, const Runs& runs, void* device) {
  const int64_t size = SizeOf(dtype), most = kSegmentBytes / size, total = host.num_elements();
  for (int64_t begin = 0, count = 0; begin < total; begin += count) {
    // Several whole runs, or a part of one.
    const int64_t in_run = begin % runs.length;
    const int64_t num_runs =
        in_run > 0 ? 0 : std::min(most / runs.length, (total - begin) / runs.length);
    count = num_runs > 0 ? num_runs * runs.length
                         : std::min({most, runs.length - in_run, total - begin});
    std::byte* const piece = Take(count * size);
    if (piece == nullptr) return;
    ConvertElements(host, begin, count, dtype, piece);
    std::byte* const to =
        static_cast<std::byte*>(device) + (begin / runs.length * runs.pitch + in_run) * size;
    if (num_runs > 1) {
      stream_->Check(
          cudaMemcpy2DAsync(to, runs.pitch * size, piece, runs.length * size, runs.length * size,
                            num_runs, cudaMemcpyHostToDevice, stream_->get()),
          "cudaMemcpy2DAsync");
    } else {
      stream_->Check(
          cudaMemcpyAsync(to, piece, count * size, cudaMemcpyHostToDevice, stream_->get()),
          "cudaMemcpyAsync");
    }
  }
}

void HostTransfers::Download(const void* device, int64_t bytes, void* host) {
  for (int64_t begin = 0; begin < bytes; begin += kSegmentBytes) {
    const int64_t count = std::min(kSegmentBytes, bytes - begin);
    std::byte* const piece = Take(count);
    if (piece == nullptr) return;
    stream_->Check(cudaMemcpyAsync(piece, static_cast<const std::byte*>(device) + begin, count,
                                   cudaMemcpyDeviceToHost, stream_->get()),
                   "cudaMemcpyAsync");
    deliveries_.push_back(
        {stream_->next_mark(), piece, count, static_cast<std::byte*>(host) + begin});
  }
}

void HostTransfers::Deliver() {
  while (!deliveries_.empty() && deliveries_.front().mark <= stream_->done_mark()) {
    const Delivery& delivery = deliveries_.front();
    std::memcpy(delivery.host, delivery.pinned, delivery.bytes);
    deliveries_.pop_front();
  }
}

}  // namespace shoal::cuda
