// The emulated runtime: captures and graphs.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "tests/cuda_emulation/runtime_test_support.h"

namespace cuda_emulation {
namespace {

using shoal::cuda::Launch;

/// What `record` enqueues on a stream.
template <typename Record>
cudaGraph_t CaptureGraph(cudaStream_t stream, const Record& record) {
  cudaGraph_t graph = nullptr;
  EXPECT_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  record();
  EXPECT_OK(cudaStreamEndCapture(stream, &graph));
  return graph;
}

/// The nodes of a graph.
std::vector<cudaGraphNode_t> NodesOf(cudaGraph_t graph) {
  size_t count = 0;
  EXPECT_OK(cudaGraphGetNodes(graph, nullptr, &count));
  std::vector<cudaGraphNode_t> nodes(count);
  EXPECT_OK(cudaGraphGetNodes(graph, nodes.data(), &count));
  EXPECT_EQ(count, nodes.size());
  return nodes;
}

/// Carries out a graph once.
void LaunchOnce(cudaGraph_t graph, cudaStream_t stream) {
  cudaGraphExec_t executable = nullptr;
  EXPECT_OK(cudaGraphInstantiate(&executable, graph));
  EXPECT_OK(cudaGraphLaunch(executable, stream));
  EXPECT_OK(cudaGraphExecDestroy(executable));
  EXPECT_OK(cudaStreamSynchronize(stream));
}

void Triple(int* value) { *value *= 3; }

TEST_F(RuntimeTest, GraphsRunWhatWasCaptured) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Seed(static_cast<uint64_t>(seed));
    EXPECT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    EXPECT_OK(cudaStreamIsCapturing(stream_, &status));
    EXPECT_EQ(status, cudaStreamCaptureStatusActive);
    Add(2);
    Add(3);
    cudaGraph_t graph = nullptr;
    EXPECT_OK(cudaStreamEndCapture(stream_, &graph));
    size_t num_nodes = 0;
    EXPECT_OK(cudaGraphGetNodes(graph, nullptr, &num_nodes));
    EXPECT_EQ(num_nodes, 2u);
    cudaGraphExec_t executable = nullptr;
    EXPECT_OK(cudaGraphInstantiate(&executable, graph));
    EXPECT_OK(cudaGraphDestroy(graph));
    EXPECT_OK(cudaStreamSynchronize(stream_));
    EXPECT_EQ(Read(), 0) << "nothing ran yet";
    EXPECT_OK(cudaGraphLaunch(executable, stream_));
    EXPECT_OK(cudaGraphLaunch(executable, stream_));
    EXPECT_OK(cudaGraphExecDestroy(executable));
    EXPECT_EQ(Read(), 10);
    EXPECT_OK(cudaMemsetAsync(value_, 0, sizeof(int), stream_));
  }
}

TEST_F(RuntimeTest, CapturesSpreadOverStreams) {
  cudaStream_t side = nullptr;
  cudaEvent_t fork = nullptr, join = nullptr;
  EXPECT_OK(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking));
  EXPECT_OK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
  EXPECT_OK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
  for (const bool joined : {true, false}) {
    EXPECT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    EXPECT_OK(cudaEventRecord(fork, stream_));
    EXPECT_OK(cudaStreamWaitEvent(side, fork));
    Launch(AddTo, {.blocks = 1, .threads = 1}, side, value_, 2);
    EXPECT_OK(cudaEventRecord(join, side));
    if (joined) EXPECT_OK(cudaStreamWaitEvent(stream_, join));
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph),
              joined ? cudaSuccess : cudaErrorStreamCaptureUnjoined);
    EXPECT_EQ(graph != nullptr, joined);
    if (joined) EXPECT_OK(cudaGraphDestroy(graph));
  }
  EXPECT_OK(cudaStreamDestroy(side));
  EXPECT_OK(cudaEventDestroy(fork));
  EXPECT_OK(cudaEventDestroy(join));
}

TEST_F(RuntimeTest, ForbiddenCallsSpoilCaptures) {
  void* pointer = nullptr;
  cudaEvent_t event = nullptr;
  int value = 0;
  EXPECT_OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  EXPECT_OK(cudaEventRecord(event, stream_));
  const std::function<cudaError_t()> calls[] = {
      [&] { return cudaMalloc(&pointer, 4); },
      [&] { return cudaFree(value_); },
      [&] { return cudaMallocHost(&pointer, 4); },
      [&] { return cudaStreamSynchronize(stream_); },
      [&] { return cudaStreamQuery(stream_); },
      [&] { return cudaDeviceSynchronize(); },
      [&] { return cudaEventQuery(event); },
      [&] { return cudaMemcpy(&value, value_, sizeof(int), cudaMemcpyDeviceToHost); },
  };
  for (const auto& call : calls) {
    cudaGraph_t graph = nullptr;
    EXPECT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    EXPECT_EQ(call(), cudaErrorStreamCaptureUnsupported);
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
  }
  EXPECT_OK(cudaEventDestroy(event));
}

TEST_F(RuntimeTest, CapturesOfOtherThreads) {
  const auto malloc_elsewhere = [](cudaError_t* error) {
    std::thread([error] {
      void* pointer = nullptr;
      *error = cudaMalloc(&pointer, 4);
      cudaFree(pointer);
    }).join();
  };
  cudaError_t error = cudaSuccess;
  cudaGraph_t graph = nullptr;
  EXPECT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  malloc_elsewhere(&error);
  EXPECT_OK(error);
  EXPECT_OK(cudaStreamEndCapture(stream_, &graph));
  EXPECT_OK(cudaGraphDestroy(graph));
  EXPECT_OK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
  malloc_elsewhere(&error);
  EXPECT_EQ(error, cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
}

TEST_F(RuntimeTest, NodesTellWhatTheyAre) {
  const cudaGraph_t graph = CaptureGraph(stream_, [this] {
    Launch(AddTo, {.blocks = dim3(2, 3), .threads = 64, .shared_bytes = 48}, stream_, value_, 1);
    EXPECT_OK(cudaMemsetAsync(value_, 0, sizeof(int), stream_));
    EXPECT_OK(cudaMemcpyAsync(value_, pinned_, sizeof(int), cudaMemcpyHostToDevice, stream_));
  });
  const std::vector<cudaGraphNode_t> nodes = NodesOf(graph);
  ASSERT_EQ(nodes.size(), 3u);
  EXPECT_EQ(NodesOf(graph), nodes) << "handles stay the same";
  std::vector<cudaGraphNodeType> types(nodes.size());
  for (size_t i = 0; i < nodes.size(); ++i) EXPECT_OK(cudaGraphNodeGetType(nodes[i], &types[i]));
  EXPECT_EQ(types, (std::vector{cudaGraphNodeTypeKernel, cudaGraphNodeTypeMemset,
                                cudaGraphNodeTypeMemcpy}));
  cudaKernelNodeParams params = {};
  EXPECT_OK(cudaGraphKernelNodeGetParams(nodes[0], &params));
  EXPECT_EQ(params.gridDim.x, 2u);
  EXPECT_EQ(params.gridDim.y, 3u);
  EXPECT_EQ(params.gridDim.z, 1u);
  EXPECT_EQ(params.blockDim.x, 64u);
  EXPECT_EQ(params.sharedMemBytes, 48u);
  const char* name = nullptr;
  EXPECT_OK(cudaFuncGetName(&name, params.func));
  EXPECT_NE(std::string(name).find("AddTo"), std::string::npos) << name;
  EXPECT_EQ(cudaGraphKernelNodeGetParams(nodes[1], &params), cudaErrorInvalidValue);
  EXPECT_OK(cudaGraphDestroy(graph));
  EXPECT_EQ(cudaGraphNodeGetType(nodes[0], types.data()), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaGraphKernelNodeGetParams(nodes[0], &params), cudaErrorInvalidResourceHandle);
}

TEST_F(RuntimeTest, GraphsArePutTogetherFromNodes) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    Seed(static_cast<uint64_t>(seed));
    const cudaGraph_t captured = CaptureGraph(stream_, [this] {
      Add(2);
      Launch(Triple, {.blocks = 1, .threads = 1}, stream_, value_);
    });
    const std::vector<cudaGraphNode_t> nodes = NodesOf(captured);
    ASSERT_EQ(nodes.size(), 2u);
    cudaGraph_t graph = nullptr;
    EXPECT_OK(cudaGraphCreate(&graph, 0));
    cudaGraphNode_t last = nullptr;
    size_t num_before = 0;
    for (const size_t i : {0, 1, 1, 0}) {
      cudaKernelNodeParams params = {};
      EXPECT_OK(cudaGraphKernelNodeGetParams(nodes[i], &params));
      EXPECT_OK(cudaGraphAddKernelNode(&last, graph, &last, num_before, &params));
      num_before = 1;
    }
    EXPECT_OK(cudaGraphDestroy(captured)) << "is not needed any more";
    EXPECT_EQ(NodesOf(graph).size(), 4u);
    EXPECT_EQ(NodesOf(graph).back(), last);
    LaunchOnce(graph, stream_);
    EXPECT_EQ(Read(), (0 + 2) * 3 * 3 + 2);
    EXPECT_OK(cudaGraphDestroy(graph));
    EXPECT_OK(cudaMemsetAsync(value_, 0, sizeof(int), stream_));
  }
}

TEST_F(RuntimeTest, ParametersOfNodesOutliveTheGraphsGrowth) {
  const cudaGraph_t graph = CaptureGraph(stream_, [this] { Add(1); });
  cudaGraphNode_t last = NodesOf(graph).front();
  cudaKernelNodeParams params = {};
  EXPECT_OK(cudaGraphKernelNodeGetParams(last, &params));
  for (int i = 0; i < 99; ++i) {
    EXPECT_OK(cudaGraphAddKernelNode(&last, graph, &last, 1, &params));
  }
  LaunchOnce(graph, stream_);
  EXPECT_EQ(Read(), 100);
  EXPECT_OK(cudaGraphDestroy(graph));
}

TEST_F(RuntimeTest, EventNodesTellTheTimeOfTheLastReplay) {
  const cudaGraph_t captured = CaptureGraph(stream_, [this] { Add(1); });
  cudaKernelNodeParams params = {};
  EXPECT_OK(cudaGraphKernelNodeGetParams(NodesOf(captured).front(), &params));
  cudaEvent_t start = nullptr, end = nullptr;
  EXPECT_OK(cudaEventCreate(&start));
  EXPECT_OK(cudaEventCreate(&end));
  cudaGraph_t graph = nullptr;
  cudaGraphNode_t last = nullptr;
  EXPECT_OK(cudaGraphCreate(&graph, 0));
  EXPECT_OK(cudaGraphAddEventRecordNode(&last, graph, nullptr, 0, start));
  EXPECT_OK(cudaGraphAddKernelNode(&last, graph, &last, 1, &params));
  EXPECT_OK(cudaGraphAddEventRecordNode(&last, graph, &last, 1, end));
  cudaGraphNodeType type = cudaGraphNodeTypeKernel;
  EXPECT_OK(cudaGraphNodeGetType(last, &type));
  EXPECT_EQ(type, cudaGraphNodeTypeEventRecord);
  for (int replay = 1; replay <= 3; ++replay) {
    LaunchOnce(graph, stream_);
    float milliseconds = -1;
    EXPECT_OK(cudaEventElapsedTime(&milliseconds, start, end));
    EXPECT_GE(milliseconds, 0);
    EXPECT_EQ(Read(), replay);
  }
  EXPECT_OK(cudaGraphDestroy(graph));
  EXPECT_OK(cudaGraphDestroy(captured));
  EXPECT_OK(cudaEventDestroy(start));
  EXPECT_OK(cudaEventDestroy(end));
}

TEST_F(RuntimeTest, NodesOfNothingAreRefused) {
  const cudaGraph_t captured = CaptureGraph(stream_, [this] { Add(1); });
  const cudaGraphNode_t foreign = NodesOf(captured).front();
  cudaKernelNodeParams params = {};
  EXPECT_OK(cudaGraphKernelNodeGetParams(foreign, &params));
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaGraphCreate(&graph, 1), cudaErrorInvalidValue) << "no flags are known";
  EXPECT_OK(cudaGraphCreate(&graph, 0));
  cudaGraphNode_t node = nullptr;
  EXPECT_EQ(cudaGraphAddKernelNode(&node, graph, &foreign, 1, &params), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGraphAddEventRecordNode(&node, graph, nullptr, 0, nullptr),
            cudaErrorInvalidResourceHandle);
  params.func = reinterpret_cast<void*>(Triple);
  EXPECT_EQ(cudaGraphAddKernelNode(&node, graph, nullptr, 0, &params), cudaErrorNotSupported)
      << "the arguments are another kernel's";
  EXPECT_TRUE(NodesOf(graph).empty());
  EXPECT_OK(cudaGraphDestroy(graph));
  size_t count = 0;
  EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &count), cudaErrorInvalidResourceHandle);
  EXPECT_OK(cudaGraphDestroy(captured));
}

}  // namespace
}  // namespace cuda_emulation
