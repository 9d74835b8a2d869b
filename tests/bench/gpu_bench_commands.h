// The commands of gpu_bench.
#pragma once

#include "engine/model/weights.h"
#include "tests/bench/gpu_bench_gpu.h"
#include "tests/bench/gpu_bench_report.h"
#include "tests/bench/gpu_bench_scale.h"

namespace shoal::bench {

/// Bandwidth, matrix product and the time between kernels. First of every command: fractions are
/// of what is measured here.
void MeasureCeilings(const Scale& scale, Gpu& gpu, Report& report);

/// Every op of the forward pass by itself, over the layers of a whole model, so that no weight is
/// still in the cache when its turn comes again.
void MeasureKernels(const Scale& scale, Gpu& gpu, Report& report);

/// Whole steps of the model, as the engine runs them.
void MeasureModel(const Scale& scale, Gpu& gpu, Report& report);

/// Matrix products in each of the tiles that they can be cut into (kernels/cuda/gemm_tile.h): to be
/// held against the tile that is chosen.
void MeasureTiles(const Scale& scale, Gpu& gpu, Report& report);

/// A model of the scale with random weights. Ends the process if it does not fit.
ModelWeights MakeModel(const ModelConfig& config, Gpu& gpu);

}  // namespace shoal::bench
