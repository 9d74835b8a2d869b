#include "kernels/cuda/gemm_kernel.cuh"

namespace shoal::cuda {

void EnqueueSwiGlu(const GemmArgs& args, const Cut& cut, cudaStream_t stream) {
  EnqueueGemm<StoreSwiGlu>(args, cut, stream);
}

}  // namespace shoal::cuda
