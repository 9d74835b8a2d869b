#include "kernels/cuda/gemm_kernel.cuh"

namespace shoal::cuda {

void EnqueueProduct(const GemmArgs& args, const Cut& cut, cudaStream_t stream) {
  EnqueueGemm<StoreProduct>(args, cut, stream);
}

}  // namespace shoal::cuda
