// What Prometheus reads of a snapshot of the engine.
#pragma once

#include <prometheus/metric_family.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace shoal {

using MetricLabels = std::map<std::string, std::string>;

/// The metrics of `stats`, with `labels` on each. Names are vLLM's where the meaning is the same,
/// ours begin with "shoal:". The number of series depends on the number of ranks alone.
std::vector<prometheus::MetricFamily> EngineMetrics(const EngineStats& stats, int32_t block_size,
                                                    const MetricLabels& labels);

}  // namespace shoal
