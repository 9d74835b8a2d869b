// The runtime's functions about captures and graphs.

#include <cuda_runtime_api.h>

#include <iterator>
#include <utility>

#include "tests/cuda_emulation/runtime.h"

namespace cuda_emulation {

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  if (stream == nullptr) return Result(cudaErrorStreamCaptureUnsupported);
  const auto found = runtime.FindStreamLocked(stream);
  if (found == nullptr) return Result(cudaErrorInvalidResourceHandle);
  if (found->capture != nullptr) return Result(cudaErrorIllegalState);
  const cudaError_t fault = runtime.FindDeviceLocked(found->device)->fault;
  if (fault != cudaSuccess) return Result(fault);
  found->capture = std::make_shared<Capture>();
  found->capture->mode = mode;
  found->capture->thread = std::this_thread::get_id();
  found->capture->origin = found.get();
  runtime.captures.insert(found->capture);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* pGraph) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  *pGraph = nullptr;
  const auto found = runtime.FindStreamLocked(stream);
  if (found == nullptr) return Result(cudaErrorInvalidResourceHandle);
  if (found->capture == nullptr) return Result(cudaErrorIllegalState);
  const std::shared_ptr<Capture> capture = found->capture;
  if (capture->origin != found.get()) return Result(cudaErrorStreamCaptureUnmatched);
  if (capture->mode != cudaStreamCaptureModeRelaxed &&
      capture->thread != std::this_thread::get_id()) {
    return Result(cudaErrorStreamCaptureWrongThread);
  }
  runtime.captures.erase(capture);
  for (int i = 0; i < runtime.num_devices(); ++i) {
    for (const auto& each : runtime.FindDeviceLocked(i)->streams) {
      if (each->capture == capture) each->capture = nullptr;
    }
  }
  if (capture->invalid) return Result(cudaErrorStreamCaptureInvalidated);
  if (!capture->unjoined.empty()) return Result(cudaErrorStreamCaptureUnjoined);
  auto graph = std::make_unique<CUgraph_st>();
  graph->nodes.assign(std::make_move_iterator(capture->nodes.begin()),
                      std::make_move_iterator(capture->nodes.end()));
  *pGraph = graph.get();
  runtime.graphs[*pGraph] = std::move(graph);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
                                  enum cudaStreamCaptureStatus* pCaptureStatus) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  const auto found = runtime.FindStreamLocked(stream);
  if (found == nullptr) return Result(cudaErrorInvalidResourceHandle);
  *pCaptureStatus = found->capture == nullptr ? cudaStreamCaptureStatusNone
                    : found->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                              : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* pGraphExec, cudaGraph_t graph,
                                 unsigned long long flags) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  const auto found = runtime.graphs.find(graph);
  if (found == runtime.graphs.end()) return Result(cudaErrorInvalidResourceHandle);
  auto executable = std::make_unique<CUgraphExec_st>();
  executable->device = current_device;
  const auto& nodes = found->second->nodes;
  executable->nodes.assign(nodes.begin(), nodes.end());
  *pGraphExec = executable.get();
  runtime.executables[*pGraphExec] = std::move(executable);
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t graphExec, cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  const bool valid =
      runtime.executables.contains(graphExec) && runtime.FindStreamLocked(stream) != nullptr;
  return Result(valid ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graphExec, cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  Runtime::Lock lock(runtime.mutex());
  const auto found = runtime.executables.find(graphExec);
  const auto found_stream = runtime.FindStreamLocked(stream);
  if (found == runtime.executables.end() || found_stream == nullptr ||
      found_stream->device != found->second->device) {
    return Result(cudaErrorInvalidResourceHandle);
  }
  const cudaError_t fault = runtime.FindDeviceLocked(found_stream->device)->fault;
  if (fault != cudaSuccess) return Result(fault);
  for (const Work& work : found->second->nodes) {
    if (const auto* record = std::get_if<RecordWork>(&work)) record->mark->stream = found_stream;
  }
  return runtime.EnqueueLocked(lock, found_stream, found->second->nodes);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graphExec) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  return Result(runtime.executables.erase(graphExec) == 1 ? cudaSuccess
                                                          : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  return Result(runtime.graphs.erase(graph) == 1 ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

}  // extern "C"

}  // namespace cuda_emulation
