// Metrics: what Prometheus reads. Names are vLLM's where the meaning is the same.
#pragma once

#include <array>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>

#include "engine/engine.h"
#include "server/service/generation_service.h"

namespace prometheus {
class Histogram;
class Registry;
template <typename T>
class Family;
class Counter;
}  // namespace prometheus

namespace shoal {

/// Counts requests and reads the engine at each scrape. The number of series is bounded: labels are
/// the model's name, route patterns, known methods, status codes and finish reasons. Thread: any.
class Metrics final : public GenerationObserver {
 public:
  /// `model_name` is the label of all engine metrics.
  explicit Metrics(std::string model_name);
  ~Metrics() override;

  /// Engine metrics appear from here on. `stats` must stay callable until ClearEngine().
  void SetEngine(std::function<EngineStats()> stats, int32_t block_size);
  void ClearEngine();

  void OnFirstToken(double seconds_since_arrival) override;
  void OnNextToken(double seconds_since_previous) override;
  void OnFinished(FinishReason reason, absl::StatusCode error, double seconds_since_arrival,
                  std::optional<double> queue_seconds, const Usage& usage) override;

  /// `route` is a pattern of the route table; empty: refused before a route was found.
  void OnHttpRequest(std::string_view route, std::string_view method, int status, double seconds);

  /// All metrics in Prometheus' text format 0.0.4.
  std::string Text() const;

 private:
  const std::string model_name_;
  const std::unique_ptr<prometheus::Registry> registry_;
  std::array<prometheus::Counter*, 5> finished_;  // by FinishReason; the last: deadline exceeded
  prometheus::Histogram& time_to_first_token_;
  prometheus::Histogram& queue_time_;
  prometheus::Histogram& inter_token_latency_;
  prometheus::Histogram& request_latency_;
  prometheus::Histogram& prompt_tokens_;
  prometheus::Histogram& generation_tokens_;
  prometheus::Family<prometheus::Counter>& http_requests_;
  prometheus::Family<prometheus::Histogram>& http_duration_;

  mutable std::mutex mutex_;
  std::function<EngineStats()> engine_stats_;
  int32_t block_size_ = 0;
};

}  // namespace shoal
