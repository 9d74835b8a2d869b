#include "kernels/cuda/cuda_device.h"

#include <utility>

#include "kernels/cuda/plan.h"

namespace shoal::cuda {
namespace {

/// Rows are read 16 bytes at a time, and gate and up are interleaved by so many.
constexpr int64_t kElementsOfRow = 8;

class CudaGraph final : public Graph {
 public:
  CudaGraph(std::shared_ptr<CudaStream> stream, cudaGraphExec_t graph)
      : stream_(std::move(stream)), graph_(graph) {}
  ~CudaGraph() override { cudaGraphExecDestroy(graph_); }

  cudaGraphExec_t get() const { return graph_; }

 private:
  const std::shared_ptr<CudaStream> stream_;
  const cudaGraphExec_t graph_;
};

/// Bytes of `shape`; -1 if the number does not fit.
int64_t BytesOf(DType dtype, std::span<const int64_t> shape) {
  int64_t bytes = SizeOf(dtype);
  bool fits = true;
  for (int64_t dim : shape) {
    SHOAL_CHECK(dim >= 0, "a dimension of {}", dim);
    if (dim == 0) return 0;
    fits = fits && !__builtin_mul_overflow(bytes, dim, &bytes);
  }
  return fits ? bytes : -1;
}

absl::Status CheckStorage(DType dtype) {
  if (dtype == DType::kBFloat16) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("dtype {} is not supported by the CUDA device: use bfloat16", Name(dtype)));
}

absl::Status CheckRowLength(const char* what, int64_t length, std::string_view where) {
  if (length % kElementsOfRow == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {} in {}: the CUDA device needs a multiple of {}", what, length, where,
                  kElementsOfRow));
}

/// A weight's memory while it is loaded.
BFloat16* Writable(const void* weight) { return static_cast<BFloat16*>(const_cast<void*>(weight)); }

/// All elements in their order.
Runs AllTogether(const Tensor& host) {
  return {.length = host.num_elements(), .pitch = host.num_elements()};
}

bool HasShape(const Tensor& tensor, int64_t rows, int64_t columns) {
  return tensor.rank == 2 && tensor.shape[0] == rows && tensor.shape[1] == columns;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Create(
    std::shared_ptr<CudaStream> stream, std::shared_ptr<DeviceMemory> memory) {
  ASSIGN_OR_RETURN(std::unique_ptr<HostTransfers> transfers, HostTransfers::Create(stream));
  return std::unique_ptr<CudaDevice>(
      new CudaDevice(std::move(stream), std::move(memory), std::move(transfers)));
}

CudaDevice::CudaDevice(std::shared_ptr<CudaStream> stream, std::shared_ptr<DeviceMemory> memory,
                       std::unique_ptr<HostTransfers> transfers)
    : stream_(std::move(stream)), memory_(std::move(memory)), transfers_(std::move(transfers)) {}

absl::StatusOr<Tensor> CudaDevice::Allocate(DType dtype, std::span<const int64_t> shape) {
  const std::string what =
      fmt::format("a {} tensor of shape [{}]", Name(dtype), fmt::join(shape, ", "));
  ASSIGN_OR_RETURN(void* const data,
                   memory_->Allocate(BytesOf(dtype, shape), Contents::kZeros, what));
  return Tensor(data, dtype, shape);
}

absl::StatusOr<Weight> CudaDevice::AllocateWeight(int64_t out_features, int64_t in_features,
                                                  DType dtype) {
  RETURN_IF_ERROR(CheckStorage(dtype));
  RETURN_IF_ERROR(
      CheckRowLength("in_features", in_features,
                     fmt::format("a weight of shape [{}, {}]", out_features, in_features)));
  ASSIGN_OR_RETURN(const Tensor memory, Allocate(dtype, {out_features, in_features}));
  return Weight{.dtype = dtype,
                .out_features = out_features,
                .in_features = in_features,
                .data = memory.data};
}

absl::StatusOr<FfnWeights> CudaDevice::AllocateFfn(int64_t num_experts, int64_t hidden_size,
                                                   int64_t width, DType dtype) {
  RETURN_IF_ERROR(CheckStorage(dtype));
  if (num_experts > kMaxExperts) {
    return absl::InvalidArgumentError(fmt::format(
        "{} experts of one layer: the CUDA device takes at most {}", num_experts, kMaxExperts));
  }
  const std::string where =
      fmt::format("feed-forward networks of width {} and hidden size {}", width, hidden_size);
  RETURN_IF_ERROR(CheckRowLength("width", width, where));
  RETURN_IF_ERROR(CheckRowLength("hidden size", hidden_size, where));
  ASSIGN_OR_RETURN(const Tensor gate_up, Allocate(dtype, {num_experts, 2 * width, hidden_size}));
  ASSIGN_OR_RETURN(const Tensor down, Allocate(dtype, {num_experts, hidden_size, width}));
  return FfnWeights{.dtype = dtype,
                    .num_experts = num_experts,
                    .hidden_size = hidden_size,
                    .width = width,
                    .gate_up = gate_up.data,
                    .down = down.data};
}

absl::StatusOr<Tensor> CudaDevice::LoadTensor(const Tensor& host, DType dtype) {
  ASSIGN_OR_RETURN(const Tensor tensor, Allocate(dtype, std::span(host.shape.data(), host.rank)));
  transfers_->Upload(host, dtype, AllTogether(host), tensor.data);
  RETURN_IF_ERROR(stream_->status());
  return tensor;
}

absl::StatusOr<Weight> CudaDevice::LoadWeight(std::span<const Tensor> row_blocks, DType dtype) {
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
  BFloat16* to = Writable(weight.data);
  for (const Tensor& block : row_blocks) {
    transfers_->Upload(block, dtype, AllTogether(block), to);
    to += block.num_elements();
  }
  RETURN_IF_ERROR(stream_->status());
  return weight;
}

absl::StatusOr<FfnWeights> CudaDevice::LoadFfn(std::span<const HostFfn> experts, DType dtype) {
  SHOAL_CHECK(!experts.empty(), "a feed-forward network of no experts");
  const int64_t width = experts[0].gate.shape[0], hidden_size = experts[0].gate.shape[1];
  ASSIGN_OR_RETURN(const FfnWeights weights,
                   AllocateFfn(std::ssize(experts), hidden_size, width, dtype));
  // Eight rows of gate, eight of up, the next eight of gate.
  const int64_t group = kElementsOfRow * hidden_size, matrix = width * hidden_size;
  const Runs every_other = {.length = group, .pitch = 2 * group};
  for (int64_t i = 0; i < weights.num_experts; ++i) {
    const HostFfn& expert = experts[i];
    SHOAL_CHECK(HasShape(expert.gate, width, hidden_size) &&
                    HasShape(expert.up, width, hidden_size) &&
                    HasShape(expert.down, hidden_size, width),
                "expert {} differs in shape from expert 0, of width {} and hidden size {}", i,
                width, hidden_size);
    BFloat16* const gate_up = Writable(weights.gate_up) + 2 * i * matrix;
    transfers_->Upload(expert.gate, dtype, every_other, gate_up);
    transfers_->Upload(expert.up, dtype, every_other, gate_up + group);
    transfers_->Upload(expert.down, dtype, AllTogether(expert.down),
                       Writable(weights.down) + i * matrix);
  }
  RETURN_IF_ERROR(stream_->status());
  return weights;
}

void CudaDevice::CopyFromHost(const void* host, const Tensor& device) {
  const Tensor bytes(const_cast<void*>(host), DType::kByte, {device.size_bytes()});
  transfers_->Upload(bytes, DType::kByte, AllTogether(bytes), device.data);
}

void CudaDevice::CopyToHost(const Tensor& device, void* host) {
  transfers_->Download(device.data, device.size_bytes(), host);
}

absl::StatusOr<std::unique_ptr<Graph>> CudaDevice::Record(const std::function<void()>& enqueue) {
  ASSIGN_OR_RETURN(const cudaGraphExec_t graph, stream_->Record(enqueue));
  return std::make_unique<CudaGraph>(stream_, graph);
}

void CudaDevice::Replay(const Graph& graph) {
  stream_->Replay(static_cast<const CudaGraph&>(graph).get());
}

absl::Status CudaDevice::Wait(int64_t mark) {
  RETURN_IF_ERROR(stream_->Wait(mark));
  transfers_->Deliver();
  return absl::OkStatus();
}

}  // namespace shoal::cuda
