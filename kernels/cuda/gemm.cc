#include "kernels/cuda/gemm.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/plan.h"
#include "kernels/status.h"

namespace shoal::cuda {
namespace {

// A model of a multiprocessor, in clock cycles, bytes and multiplications: rough, it only has to
// tell tiles apart.
constexpr double kMultiplyRate = 1100;  // multiplications per cycle by mma
constexpr double kMemoryRate = 18;      // bytes per cycle of each from device memory, if all read
constexpr double kCacheRate = 28;       // and from the cache
constexpr double kMaxCacheRate = 50;    // if only few read
constexpr double kMemoryLatency = 1500;
constexpr double kStepLatency = 200;  // of a step of the pipeline: its barrier and its chain of mma
constexpr int kReservedShared = 1024;  // bytes of each block

constexpr size_t kAlignment = 256;

int BlocksPerMultiprocessor(const Tile& tile, const Machine& machine) {
  return std::clamp(machine.shared_bytes / (SharedBytes(tile) + kReservedShared), 1, tile.blocks);
}

/// Cycles that a product takes.
double PredictCycles(const GemmArgs& args, const Tile& tile, const Machine& machine) {
  const RowGroups& groups = args.groups;
  const double used_groups = std::min(groups.num_groups, groups.num_rows);
  const double rows = groups.num_rows / used_groups;
  // Groups differ in size: one of more rows than the average should have no tile more.
  const double most_rows = used_groups > 1 ? rows + 2 * std::sqrt(rows) : rows;
  const double tiles =
      used_groups * DivideUp(args.num_outputs, tile.outputs) * std::ceil(most_rows / tile.rows);
  const int blocks = BlocksPerMultiprocessor(tile, machine);
  const double rounds = std::ceil(tiles / machine.multiprocessors / blocks);
  // Of one multiprocessor, and at once.
  const double own_tiles =
      rounds > 1 ? rounds * blocks : std::ceil(tiles / machine.multiprocessors);
  const double own_blocks = std::min<double>(own_tiles, blocks);

  const double step_bytes = (tile.outputs + std::min<double>(tile.rows, rows)) * 2 * kStageDepth;
  const double in_flight = own_blocks * (tile.stages - 1) * step_bytes;
  const double crowding = std::max(1.0, machine.multiprocessors / tiles);
  const double byte_rate =
      std::min({kMaxCacheRate, kCacheRate * crowding, in_flight / kMemoryLatency});
  const double products = static_cast<double>(tile.outputs) * tile.rows * kStageDepth;
  const double step =
      std::max({step_bytes / byte_rate, products / kMultiplyRate, kStepLatency / own_blocks});
  const double cycles = own_tiles * DivideUp(args.depth, kStageDepth) * step;
  const double weight_bytes = used_groups * args.num_outputs * args.depth * 2;
  return std::max(cycles, weight_bytes / machine.multiprocessors / kMemoryRate);
}

/// Where the parts of an Ffn's working memory begin, and its end.
struct Workspace {
  Workspace(const FfnShape& shape, int64_t num_rows) {
    hidden = Take(num_rows * shape.width * sizeof(BFloat16));
    offsets = Take((shape.num_experts + 1) * sizeof(int32_t));
    tile_offsets = Take((shape.num_experts + 1) * sizeof(int32_t));
    row_tokens = Take(num_rows * sizeof(int32_t));
    row_pairs = Take(num_rows * sizeof(int32_t));
    counts = Take(PlanCounts(static_cast<int>(shape.num_experts), num_rows) * sizeof(int32_t));
  }

  size_t Take(size_t bytes) {
    const size_t begin = end;
    end += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return begin;
  }

  size_t end = 0;
  size_t hidden, offsets, tile_offsets, row_tokens, row_pairs, counts;
};

GemmArgs ProductOf(const LinearArgs& args) {
  return {.groups = {.num_rows = static_cast<int>(args.num_tokens)},
          .weight = args.weight,
          .x = args.x,
          .bias = args.bias,
          .out = args.out,
          .x_stride = static_cast<int>(args.in_features),
          .num_outputs = static_cast<int>(args.num_outputs),
          .depth = static_cast<int>(args.in_features),
          .float_out = args.float_out};
}

/// An Ffn's two products and what they need first.
struct FfnSteps {
  PlanArgs plan = {};  // if gate_up.groups.offsets
  GemmArgs gate_up = {};
  GemmArgs down = {};
};

FfnSteps StepsOf(const FfnArgs& args) {
  SHOAL_CHECK(args.shape.num_experts <= kMaxExperts, "{} experts", args.shape.num_experts);
  const int64_t num_rows = args.num_tokens * args.num_routes;
  const Workspace places(args.shape, num_rows);
  auto* const workspace = static_cast<unsigned char*>(args.workspace);
  const auto ints = [&](size_t place) { return reinterpret_cast<int32_t*>(workspace + place); };

  RowGroups groups;
  groups.num_groups = static_cast<int>(args.shape.num_experts);
  groups.num_rows = static_cast<int>(num_rows);
  FfnSteps steps;
  GemmArgs& gate_up = steps.gate_up;
  GemmArgs& down = steps.down;
  gate_up.x_stride = gate_up.depth = down.num_outputs = static_cast<int>(args.shape.hidden_size);
  down.x_stride = down.depth = static_cast<int>(args.shape.width);
  gate_up.num_outputs = 2 * down.depth;
  if (args.expert_ids == nullptr) {
    groups.num_groups = 1;
  } else if (args.num_tokens == 1) {
    // The experts of a token differ, so there is nothing to sort.
    groups.expert_ids = args.expert_ids;
    groups.first_expert = args.first_expert;
    gate_up.x_stride = 0;
  } else {
    groups.offsets = ints(places.offsets);
    groups.tile_offsets = ints(places.tile_offsets);
    gate_up.x_rows = ints(places.row_tokens);
    down.out_rows = ints(places.row_pairs);
    steps.plan = {.expert_ids = args.expert_ids,
                  .first_expert = args.first_expert,
                  .num_experts = groups.num_groups,
                  .num_rows = groups.num_rows,
                  .num_routes = static_cast<int>(args.num_routes),
                  .offsets = ints(places.offsets),
                  .tile_offsets = ints(places.tile_offsets),
                  .row_tokens = ints(places.row_tokens),
                  .row_pairs = ints(places.row_pairs),
                  .counts = ints(places.counts)};
  }
  gate_up.groups = down.groups = groups;
  gate_up.weight = args.gate_up;
  gate_up.x = args.x;
  gate_up.out = workspace + places.hidden;
  down.weight = args.down;
  down.x = static_cast<const BFloat16*>(gate_up.out);
  down.out = args.rows;
  return steps;
}

void EnqueueFfn(FfnSteps& steps, const Cut& cut, cudaStream_t stream) {
  if (steps.gate_up.groups.offsets != nullptr) {
    steps.plan.tile_rows = kTiles[cut.tile].rows;
    EnqueuePlan(steps.plan, stream);
  }
  EnqueueSwiGlu(steps.gate_up, cut, stream);
  EnqueueProduct(steps.down, cut, stream);
}

bool IsEmpty(const FfnArgs& args) {
  return args.num_tokens == 0 || args.num_routes == 0 || args.shape.num_experts == 0;
}

}  // namespace

int64_t MaxTiles(const RowGroups& groups, int num_outputs, const Tile& tile) {
  const int64_t rows = groups.num_rows;
  int64_t row_tiles = DivideUp(rows, tile.rows);
  if (groups.expert_ids != nullptr) row_tiles = rows;
  // Each group may have one tile that is not full.
  if (groups.offsets != nullptr) {
    row_tiles = std::min<int64_t>(rows, rows / tile.rows + groups.num_groups);
  }
  return row_tiles * DivideUp(num_outputs, tile.outputs);
}

Machine ThisMachine() {
  int device = 0;
  cudaGetDevice(&device);
  Machine machine;
  cudaDeviceGetAttribute(&machine.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&machine.shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor,
                         device);
  cudaDeviceGetAttribute(&machine.block_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                         device);
  return machine;
}

Cut ChooseCut(const GemmArgs& args, const Machine& machine) {
  int best = 0;
  double least = 0;
  for (int i = 0; i < kNumTiles; ++i) {
    if (SharedBytes(kTiles[i]) > machine.block_shared_bytes) continue;
    const double cycles = PredictCycles(args, kTiles[i], machine);
    if (i > 0 && cycles >= least) continue;
    best = i;
    least = cycles;
  }
  return {best, machine.multiprocessors * BlocksPerMultiprocessor(kTiles[best], machine)};
}

void Linear(const LinearArgs& args, const Cut& cut, cudaStream_t stream) {
  if (args.num_tokens == 0 || args.num_outputs == 0) return;
  EnqueueProduct(ProductOf(args), cut, stream);
}

void Linear(const LinearArgs& args, cudaStream_t stream) {
  if (args.num_tokens == 0 || args.num_outputs == 0) return;
  Linear(args, ChooseCut(ProductOf(args), ThisMachine()), stream);
}

size_t FfnWorkspaceBytes(const FfnShape& shape, int64_t num_rows) {
  return Workspace(shape, num_rows).end;
}

void Ffn(const FfnArgs& args, const Cut& cut, cudaStream_t stream) {
  if (IsEmpty(args)) return;
  FfnSteps steps = StepsOf(args);
  EnqueueFfn(steps, cut, stream);
}

void Ffn(const FfnArgs& args, cudaStream_t stream) {
  if (IsEmpty(args)) return;
  FfnSteps steps = StepsOf(args);
  EnqueueFfn(steps, ChooseCut(steps.gate_up, ThisMachine()), stream);
}

}  // namespace shoal::cuda
