// The runtime's functions about the nodes of graphs.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "tests/cuda_emulation/report.h"
#include "tests/cuda_emulation/runtime.h"

namespace cuda_emulation {
namespace {

/// The node behind a handle; null: there is none.
Work* FindNodeLocked(Runtime& runtime, cudaGraphNode_t node) {
  for (const auto& [handle, graph] : runtime.graphs) {
    for (const CUgraphNode_st& each : graph->handles) {
      if (&each == node) return &graph->nodes[each.index];
    }
  }
  return nullptr;
}

/// The handle of node `index`.
cudaGraphNode_t HandleLocked(CUgraph_st& graph, size_t index) {
  while (graph.handles.size() <= index) graph.handles.push_back({&graph, graph.handles.size()});
  return &graph.handles[index];
}

/// Adds a node. Nodes run in the order of their calls, so that every dependency on an earlier one
/// is kept.
cudaError_t AddLocked(Runtime& runtime, cudaGraph_t graph,
                      std::span<const cudaGraphNode_t> dependencies, Work work,
                      cudaGraphNode_t* node) {
  const auto found = runtime.graphs.find(graph);
  if (found == runtime.graphs.end()) return Result(cudaErrorInvalidResourceHandle);
  for (const cudaGraphNode_t dependency : dependencies) {
    const bool known = FindNodeLocked(runtime, dependency) != nullptr;
    if (!known || dependency->graph != graph) return Result(cudaErrorInvalidValue);
  }
  found->second->nodes.push_back(std::move(work));
  *node = HandleLocked(*found->second, found->second->nodes.size() - 1);
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaGraphCreate(cudaGraph_t* pGraph, unsigned int flags) {
  if (flags != 0) return Result(cudaErrorInvalidValue);
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  auto graph = std::make_unique<CUgraph_st>();
  *pGraph = graph.get();
  runtime.graphs[*pGraph] = std::move(graph);
  return cudaSuccess;
}

/// In the order of their calls.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* numNodes) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  const auto found = runtime.graphs.find(graph);
  if (found == runtime.graphs.end()) return Result(cudaErrorInvalidResourceHandle);
  const size_t count = found->second->nodes.size();
  if (nodes != nullptr) {
    for (size_t i = 0; i < std::min(*numNodes, count); ++i) {
      nodes[i] = HandleLocked(*found->second, i);
    }
  }
  *numNodes = count;
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, enum cudaGraphNodeType* pType) {
  // By the alternatives of Work.
  constexpr cudaGraphNodeType kTypes[] = {cudaGraphNodeTypeKernel, cudaGraphNodeTypeMemcpy,
                                          cudaGraphNodeTypeMemset, cudaGraphNodeTypeEventRecord,
                                          cudaGraphNodeTypeWaitEvent};
  static_assert(std::size(kTypes) == std::variant_size_v<Work>);
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  const Work* work = FindNodeLocked(runtime, node);
  if (work == nullptr) return Result(cudaErrorInvalidResourceHandle);
  *pType = kTypes[work->index()];
  return cudaSuccess;
}

cudaError_t cudaGraphKernelNodeGetParams(cudaGraphNode_t node, cudaKernelNodeParams* pNodeParams) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  Work* work = FindNodeLocked(runtime, node);
  if (work == nullptr) return Result(cudaErrorInvalidResourceHandle);
  auto* kernel = std::get_if<KernelWork>(work);
  if (kernel == nullptr) return Result(cudaErrorInvalidValue);
  *pNodeParams = {.func = const_cast<void*>(kernel->call->function()),
                  .gridDim = kernel->shape.grid,
                  .blockDim = kernel->shape.block,
                  .sharedMemBytes = static_cast<unsigned int>(kernel->shape.shared_bytes),
                  .kernelParams = reinterpret_cast<void**>(&kernel->call),
                  .extra = nullptr};
  return cudaSuccess;
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* pGraphNode, cudaGraph_t graph,
                                   const cudaGraphNode_t* pDependencies, size_t numDependencies,
                                   const cudaKernelNodeParams* pNodeParams) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  const auto* call =
      reinterpret_cast<const std::shared_ptr<const KernelCall>*>(pNodeParams->kernelParams);
  if ((*call)->function() != pNodeParams->func) return Result(cudaErrorNotSupported);
  return AddLocked(runtime, graph, {pDependencies, numDependencies},
                   KernelWork{.call = *call,
                              .shape = {.grid = pNodeParams->gridDim,
                                        .block = pNodeParams->blockDim,
                                        .shared_bytes = pNodeParams->sharedMemBytes}},
                   pGraphNode);
}

/// The event is taken for recorded from now on; its time is that of the last replay.
cudaError_t cudaGraphAddEventRecordNode(cudaGraphNode_t* pGraphNode, cudaGraph_t graph,
                                        const cudaGraphNode_t* pDependencies,
                                        size_t numDependencies, cudaEvent_t event) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  const auto found = runtime.events.find(event);
  if (found == runtime.events.end()) return Result(cudaErrorInvalidResourceHandle);
  CUevent_st& recorded = *found->second;
  recorded.capture = nullptr;
  recorded.mark = std::make_shared<Mark>();
  recorded.mark->stream = runtime.FindDeviceLocked(recorded.device)->legacy_stream;
  return AddLocked(runtime, graph, {pDependencies, numDependencies}, RecordWork{recorded.mark},
                   pGraphNode);
}

/// As people write it, where CUDA gives the linker's name.
cudaError_t cudaFuncGetName(const char** name, const void* func) {
  Runtime& runtime = Runtime::Get();
  const Runtime::Lock lock(runtime.mutex());
  static std::map<const void*, std::string> names;
  const auto [found, is_new] = names.try_emplace(func);
  if (is_new) found->second = FunctionName(func);
  *name = found->second.c_str();
  return cudaSuccess;
}

}  // extern "C"

}  // namespace cuda_emulation
