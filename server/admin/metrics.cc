#include "server/admin/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <map>
#include <vector>

#include "server/admin/engine_metrics.h"

namespace shoal {
namespace {

using Labels = MetricLabels;
using Buckets = prometheus::Histogram::BucketBoundaries;

// vLLM's bounds, with finer ones below: small models answer in milliseconds.
const Buckets kFirstTokenSeconds = {.001, .002, .005, .01, .02, .04, .06, .08, .1, .25, .5,
                                    .75,  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640};
const Buckets kInterTokenSeconds = {.0005, .001, .002, .003, .005, .0075, .01, .025, .05,
                                    .075,  .1,   .15,  .2,   .3,   .4,    .5,  .75,  1,
                                    2.5,   5,    7.5,  10,   20,   40,    80};
const Buckets kRequestSeconds = {.01, .03, .1, .3, .5, .8, 1,  1.5, 2,   2.5, 5,
                                 10,  15,  20, 30, 40, 50, 60, 120, 240, 480, 960};
const Buckets kTokens = {1,   2,    5,    10,   20,    50,    100,   200,
                         500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};
const Buckets kHttpSeconds = {.001, .005, .01, .05, .1, .5, 1, 5, 10, 50, 100, 500};

Labels EngineLabels(const std::string& model_name) {
  return {{"engine", "0"}, {"model_name", model_name}};
}

prometheus::Histogram& AddHistogram(prometheus::Registry& registry, const std::string& model_name,
                                    const std::string& name, const std::string& help,
                                    const Buckets& buckets) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(
      EngineLabels(model_name), buckets);
}

std::string_view KnownMethod(std::string_view method) {
  for (const std::string_view known : {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}) {
    if (method == known) return known;
  }
  return "other";
}

}  // namespace

Metrics::Metrics(std::string model_name)
    : model_name_(std::move(model_name)),
      registry_(std::make_unique<prometheus::Registry>()),
      time_to_first_token_(AddHistogram(*registry_, model_name_, "vllm:time_to_first_token_seconds",
                                        "From arrival to the first token.", kFirstTokenSeconds)),
      queue_time_(AddHistogram(*registry_, model_name_, "vllm:request_queue_time_seconds",
                               "From arrival to the first step.", kRequestSeconds)),
      inter_token_latency_(AddHistogram(*registry_, model_name_, "vllm:inter_token_latency_seconds",
                                        "From one token to the next.", kInterTokenSeconds)),
      request_latency_(AddHistogram(*registry_, model_name_, "vllm:e2e_request_latency_seconds",
                                    "From arrival to the end.", kRequestSeconds)),
      prompt_tokens_(AddHistogram(*registry_, model_name_, "vllm:request_prompt_tokens",
                                  "Prompt tokens per request.", kTokens)),
      generation_tokens_(AddHistogram(*registry_, model_name_, "vllm:request_generation_tokens",
                                      "Generated tokens per request.", kTokens)),
      http_requests_(prometheus::BuildCounter()
                         .Name("http_requests_total")
                         .Help("HTTP requests by route, method and status.")
                         .Register(*registry_)),
      http_duration_(
          prometheus::BuildHistogram()
              .Name("http_request_duration_seconds")
              .Help("From the first byte of an HTTP request to the last of its response.")
              .Register(*registry_)) {
  auto& finished = prometheus::BuildCounter()
                       .Name("vllm:request_success_total")
                       .Help("Requests that ended, by reason.")
                       .Register(*registry_);
  const char* const reasons[] = {"stop", "length", "abort", "error", "deadline"};
  for (size_t i = 0; i < finished_.size(); ++i) {
    Labels labels = EngineLabels(model_name_);
    labels["finished_reason"] = reasons[i];
    finished_[i] = &finished.Add(labels);
  }
}

Metrics::~Metrics() = default;

void Metrics::SetEngine(std::function<EngineStats()> stats, int32_t block_size) {
  std::lock_guard lock(mutex_);
  engine_stats_ = std::move(stats);
  block_size_ = block_size;
}

void Metrics::ClearEngine() { SetEngine(nullptr, 0); }

void Metrics::OnFirstToken(double seconds_since_arrival) {
  time_to_first_token_.Observe(seconds_since_arrival);
}

void Metrics::OnNextToken(double seconds_since_previous) {
  inter_token_latency_.Observe(seconds_since_previous);
}

void Metrics::OnFinished(FinishReason reason, absl::StatusCode error, double seconds_since_arrival,
                         std::optional<double> queue_seconds, const Usage& usage) {
  const bool is_late = error == absl::StatusCode::kDeadlineExceeded;
  (is_late ? finished_.back() : finished_[static_cast<size_t>(reason)])->Increment();
  request_latency_.Observe(seconds_since_arrival);
  if (queue_seconds) queue_time_.Observe(*queue_seconds);
  prompt_tokens_.Observe(static_cast<double>(usage.prompt_tokens));
  generation_tokens_.Observe(static_cast<double>(usage.completion_tokens));
}

void Metrics::OnHttpRequest(std::string_view route, std::string_view method, int status,
                            double seconds) {
  const std::string handler(route.empty() ? "none" : route);
  const std::string known_method(KnownMethod(method));
  http_requests_
      .Add({{"handler", handler}, {"method", known_method}, {"status", std::to_string(status)}})
      .Increment();
  http_duration_.Add({{"handler", handler}, {"method", known_method}}, kHttpSeconds)
      .Observe(seconds);
}

std::string Metrics::Text() const {
  std::vector<prometheus::MetricFamily> families = registry_->Collect();
  {
    std::lock_guard lock(mutex_);
    if (engine_stats_) {
      for (prometheus::MetricFamily& family :
           EngineMetrics(engine_stats_(), block_size_, EngineLabels(model_name_))) {
        families.push_back(std::move(family));
      }
    }
  }
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace shoal
