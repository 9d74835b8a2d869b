#include "server/admin/engine_metrics.h"

#include <algorithm>
#include <limits>

namespace shoal {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

/// Collects families whose series all have the same labels first.
class Families {
 public:
  explicit Families(const MetricLabels& labels) : labels_(labels) {}

  /// A family without a series yet.
  void Begin(const char* name, const char* help, MetricType type) {
    families_.push_back({.name = name, .help = help, .type = type, .metric = {}});
  }
  /// A series of the last family. `more` are its own labels.
  void Add(double value, const MetricLabels& more = {}) {
    ClientMetric& metric = NewSeries(more);
    const bool is_counter = families_.back().type == MetricType::Counter;
    (is_counter ? metric.counter.value : metric.gauge.value) = value;
  }

  void Gauge(const char* name, const char* help, double value) {
    Begin(name, help, MetricType::Gauge);
    Add(value);
  }
  void Counter(const char* name, const char* help, int64_t value) {
    Begin(name, help, MetricType::Counter);
    Add(static_cast<double>(value));
  }
  void AddHistogram(const char* name, const char* help, const Histogram& histogram) {
    Begin(name, help, MetricType::Histogram);
    ClientMetric::Histogram& series = NewSeries({}).histogram;
    for (size_t i = 0; i < histogram.counts.size(); ++i) {
      series.sample_count += static_cast<uint64_t>(histogram.counts[i]);
      const double bound = i < histogram.bounds.size() ? histogram.bounds[i]
                                                       : std::numeric_limits<double>::infinity();
      series.bucket.push_back({.cumulative_count = series.sample_count, .upper_bound = bound});
    }
    series.sample_sum = histogram.sum;
  }

  std::vector<MetricFamily> Take() { return std::move(families_); }

 private:
  ClientMetric& NewSeries(MetricLabels labels) {
    labels.insert(labels_.begin(), labels_.end());
    ClientMetric& metric = families_.back().metric.emplace_back();
    for (const auto& [name, value] : labels) metric.label.push_back({name, value});
    return metric;
  }

  const MetricLabels labels_;
  std::vector<MetricFamily> families_;
};

void AddQueue(const EngineStats& stats, Families& families) {
  const SchedulerStats& scheduler = stats.scheduler;
  families.Gauge("vllm:num_requests_running", "Requests that run.", scheduler.num_running);
  families.Gauge("vllm:num_requests_waiting", "Requests that wait to run.", scheduler.num_waiting);
  families.Gauge("shoal:num_waiting_tokens", "Tokens of the requests that wait to run.",
                 static_cast<double>(scheduler.num_waiting_tokens));
  families.Gauge("shoal:num_requests_reserved", "Requests with a place in the queue, to come.",
                 static_cast<double>(stats.num_reserved));
  const auto is_present = [](const Tenant& tenant) {
    return tenant.num_waiting + tenant.num_running > 0;
  };
  families.Gauge("shoal:num_tenants", "Tenants of the requests that wait or run.",
                 static_cast<double>(std::ranges::count_if(stats.tenants, is_present)));
  families.Gauge("shoal:requests_per_second", "Requests that ended, of late.",
                 stats.requests_per_second);
  families.Counter("vllm:num_preemptions_total", "Preemptions for want of KV cache blocks.",
                   scheduler.num_preemptions);
}

void AddCache(const EngineStats& stats, int32_t block_size, Families& families) {
  const BlockPoolStats all = stats.AllBlocks();
  const double used = all.num_blocks - all.num_free;
  families.Gauge("vllm:kv_cache_usage_perc", "Part of the KV cache blocks in use, 0 to 1.",
                 used / std::max(all.num_blocks, 1));
  families.Begin("shoal:kv_blocks",
                 "KV cache blocks: of one sequence, of several, of none but with a known prefix, "
                 "of none.",
                 MetricType::Gauge);
  for (size_t rank = 0; rank < stats.blocks.size(); ++rank) {
    const BlockPoolStats& blocks = stats.blocks[rank];
    const auto add = [&](const char* state, int32_t count) {
      families.Add(count, {{"rank", std::to_string(rank)}, {"state", state}});
    };
    add("active", blocks.num_blocks - blocks.num_free - blocks.num_shared);
    add("shared", blocks.num_shared);
    add("cached", blocks.num_cached);
    add("free", blocks.num_free - blocks.num_cached);
  }
  families.Counter("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache.",
                   all.prefix_queries_tokens);
  families.Counter("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache.",
                   all.prefix_hits_tokens);
  families.Begin("vllm:cache_config_info", "Size of the KV cache.", MetricType::Gauge);
  families.Add(1, {{"block_size", std::to_string(block_size)},
                   {"num_gpu_blocks", std::to_string(all.num_blocks)}});
}

void AddSteps(const EngineStats& stats, Families& families) {
  const SchedulerStats& scheduler = stats.scheduler;
  families.Begin("shoal:step_sequences", "Sequences of the last step, by what they do.",
                 MetricType::Gauge);
  families.Add(scheduler.step_prefills, {{"kind", "prefill"}});
  families.Add(scheduler.step_decodes, {{"kind", "decode"}});
  families.Begin("shoal:step_batch_tokens", "Tokens of the last step, by what they are.",
                 MetricType::Gauge);
  families.Add(static_cast<double>(scheduler.step_prefill_tokens), {{"kind", "prefill"}});
  families.Add(static_cast<double>(scheduler.step_decode_tokens), {{"kind", "decode"}});
  families.AddHistogram("vllm:iteration_tokens_total", "Tokens per step.", stats.step_tokens);
  families.AddHistogram("shoal:step_seconds", "Time per step.", stats.step_seconds);
}

void AddTokens(const SchedulerStats& scheduler, Families& families) {
  families.Counter("vllm:prompt_tokens_total", "Prompt tokens processed.", scheduler.prompt_tokens);
  families.Counter("vllm:generation_tokens_total", "Tokens generated.",
                   scheduler.generation_tokens);
  families.Begin("shoal:computed_tokens_total",
                 "Tokens that steps computed: of prompts, generated ones, either again after a "
                 "preemption, and in vain.",
                 MetricType::Counter);
  const auto computed = [&](const char* kind, int64_t count) {
    families.Add(static_cast<double>(count), {{"kind", kind}});
  };
  computed("prefill", scheduler.prefill_tokens);
  computed("decode", scheduler.decode_tokens);
  computed("recomputed", scheduler.recomputed_tokens);
  computed("discarded", scheduler.discarded_tokens);
  families.Counter("vllm:spec_decode_num_drafts_total", "Times that tokens were drafted.",
                   scheduler.num_drafts);
  families.Counter("vllm:spec_decode_num_draft_tokens_total", "Tokens drafted.",
                   scheduler.drafted_tokens);
  families.Counter("vllm:spec_decode_num_accepted_tokens_total", "Drafted tokens that were right.",
                   scheduler.accepted_tokens);
}

}  // namespace

std::vector<MetricFamily> EngineMetrics(const EngineStats& stats, int32_t block_size,
                                        const MetricLabels& labels) {
  Families families(labels);
  AddQueue(stats, families);
  AddCache(stats, block_size, families);
  AddSteps(stats, families);
  AddTokens(stats.scheduler, families);
  return families.Take();
}

}  // namespace shoal
