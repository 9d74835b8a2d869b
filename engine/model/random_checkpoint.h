// Random checkpoints in the exact Hugging Face layout, for tests, demos and measurements.
#pragma once

#include <cstdint>
#include <string>

#include "engine/model/model_config.h"
#include "engine/model/weights.h"

namespace shoal {

/// Writes config.json, generation_config.json and the weights into `directory`, which is made if
/// need be: model.safetensors, or shards of at most `max_shard_bytes` bytes of data with their
/// index. Weights are of config.torch_dtype, normally distributed (65,536 quantiles) with standard
/// deviation initializer_range around zero, norms around one; each tensor depends only on its name
/// and `seed`. A checkpoint that is there is removed; config.json
/// comes last, so that a directory with one is whole. `progress` counts bytes written. INTERNAL
/// with the path if writing fails.
absl::Status WriteRandomCheckpoint(const ModelConfig& config, uint64_t seed,
                                   int64_t max_shard_bytes, const std::string& directory,
                                   const LoadProgress& progress);

}  // namespace shoal
