// The vendor's matrix product, as a ceiling for ours. Found at run time: nothing of it is linked.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "kernels/status.h"

namespace shoal::bench {

/// out [n, n] = a [n, n] b^T [n, n], bfloat16 with float32 sums, by cuBLASLt. Thread: one.
class VendorMatmul {
 public:
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

  /// `workspace` of kWorkspaceBytes. UNAVAILABLE says in a sentence why there is none.
  static absl::StatusOr<std::unique_ptr<VendorMatmul>> Create(int64_t n, void* workspace);
  ~VendorMatmul();

  /// INTERNAL: it was refused.
  absl::Status Enqueue(const void* a, const void* b, void* out, cudaStream_t stream);

 private:
  struct Library;

  VendorMatmul() = default;

  std::unique_ptr<Library> library_;
};

}  // namespace shoal::bench
