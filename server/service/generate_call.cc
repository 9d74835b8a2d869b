#include "server/service/generate_call.h"

#include "server/service/field_error.h"

namespace shoal {
namespace {

constexpr int kMaxChoices = 16;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr size_t kMaxNameBytes = 256;  // of a user or salt
constexpr float kMaxBias = 100;

/// `low_excluded`: `low` itself is out of range.
template <typename T>
absl::Status CheckRange(const char* field, T value, T low, T high, bool low_excluded = false) {
  // Written so that NaN fails.
  if ((low_excluded ? value > low : value >= low) && value <= high) return absl::OkStatus();
  return FieldError(field, fmt::format("{} must be {} {} and at most {}, but is {}", field,
                                       low_excluded ? "above" : "at least", low, high, value));
}

absl::Status CheckCount(const char* field, size_t count, size_t limit) {
  if (count <= limit) return absl::OkStatus();
  return FieldError(
      field, fmt::format("{} must have at most {} entries, but has {}", field, limit, count));
}

absl::Status CheckBytes(const char* field, const std::string& text) {
  if (text.size() <= kMaxNameBytes) return absl::OkStatus();
  return FieldError(field, fmt::format("{} must have at most {} bytes, but has {}", field,
                                       kMaxNameBytes, text.size()));
}

absl::Status CheckChoices(const GenerateCall& call) {
  RETURN_IF_ERROR(CheckRange("n", call.n, 1, kMaxChoices));
  if (call.num_generated() >= call.n && call.num_generated() <= kMaxChoices) {
    return absl::OkStatus();
  }
  return FieldError("best_of",
                    fmt::format("best_of must be at least n, which is {}, and at most {}, but is "
                                "{}",
                                call.n, kMaxChoices, *call.best_of));
}

absl::Status CheckStops(const GenerateCall& call) {
  RETURN_IF_ERROR(CheckCount("stop", call.stop.size(), kMaxStops));
  for (const std::string& stop : call.stop) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return FieldError("stop", fmt::format("stop strings must have 1 to {} bytes, but one has {}",
                                            kMaxStopBytes, stop.size()));
    }
  }
  return CheckCount("stop_token_ids", call.stop_token_ids.size(), kMaxStops);
}

absl::Status CheckLogitBias(const GenerateCall& call) {
  RETURN_IF_ERROR(
      CheckCount("logit_bias", call.logit_bias.size(), SamplingParams::kMaxLogitBiases));
  for (const auto& [token_id, bias] : call.logit_bias) {
    if (bias >= -kMaxBias && bias <= kMaxBias) continue;
    return FieldError("logit_bias", fmt::format("logit_bias must be at least {} and at most {}, "
                                                "but is {} for token {}",
                                                -kMaxBias, kMaxBias, bias, token_id));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRanges(const GenerateCall& call) {
  constexpr bool kLowExcluded = true;
  RETURN_IF_ERROR(CheckChoices(call));
  RETURN_IF_ERROR(CheckRange("temperature", call.temperature, 0.0f, 2.0f));
  RETURN_IF_ERROR(CheckRange("top_p", call.top_p, 0.0f, 1.0f, kLowExcluded));
  RETURN_IF_ERROR(CheckRange("min_p", call.min_p, 0.0f, 1.0f));
  RETURN_IF_ERROR(CheckRange("typical_p", call.typical_p, 0.0f, 1.0f, kLowExcluded));
  RETURN_IF_ERROR(CheckRange("presence_penalty", call.presence_penalty, -2.0f, 2.0f));
  RETURN_IF_ERROR(CheckRange("frequency_penalty", call.frequency_penalty, -2.0f, 2.0f));
  RETURN_IF_ERROR(
      CheckRange("repetition_penalty", call.repetition_penalty, 0.0f, 10.0f, kLowExcluded));
  if (call.top_k < -1) {
    return FieldError("top_k", fmt::format("top_k must be at least -1, but is {}", call.top_k));
  }
  if (call.logprobs) RETURN_IF_ERROR(CheckRange("logprobs", *call.logprobs, 0, kMaxTopLogprobs));
  if (call.min_tokens < 0) {
    return FieldError("min_tokens",
                      fmt::format("min_tokens must be at least 0, but is {}", call.min_tokens));
  }
  RETURN_IF_ERROR(CheckStops(call));
  RETURN_IF_ERROR(CheckLogitBias(call));
  RETURN_IF_ERROR(CheckBytes("user", call.user));
  return CheckBytes("cache_salt", call.cache_salt);
}

}  // namespace shoal
