#include "tests/bench/gpu_bench_gpu.h"

#include <cxxabi.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <string_view>
#include <utility>

#include "kernels/comm/single_rank.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"

namespace shoal::bench {
namespace {

constexpr double kMemoryUtilization = 0.95;

/// "void shoal::cuda::(anonymous namespace)::Kernel<64, shoal::cuda::Store>(Args)" -> "Kernel<64,
/// Store>".
std::string ShortName(std::string name) {
  constexpr std::string_view kLeftOut[] = {
      "(anonymous namespace)::", "shoal::cuda::", "shoal::bench::", "void "};
  for (const std::string_view word : kLeftOut) {
    for (size_t at = name.find(word); at != std::string::npos; at = name.find(word)) {
      name.erase(at, word.size());
    }
  }
  return name.substr(0, name.find('('));
}

std::string KernelName(const void* function) {
  const char* mangled = nullptr;
  Check(cudaFuncGetName(&mangled, function), "cudaFuncGetName");
  int status = 0;
  char* demangled = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  const std::string name = ShortName(status == 0 ? demangled : mangled);
  std::free(demangled);
  return name;
}

/// A recording that is put together: each node waits for the one before it.
class Chain {
 public:
  Chain() { Check(cudaGraphCreate(&graph_, 0), "cudaGraphCreate"); }

  void Add(const Recording::Kernel& kernel) {
    cudaKernelNodeParams params = {};
    Check(cudaGraphKernelNodeGetParams(kernel.node, &params), "cudaGraphKernelNodeGetParams");
    cudaGraphNode_t node = nullptr;
    Check(cudaGraphAddKernelNode(&node, graph_, &last_, num_before_, &params),
          "cudaGraphAddKernelNode");
    Append(node);
  }
  void Add(cudaEvent_t event) {
    cudaGraphNode_t node = nullptr;
    Check(cudaGraphAddEventRecordNode(&node, graph_, &last_, num_before_, event),
          "cudaGraphAddEventRecordNode");
    Append(node);
  }

  std::unique_ptr<Recording> Finish() {
    cudaGraphExec_t executable = nullptr;
    Check(cudaGraphInstantiate(&executable, graph_, 0), "cudaGraphInstantiate");
    return std::make_unique<Recording>(graph_, executable);
  }

 private:
  void Append(cudaGraphNode_t node) {
    last_ = node;
    num_before_ = 1;
  }

  cudaGraph_t graph_ = nullptr;
  cudaGraphNode_t last_ = nullptr;
  size_t num_before_ = 0;
};

absl::Status CudaFailed(cudaError_t error, const char* call) {
  return absl::UnavailableError(
      fmt::format("the GPU cannot be used: {} in {}", cudaGetErrorName(error), call));
}

}  // namespace

void Check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  fmt::print(stderr, "gpu_bench: {} ({}) in {}\n", cudaGetErrorName(error),
             cudaGetErrorString(error), call);
  std::exit(1);
}

Recording::~Recording() {
  cudaGraphExecDestroy(executable_);
  cudaGraphDestroy(graph_);
}

std::vector<Recording::Kernel> Recording::Kernels() const {
  size_t count = 0;
  Check(cudaGraphGetNodes(graph_, nullptr, &count), "cudaGraphGetNodes");
  std::vector<cudaGraphNode_t> nodes(count);
  Check(cudaGraphGetNodes(graph_, nodes.data(), &count), "cudaGraphGetNodes");
  std::vector<Kernel> kernels;
  for (const cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type = cudaGraphNodeTypeKernel;
    Check(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
    SHOAL_CHECK(type == cudaGraphNodeTypeKernel, "an op enqueues something else than kernels");
    cudaKernelNodeParams params = {};
    Check(cudaGraphKernelNodeGetParams(node, &params), "cudaGraphKernelNodeGetParams");
    const dim3& grid = params.gridDim;
    kernels.push_back(
        {.name = fmt::format("{} [{}, {}, {}]", KernelName(params.func), grid.x, grid.y, grid.z),
         .node = node});
  }
  return kernels;
}

absl::StatusOr<std::unique_ptr<Gpu>> Gpu::Create(int ordinal, const Timing& timing) {
  ASSIGN_OR_RETURN(const int num_devices, cuda::CountDevices());
  if (ordinal >= num_devices) {
    return absl::UnavailableError(
        fmt::format("there is no CUDA device {}: this machine has {}", ordinal, num_devices));
  }
  std::unique_ptr<Gpu> gpu(new Gpu(ordinal, timing));
  if (const cudaError_t error = cudaSetDevice(ordinal); error != cudaSuccess) {
    return CudaFailed(error, "cudaSetDevice");
  }
  size_t free_bytes = 0, total_bytes = 0;
  if (const cudaError_t error = cudaMemGetInfo(&free_bytes, &total_bytes); error != cudaSuccess) {
    return CudaFailed(error, "cudaMemGetInfo");
  }
  constexpr auto kTimeout = std::chrono::minutes(2);
  ASSIGN_OR_RETURN(gpu->stream_, cuda::CudaStream::Create(ordinal, kTimeout));
  const auto memory = std::make_shared<cuda::DeviceMemory>(
      gpu->stream_, static_cast<int64_t>(kMemoryUtilization * static_cast<double>(free_bytes)));
  ASSIGN_OR_RETURN(gpu->backend_.device, cuda::CudaDevice::Create(gpu->stream_, memory));
  auto ops = std::make_unique<RoutingProbe>(std::make_unique<cuda::CudaOps>(gpu->stream_, memory),
                                            gpu->backend_.device.get());
  gpu->routing_probe_ = ops.get();
  gpu->backend_.ops = std::move(ops);
  gpu->backend_.communicator = std::make_unique<SingleRank>();
  Check(cudaEventCreate(&gpu->begin_), "cudaEventCreate");
  Check(cudaEventCreate(&gpu->end_), "cudaEventCreate");
  return gpu;
}

Gpu::~Gpu() {
  if (begin_ != nullptr) cudaEventDestroy(begin_);
  if (end_ != nullptr) cudaEventDestroy(end_);
}

Machine Gpu::machine() const {
  cudaDeviceProp properties = {};
  Check(cudaGetDeviceProperties(&properties, ordinal_), "cudaGetDeviceProperties");
  int driver = 0;
  Check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  return {.name = properties.name,
          .compute_capability = fmt::format("{}.{}", properties.major, properties.minor),
          .num_multiprocessors = properties.multiProcessorCount,
          .l2_bytes = properties.l2CacheSize,
          .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
          .driver = driver};
}

Tensor Gpu::Allocate(DType dtype, std::initializer_list<int64_t> shape) {
  const absl::StatusOr<Tensor> tensor = device().Allocate(dtype, shape);
  if (tensor.ok()) return *tensor;
  fmt::print(stderr, "gpu_bench: {}\n", tensor.status().ToString());
  std::exit(1);
}

Tensor Gpu::Random(DType dtype, std::initializer_list<int64_t> shape, float stddev) {
  const Tensor tensor = Allocate(dtype, shape);
  ops().FillNormal(tensor, ++num_random_, stddev);
  return tensor;
}

Tensor Gpu::Upload(const std::vector<int32_t>& values, std::initializer_list<int64_t> shape) {
  const Tensor tensor = Allocate(DType::kInt32, shape);
  SHOAL_CHECK(tensor.num_elements() == std::ssize(values), "{} values for {} elements",
              values.size(), tensor.num_elements());
  device().CopyFromHost(values.data(), tensor);
  return tensor;
}

std::vector<int32_t> Gpu::Download(const Tensor& ints) {
  std::vector<int32_t> values(static_cast<size_t>(ints.num_elements()));
  device().CopyToHost(ints, values.data());
  Synchronize();
  return values;
}

void Gpu::Synchronize() {
  const absl::Status status = device().Synchronize();
  if (status.ok()) return;
  fmt::print(stderr, "gpu_bench: {}\n", status.ToString());
  std::exit(1);
}

std::unique_ptr<Recording> Gpu::Record(const std::function<void()>& enqueue) {
  enqueue();
  Synchronize();
  Check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCapture");
  enqueue();
  cudaGraph_t graph = nullptr;
  Check(cudaStreamEndCapture(stream(), &graph), "cudaStreamEndCapture");
  cudaGraphExec_t executable = nullptr;
  Check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  return std::make_unique<Recording>(graph, executable);
}

std::unique_ptr<Recording> Gpu::Pick(const std::vector<Recording::Kernel>& kernels) {
  Chain chain;
  for (const Recording::Kernel& kernel : kernels) chain.Add(kernel);
  return chain.Finish();
}

double Gpu::SecondsOf(const std::function<void()>& enqueue) {
  Check(cudaEventRecord(begin_, stream()), "cudaEventRecord");
  enqueue();
  Check(cudaEventRecord(end_, stream()), "cudaEventRecord");
  Check(cudaEventSynchronize(end_), "cudaEventSynchronize");
  float milliseconds = 0;
  Check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
  return static_cast<double>(milliseconds) * 1e-3;
}

double Gpu::MedianSeconds(const std::function<void()>& enqueue) {
  std::vector<double> seconds;
  double total = 0;
  for (int warm_up = 0; warm_up < std::min(timing_.min_rounds, 2); ++warm_up) SecondsOf(enqueue);
  while (std::ssize(seconds) < timing_.min_rounds ||
         (std::ssize(seconds) < timing_.max_rounds && total < timing_.max_seconds)) {
    total += seconds.emplace_back(SecondsOf(enqueue));
  }
  Synchronize();  // it knows of failures
  const auto middle = seconds.begin() + std::ssize(seconds) / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

double Gpu::MedianSeconds(const Recording& recording) {
  return MedianSeconds(
      [&] { Check(cudaGraphLaunch(recording.executable(), stream()), "cudaGraphLaunch"); });
}

std::vector<KernelShare> Gpu::TimeByKernel(const Recording& recording) {
  const std::vector<Recording::Kernel> kernels = recording.Kernels();
  std::vector<cudaEvent_t> events(kernels.size() + 1);
  Chain chain;
  for (size_t i = 0; i <= kernels.size(); ++i) {
    Check(cudaEventCreate(&events[i]), "cudaEventCreate");
    chain.Add(events[i]);
    if (i < kernels.size()) chain.Add(kernels[i]);
  }
  const auto timed = chain.Finish();
  MedianSeconds(*timed);  // the events keep the times of the last replay
  std::map<std::string, KernelShare> shares;
  for (size_t i = 0; i < kernels.size(); ++i) {
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, events[i], events[i + 1]), "cudaEventElapsedTime");
    KernelShare& share = shares[kernels[i].name];
    share.kernel = kernels[i].name;
    share.seconds += static_cast<double>(milliseconds) * 1e-3;
    ++share.count;
  }
  for (const cudaEvent_t event : events) cudaEventDestroy(event);
  std::vector<KernelShare> result;
  result.reserve(shares.size());
  for (const auto& [name, share] : shares) result.push_back(share);
  return result;
}

}  // namespace shoal::bench
