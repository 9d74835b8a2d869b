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

/// The old rate fades as time goes by, and the requests of that time take its place.
double DrainRate::Update(Clock::time_point now, int64_t num_ended) {
  const double seconds = std::chrono::duration<double>(now - begin_).count();
  const int64_t count = num_ended - num_ended_;
  if (count == 0 || seconds <= 0) return per_second_;
  const bool is_first = num_ended_ == 0;
  const double kept = is_first ? 0 : std::exp(-seconds / kSeconds);
  if (!is_first)
    per_second_ = kept * per_second_ + (1 - kept) * static_cast<double>(count) / seconds;
  begin_ = now;
  num_ended_ = num_ended;
  return per_second_;
}

}  // namespace shoal
