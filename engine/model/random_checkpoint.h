// Random checkpoints in the exact Hugging Face layout, for tests, demos and measurements.
#pragma once

#include <cstdint>
#include <string>

#include "engine/model/model_config.h"
#include "engine/model/weights.h"

namespace shoal {

/// Writes config.json, the safetensors shards and their index into `directory`, which is made if need be.
/// Norm weights are near one, all others normal with standard deviation initializer_range; each tensor
/// depends only on its name and `seed`. Weights are of config.torch_dtype. Existing files are replaced.
/// INTERNAL with the path if writing fails.
absl::Status WriteRandomCheckpoint(const ModelConfig& config, uint64_t seed, int64_t max_shard_bytes,
                                   const std::string& directory, const LoadProgress& progress);

}  // namespace shoal
