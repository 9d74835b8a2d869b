#include "server/bench_metrics.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>

#include "engine/model/roofline.h"

namespace shoal {
namespace {

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

double Milliseconds(Clock::duration duration) { return Seconds(duration) * 1e3; }

double Percentile(const std::vector<double>& sorted, double percent) {
  const double rank = percent / 100 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], rank - static_cast<double>(below));
}

/// What one step gave.
struct StepTokens {
  int64_t count = 0;
  int64_t context = 0;     // tokens that they attended to, together
  bool all_follow = true;  // each followed a token of the step before
};

}  // namespace

Distribution Distribution::Of(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  const auto count = static_cast<double>(values.size());
  const double mean = std::reduce(values.begin(), values.end()) / count;
  const double squares =
      std::transform_reduce(values.begin(), values.end(), 0.0, std::plus<>(),
                            [mean](double value) { return (value - mean) * (value - mean); });
  return {.mean = mean,
          .median = Percentile(values, 50),
          .std = std::sqrt(squares / count),
          .p99 = Percentile(values, 99)};
}

BenchMetrics BenchMetrics::Of(std::span<const RequestTrace> traces) {
  BenchMetrics metrics;
  std::vector<double> ttft, tpot, itl, e2el;
  Clock::time_point begin = Clock::time_point::max(), end = Clock::time_point::min();
  for (const RequestTrace& trace : traces) {
    if (!trace.completed || trace.tokens.empty()) {
      ++metrics.failed;
      continue;
    }
    ++metrics.completed;
    metrics.total_input_tokens += trace.num_input_tokens;
    metrics.total_output_tokens += std::ssize(trace.tokens);
    begin = std::min(begin, trace.sent);
    end = std::max(end, trace.tokens.back());
    ttft.push_back(Milliseconds(trace.tokens.front() - trace.sent));
    e2el.push_back(Milliseconds(trace.tokens.back() - trace.sent));
    for (size_t i = 1; i < trace.tokens.size(); ++i) {
      itl.push_back(Milliseconds(trace.tokens[i] - trace.tokens[i - 1]));
    }
    if (trace.tokens.size() > 1) {
      tpot.push_back(Milliseconds(trace.tokens.back() - trace.tokens.front()) /
                     static_cast<double>(trace.tokens.size() - 1));
    }
  }
  if (metrics.completed == 0) return metrics;
  metrics.duration = Seconds(end - begin);
  const auto per_second = [&](int64_t count) {
    return static_cast<double>(count) / std::max(metrics.duration, 1e-9);
  };
  metrics.request_throughput = per_second(metrics.completed);
  metrics.output_throughput = per_second(metrics.total_output_tokens);
  metrics.total_token_throughput =
      per_second(metrics.total_input_tokens + metrics.total_output_tokens);
  metrics.ttft_ms = Distribution::Of(std::move(ttft));
  metrics.tpot_ms = Distribution::Of(std::move(tpot));
  metrics.itl_ms = Distribution::Of(std::move(itl));
  metrics.e2el_ms = Distribution::Of(std::move(e2el));
  return metrics;
}

DecodeSteps DecodeSteps::Of(std::span<const RequestTrace> traces, const ModelConfig& model,
                            DType dtype) {
  std::map<Clock::time_point, StepTokens> steps;
  for (const RequestTrace& trace : traces) {
    for (const Clock::time_point token : trace.tokens) steps[token];
  }
  for (const RequestTrace& trace : traces) {
    for (size_t i = 0; i < trace.tokens.size(); ++i) {
      const auto step = steps.find(trace.tokens[i]);
      ++step->second.count;
      step->second.context += trace.num_input_tokens + static_cast<int64_t>(i);
      step->second.all_follow &=
          i > 0 && step != steps.begin() && std::prev(step)->first == trace.tokens[i - 1];
    }
    // While its prompt is read, steps are not of decoding alone. It may wait in between.
    if (trace.tokens.empty()) continue;
    const auto last = steps.find(trace.tokens.front());
    for (auto step = steps.upper_bound(trace.first_scheduled); step != last; ++step) {
      if (step == steps.end()) break;
      step->second.all_follow = false;
    }
  }
  DecodeSteps decode;
  for (auto step = steps.begin(); step != steps.end(); ++step) {
    if (!step->second.all_follow) continue;
    ++decode.count;
    decode.seconds += Seconds(step->first - std::prev(step)->first);
    decode.bytes +=
        ForwardBytes(model, dtype, DecodeWork(model, step->second.count, step->second.context));
  }
  return decode;
}

std::optional<double> DecodeSteps::FractionOfRoofline(double bytes_per_second) const {
  if (count == 0 || seconds <= 0 || bytes_per_second <= 0) return std::nullopt;
  return bytes / bytes_per_second / seconds;
}

}  // namespace shoal
