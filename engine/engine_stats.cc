#include "engine/engine_stats.h"

#include <algorithm>
#include <cmath>

namespace shoal {

Histogram Histogram::Exponential(double first, double factor, int count) {
  Histogram histogram;
  for (int i = 0; i < count; ++i) histogram.bounds.push_back(first * std::pow(factor, i));
  histogram.counts.resize(histogram.bounds.size() + 1);
  return histogram;
}

void Histogram::Add(double value) {
  const auto range = std::ranges::lower_bound(bounds, value) - bounds.begin();
  ++counts[static_cast<size_t>(range)];
  sum += value;
}

BlockPoolStats EngineStats::AllBlocks() const {
  BlockPoolStats all;
  for (const BlockPoolStats& rank : blocks) {
    all.num_blocks += rank.num_blocks;
    all.num_free += rank.num_free;
    all.num_cached += rank.num_cached;
    all.num_shared += rank.num_shared;
    all.prefix_queries_tokens += rank.prefix_queries_tokens;
    all.prefix_hits_tokens += rank.prefix_hits_tokens;
  }
  return all;
}

double DrainRate::Update(Clock::time_point now, int64_t num_ended) {
  const double seconds = std::chrono::duration<double>(now - last_).count();
  const double kept = std::exp(-seconds / kSeconds);
  recent_ended_ = kept * recent_ended_ + static_cast<double>(num_ended - num_ended_);
  recent_seconds_ = kept * recent_seconds_ + seconds;
  last_ = now;
  num_ended_ = num_ended;
  return recent_seconds_ > 0 ? recent_ended_ / recent_seconds_ : 0;
}

}  // namespace shoal
