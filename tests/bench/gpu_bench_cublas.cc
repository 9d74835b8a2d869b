#include "tests/bench/gpu_bench_cublas.h"

#include <dlfcn.h>

#include <string>

namespace shoal::bench {
namespace {

// What cublasLt.h declares, as far as it is used here.
constexpr int kCompute32F = 68, kFloat32 = 0, kBFloat16 = 14, kTranspose = 1;
constexpr int kTransposeAttribute = 3;     // CUBLASLT_MATMUL_DESC_TRANSA
constexpr int kMaxWorkspaceAttribute = 1;  // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
struct HeuristicResult {
  uint64_t algorithm[8];
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

}  // namespace

struct VendorMatmul::Library {
  using Handle = void*;
  using Multiply = int (*)(Handle handle, Handle description, const void* alpha, const void* a,
                           Handle a_layout, const void* b, Handle b_layout, const void* beta,
                           const void* c, Handle c_layout, void* d, Handle d_layout,
                           const uint64_t* algorithm, void* workspace, size_t workspace_bytes,
                           cudaStream_t stream);

  void* file = nullptr;
  int (*create)(Handle*) = nullptr;
  int (*destroy)(Handle) = nullptr;
  int (*create_description)(Handle*, int compute_type, int scale_type) = nullptr;
  int (*set_description)(Handle, int attribute, const void*, size_t) = nullptr;
  int (*create_layout)(Handle*, int type, uint64_t rows, uint64_t columns,
                       int64_t stride) = nullptr;
  int (*create_preference)(Handle*) = nullptr;
  int (*set_preference)(Handle, int attribute, const void*, size_t) = nullptr;
  int (*heuristic)(Handle, Handle description, Handle a, Handle b, Handle c, Handle d,
                   Handle preference, int requested, HeuristicResult*, int* returned) = nullptr;
  Multiply multiply = nullptr;

  // Made once; they end with the process.
  Handle handle = nullptr;
  Handle description = nullptr;
  Handle layout = nullptr;
  HeuristicResult best = {};
  void* workspace = nullptr;

  absl::Status Open() {
    constexpr const char* kFiles[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    for (const char* name : kFiles) {
      if (file == nullptr) file = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    if (file == nullptr) return absl::UnavailableError("libcublasLt.so is not there");
    bool found = true;
    const auto find = [&](const char* name, auto& function) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(file, name));
      found = found && function != nullptr;
    };
    find("cublasLtCreate", create);
    find("cublasLtDestroy", destroy);
    find("cublasLtMatmulDescCreate", create_description);
    find("cublasLtMatmulDescSetAttribute", set_description);
    find("cublasLtMatrixLayoutCreate", create_layout);
    find("cublasLtMatmulPreferenceCreate", create_preference);
    find("cublasLtMatmulPreferenceSetAttribute", set_preference);
    find("cublasLtMatmulAlgoGetHeuristic", heuristic);
    find("cublasLtMatmul", multiply);
    return found ? absl::OkStatus() : absl::UnavailableError("libcublasLt.so lacks a function");
  }

  /// In its words, where columns are contiguous: d = a^T b.
  absl::Status Prepare(int64_t n) {
    const uint64_t max_workspace = kWorkspaceBytes;
    Handle preference = nullptr;
    int returned = 0;
    if (create(&handle) != 0) return absl::UnavailableError("cublasLtCreate failed");
    const bool made =
        create_description(&description, kCompute32F, kFloat32) == 0 &&
        set_description(description, kTransposeAttribute, &kTranspose, sizeof(kTranspose)) == 0 &&
        create_layout(&layout, kBFloat16, n, n, n) == 0 && create_preference(&preference) == 0 &&
        set_preference(preference, kMaxWorkspaceAttribute, &max_workspace, sizeof(max_workspace)) ==
            0 &&
        heuristic(handle, description, layout, layout, layout, layout, preference, 1, &best,
                  &returned) == 0;
    if (!made || returned == 0) return absl::UnavailableError("cublasLt has no such product");
    return absl::OkStatus();
  }
};

absl::StatusOr<std::unique_ptr<VendorMatmul>> VendorMatmul::Create(int64_t n, void* workspace) {
  std::unique_ptr<VendorMatmul> matmul(new VendorMatmul);
  matmul->library_ = std::make_unique<Library>();
  matmul->library_->workspace = workspace;
  RETURN_IF_ERROR(matmul->library_->Open());
  RETURN_IF_ERROR(matmul->library_->Prepare(n));
  return matmul;
}

VendorMatmul::~VendorMatmul() {
  if (library_->handle != nullptr) library_->destroy(library_->handle);
}

absl::Status VendorMatmul::Enqueue(const void* a, const void* b, void* out, cudaStream_t stream) {
  Library& library = *library_;
  const float one = 1, zero = 0;
  const int status = library.multiply(library.handle, library.description, &one, a, library.layout,
                                      b, library.layout, &zero, out, library.layout, out,
                                      library.layout, library.best.algorithm, library.workspace,
                                      library.best.workspace_bytes, stream);
  if (status == 0) return absl::OkStatus();
  return absl::InternalError(fmt::format("cublasLtMatmul failed with {}", status));
}

}  // namespace shoal::bench
