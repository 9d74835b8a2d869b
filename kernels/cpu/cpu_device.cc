#include "kernels/cpu/cpu_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "kernels/cpu/element.h"

namespace shoal {
namespace {

constexpr int64_t kPageBytes = 4096;
constexpr int64_t kHugePageBytes = int64_t{2} << 20;

/// Bytes of whole pages that hold `shape`; -1 if the number does not fit.
int64_t PageBytes(DType dtype, std::span<const int64_t> shape) {
  int64_t bytes = SizeOf(dtype);
  for (int64_t dim : shape) {
    SHOAL_CHECK(dim >= 0, "a dimension of {}", dim);
    if (__builtin_mul_overflow(bytes, dim, &bytes)) return -1;
  }
  if (__builtin_add_overflow(bytes, kPageBytes - 1, &bytes)) return -1;
  return std::max(bytes / kPageBytes * kPageBytes, kPageBytes);
}

/// The memory of a weight that is being loaded.
Tensor Writable(const void* data, DType dtype, std::initializer_list<int64_t> shape) {
  return Tensor(const_cast<void*>(data), dtype, shape);
}

}  // namespace

CpuDevice::CpuDevice(std::shared_ptr<ThreadPool> pool, int64_t memory_limit_bytes,
                     std::shared_ptr<UsedBytes> used)
    : pool_(std::move(pool)), memory_limit_bytes_(memory_limit_bytes), used_(std::move(used)) {}

CpuDevice::~CpuDevice() {
  for (const Mapping& mapping : mappings_) munmap(mapping.data, mapping.bytes);
}

absl::StatusOr<Tensor> CpuDevice::Allocate(DType dtype, std::span<const int64_t> shape) {
  const int64_t bytes = PageBytes(dtype, shape);
  if (bytes < 0 || bytes > FreeBytes()) {
    return absl::ResourceExhaustedError(fmt::format(
        "CPU memory: a {} tensor of shape [{}] needs {} bytes, {} of {} are left", Name(dtype),
        fmt::join(shape, ", "), bytes < 0 ? "more than 2^63" : fmt::to_string(bytes), FreeBytes(),
        memory_limit_bytes_));
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        fmt::format("CPU memory: the system refused {} bytes ({} of {} left by our count): {}",
                    bytes, FreeBytes(), memory_limit_bytes_, std::strerror(errno)));
  }
  if (bytes >= kHugePageBytes) madvise(data, bytes, MADV_HUGEPAGE);
  mappings_.push_back({data, bytes});
  *used_ += bytes;
  return Tensor(data, dtype, shape);
}

/// Copies element by element, rounding to `to`'s type.
void CpuDevice::Convert(const Tensor& from, const Tensor& to) {
  constexpr int64_t kGrain = int64_t{1} << 16;
  SHOAL_CHECK(from.num_elements() == to.num_elements(), "{} elements into {}", from.num_elements(),
              to.num_elements());
  const auto convert = [&](const auto* source, auto* target) {
    pool_->ParallelFor(from.num_elements(), kGrain, [=](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) Round(ToFloat(source[i]), target[i]);
    });
  };
  WithStorage(to.dtype, [&](auto target) {
    auto* out = to.as<decltype(target)>();
    switch (from.dtype) {
      case DType::kFloat32:
        return convert(from.as<const float>(), out);
      case DType::kBFloat16:
        return convert(from.as<const BFloat16>(), out);
      case DType::kFloat16:
        return convert(from.as<const Float16>(), out);
      default:
        SHOAL_CHECK(false, "{} is no floating-point type", Name(from.dtype));
    }
  });
}

absl::StatusOr<Tensor> CpuDevice::LoadTensor(const Tensor& host, DType dtype) {
  ASSIGN_OR_RETURN(const Tensor tensor, Allocate(dtype, std::span(host.shape.data(), host.rank)));
  Convert(host, tensor);
  return tensor;
}

absl::StatusOr<Weight> CpuDevice::AllocateWeight(int64_t out_features, int64_t in_features,
                                                 DType dtype) {
  ASSIGN_OR_RETURN(const Tensor memory, Allocate(dtype, {out_features, in_features}));
  return Weight{.dtype = dtype,
                .out_features = out_features,
                .in_features = in_features,
                .data = memory.data};
}

absl::StatusOr<FfnWeights> CpuDevice::AllocateFfn(int64_t num_experts, int64_t hidden_size,
                                                  int64_t width, DType dtype) {
  ASSIGN_OR_RETURN(const Tensor gate_up, Allocate(dtype, {num_experts, 2, width, hidden_size}));
  ASSIGN_OR_RETURN(const Tensor down, Allocate(dtype, {num_experts, hidden_size, width}));
  return FfnWeights{.dtype = dtype,
                    .num_experts = num_experts,
                    .hidden_size = hidden_size,
                    .width = width,
                    .gate_up = gate_up.data,
                    .down = down.data};
}

absl::StatusOr<Weight> CpuDevice::LoadWeight(std::span<const Tensor> row_blocks, DType dtype) {
  SHOAL_CHECK(!row_blocks.empty(), "a weight of no rows");
  const int64_t in_features = row_blocks[0].shape[1];
  int64_t out_features = 0;
  for (const Tensor& block : row_blocks) {
    SHOAL_CHECK(block.rank == 2 && block.shape[1] == in_features,
                "row block of rank {}, [{}, {}], in a weight of {} columns", block.rank,
                block.shape[0], block.shape[1], in_features);
    out_features += block.shape[0];
  }
  ASSIGN_OR_RETURN(const Weight weight, AllocateWeight(out_features, in_features, dtype));
  const Tensor memory = Writable(weight.data, dtype, {out_features, in_features});
  int64_t row = 0;
  for (const Tensor& block : row_blocks) {
    Convert(block, memory.Rows(row, block.shape[0]));
    row += block.shape[0];
  }
  return weight;
}

absl::StatusOr<FfnWeights> CpuDevice::LoadFfn(std::span<const HostFfn> experts, DType dtype) {
  SHOAL_CHECK(!experts.empty(), "a feed-forward network of no experts");
  const auto num_experts = static_cast<int64_t>(experts.size());
  const int64_t width = experts[0].gate.shape[0];
  const int64_t hidden_size = experts[0].gate.shape[1];
  ASSIGN_OR_RETURN(const FfnWeights weights, AllocateFfn(num_experts, hidden_size, width, dtype));
  const Tensor gate_up = Writable(weights.gate_up, dtype, {num_experts, 2, width, hidden_size});
  const Tensor down = Writable(weights.down, dtype, {num_experts, hidden_size, width});
  const auto has_shape = [](const Tensor& t, int64_t rows, int64_t columns) {
    return t.rank == 2 && t.shape[0] == rows && t.shape[1] == columns;
  };
  for (int64_t i = 0; i < num_experts; ++i) {
    const HostFfn& expert = experts[i];
    SHOAL_CHECK(has_shape(expert.gate, width, hidden_size) &&
                    has_shape(expert.up, width, hidden_size) &&
                    has_shape(expert.down, hidden_size, width),
                "expert {} differs in shape from expert 0, of width {} and hidden size {}", i,
                width, hidden_size);
    Tensor halves = gate_up.Rows(i, 1);
    halves.shape = {2, width, hidden_size};
    halves.rank = 3;
    Convert(expert.gate, halves.Rows(0, 1));
    Convert(expert.up, halves.Rows(1, 1));
    Convert(expert.down, down.Rows(i, 1));
  }
  return weights;
}

void CpuDevice::CopyFromHost(const void* host, const Tensor& device) {
  if (device.size_bytes() > 0) std::memcpy(device.data, host, device.size_bytes());
}

void CpuDevice::CopyToHost(const Tensor& device, void* host) {
  if (device.size_bytes() > 0) std::memcpy(host, device.data, device.size_bytes());
}

absl::StatusOr<std::unique_ptr<Graph>> CpuDevice::Record(const std::function<void()>&) {
  return nullptr;
}

void CpuDevice::Replay(const Graph&) { SHOAL_CHECK(false, "the CPU recorded no graph"); }

}  // namespace shoal
