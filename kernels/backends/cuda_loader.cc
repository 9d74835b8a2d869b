#include "kernels/backends/cuda_loader.h"

#include <dlfcn.h>

#include <string_view>

namespace shoal {
namespace {

constexpr const char* kFile = "libshoal_cuda.so";
constexpr const char* kSymbol = "kShoalCudaModule";

absl::StatusOr<const cuda::Module*> Load() {
  void* const library = dlopen(kFile, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(fmt::format("no CUDA backend: {}", dlerror()));
  }
  const auto* module = static_cast<const cuda::Module*>(dlsym(library, kSymbol));
  if (module == nullptr || std::string_view(module->build_id) != SHOAL_BUILD_ID) {
    return absl::UnavailableError(
        fmt::format("no CUDA backend: {} is not of this build, {}", kFile, SHOAL_BUILD_ID));
  }
  return module;
}

}  // namespace

absl::StatusOr<const cuda::Module*> LoadCudaModule() {
  static const absl::StatusOr<const cuda::Module*> kModule = Load();
  return kModule;
}

}  // namespace shoal
