#include "kernels/cuda/module.h"

extern "C" {

/// See shoal::cuda::Module.
__attribute__((visibility("default"))) extern const shoal::cuda::Module kShoalCudaModule;
const shoal::cuda::Module kShoalCudaModule = {.build_id = SHOAL_BUILD_ID,
                                              .count_devices = shoal::cuda::CountDevices,
                                              .make_backend = shoal::cuda::MakeCudaBackend};
}
