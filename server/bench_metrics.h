// BenchMetrics: from when each token came to what `shoal bench` reports.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/model/model_config.h"
#include "engine/request/request.h"

namespace shoal {

/// What became of one request.
struct RequestTrace {
  int64_t num_input_tokens = 0;
  Clock::time_point sent = {};
  Clock::time_point first_scheduled = {};      // left the queue
  std::vector<Clock::time_point> tokens = {};  // when each was there
  bool completed = false;
};

/// Mean, median, standard deviation and 99th percentile (linear between ranks), as NumPy has them;
/// 0 of no values.
struct Distribution {
  double mean = 0;
  double median = 0;
  double std = 0;
  double p99 = 0;

  static Distribution Of(std::vector<double> values);
};

/// Names and units are those of `vllm bench serve`.
struct BenchMetrics {
  double duration = 0;  // seconds, from the first request sent to the last token
  int64_t completed = 0;
  int64_t failed = 0;
  int64_t total_input_tokens = 0;  // of completed requests
  int64_t total_output_tokens = 0;
  double request_throughput = 0;      // requests/s
  double output_throughput = 0;       // tokens/s
  double total_token_throughput = 0;  // tokens/s, of prompts too
  Distribution ttft_ms;               // time to first token
  Distribution tpot_ms;  // time per output token after the first, in the mean of a request
  Distribution itl_ms;   // inter-token latency: each gap between two tokens
  Distribution e2el_ms;  // end-to-end latency

  static BenchMetrics Of(std::span<const RequestTrace> traces);
};

/// Steps in which every sequence that ran got one more token, and no prompt was read.
struct DecodeSteps {
  int64_t count = 0;
  double seconds = 0;  // of all
  double bytes = 0;    // that they had to read: ForwardBytes of DecodeWork

  /// Steps are told apart by the times of their tokens.
  static DecodeSteps Of(std::span<const RequestTrace> traces, const ModelConfig& model,
                        DType dtype);

  /// How much of the time reading the bytes takes at best; none without such steps. Above 1 if a
  /// model is so small that it stays in the caches, which are faster than the memory.
  std::optional<double> FractionOfRoofline(double bytes_per_second) const;
};

}  // namespace shoal
