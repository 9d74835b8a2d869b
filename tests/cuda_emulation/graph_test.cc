// The emulated runtime: captures and graphs.
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "tests/cuda_emulation/runtime_test_support.h"

namespace cuda_emulation {
namespace {

using shoal::cuda::Launch;

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

}  // namespace
}  // namespace cuda_emulation
