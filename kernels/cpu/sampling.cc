#include "kernels/cpu/sampling.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cpu/philox.h"

namespace shoal {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The first `count` <= 16 lanes; the others are -inf.
SHOAL_INLINE void LoadLogits(const float* from, int64_t count, Vec& to) {
  if (count >= kLanes) return Load(from, to);
  Fill(-kInfinity, to);
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

/// The highest of n logits; NaN if one of them is NaN or +inf.
struct HighestLogit {
  struct Args {
    const float* logits = nullptr;
    int64_t n = 0;
    float* highest = nullptr;
  };

  template <Isa isa>
  static SHOAL_INLINE void Run(const Args& args) {
    Vec highest, v, zero = {};
    Fill(-kInfinity, highest);
    for (int64_t i = 0; i < args.n; i += kLanes) {
      LoadLogits(args.logits + i, args.n - i, v);
      Max(v, highest, highest);
      // Stays 0 unless a lane was NaN. NOLINTNEXTLINE(misc-redundant-expression)
      zero = zero + (v == v ? Vec{} : v);
    }
    const float most = ReduceMax(highest);
    const bool bad = ReduceAdd(zero) != 0 || most == kInfinity;
    *args.highest = bad ? std::numeric_limits<float>::quiet_NaN() : most;
  }
};

/// out[i] = e^((logits[i] - highest) / temperature) for n logits, out padded to a multiple of 16
/// (or null); and the sum of them.
struct ExpLogits {
  struct Args {
    const float* logits = nullptr;
    int64_t n = 0;
    float highest = 0;
    float temperature = 1;
    float* out = nullptr;
    float* sum = nullptr;
  };

  template <Isa isa>
  static SHOAL_INLINE void Run(const Args& args) {
    Vec sum = {}, v;
    for (int64_t i = 0; i < args.n; i += kLanes) {
      LoadLogits(args.logits + i, args.n - i, v);
      Exp((v - args.highest) / args.temperature, v);
      if (args.out != nullptr) Store(v, args.out + i);
      sum = sum + v;
    }
    *args.sum = ReduceAdd(sum);
  }
};

/// Unsigned order that falls as the logit rises; +0 and -0 are alike.
uint32_t RankOf(float logit) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

/// The `count` highest logits by falling value, ties to the lower id, as log probabilities.
void FindTopLogprobs(const float* logits, int64_t vocab, int64_t count, float log_total,
                     SampledRow& out) {
  std::array<float, kMaxTopLogprobs> top;
  int64_t found = 0;
  for (int32_t id = 0; id < vocab; ++id) {
    if (found == count && !(found > 0 && logits[id] > top[found - 1])) continue;
    int64_t at = found < count ? found++ : found - 1;
    for (; at > 0 && logits[id] > top[at - 1]; --at) {
      top[at] = top[at - 1];
      out.top_ids[at] = out.top_ids[at - 1];
    }
    top[at] = logits[id];
    out.top_ids[at] = id;
  }
  for (int64_t i = 0; i < found; ++i) out.top_logprobs[i] = top[i] - log_total;
}

}  // namespace

SampledRow RowSampler::Sample(Isa isa, const float* logits, int64_t vocab, const SamplingRow& row) {
  SHOAL_CHECK(row.forced_token < vocab && row.top_logprobs <= kMaxTopLogprobs,
              "forced token {} of {}, {} top logprobs", row.forced_token, vocab, row.top_logprobs);
  SampledRow out;
  float highest = 0;
  RunKernel<HighestLogit>(isa, {.logits = logits, .n = vocab, .highest = &highest});
  if (!std::isfinite(highest)) return out;
  if (row.forced_token >= 0) {
    out.token_id = row.forced_token;
  } else if (row.temperature <= 0) {
    out.token_id = static_cast<int32_t>(std::find(logits, logits + vocab, highest) - logits);
  } else {
    out.token_id = Draw(isa, logits, vocab, highest, row);
  }
  if (row.top_logprobs >= 0) {
    float sum = 0;
    RunKernel<ExpLogits>(isa, {.logits = logits, .n = vocab, .highest = highest, .sum = &sum});
    const float log_total = highest + std::log(sum);
    out.logprob = logits[out.token_id] - log_total;
    FindTopLogprobs(logits, vocab, row.top_logprobs, log_total, out);
  }
  return out;
}

/// Scales, drops unlikely tokens (min_p, top_k, top_p), then inverts the distribution function of
/// the rest, in the order of their ids, at one random number.
int32_t RowSampler::Draw(Isa isa, const float* logits, int64_t vocab, float highest,
                         const SamplingRow& row) {
  float* weights = weights_.Reserve(RoundUpToLanes(vocab));
  float sum = 0;
  RunKernel<ExpLogits>(isa, {.logits = logits,
                             .n = vocab,
                             .highest = highest,
                             .temperature = row.temperature,
                             .out = weights,
                             .sum = &sum});
  // Saves ranking the tail: all tokens this unlikely have at most half of what top_p drops.
  const float negligible = row.min_p <= 0 && row.top_k <= 0 && row.top_p < 1
                               ? (1 - row.top_p) * sum / (2 * static_cast<float>(vocab))
                               : 0;
  Candidate* candidates = candidates_.Reserve(vocab);
  int64_t count = 0;
  double total = 0;
  for (int32_t id = 0; id < vocab; ++id) {
    // Without branches, which random logits would make unpredictable.
    const bool likely = weights[id] > 0 && weights[id] >= row.min_p;
    total += likely ? weights[id] : 0.0f;
    candidates[count] = {.rank = RankOf(logits[id]), .id = id, .weight = weights[id]};
    count += likely && weights[id] >= negligible;
  }
  const auto weight = [](const Candidate& candidate) { return double{candidate.weight}; };
  const auto add_weights = [&] {
    total = 0;
    for (int64_t i = 0; i < count; ++i) total += weight(candidates[i]);
  };
  if (row.top_k > 0 && row.top_k < count) {
    count = KeepMostLikely(candidates, count, row.top_k, [](const Candidate&) { return 1.0; });
    add_weights();
  }
  if (row.top_p < 1) {
    count = KeepMostLikely(candidates, count, row.top_p * total, weight);
    add_weights();
  }
  double left = PhiloxUniform(row.seed, row.position) * total;
  for (int64_t i = 0; i + 1 < count; ++i) {
    left -= weight(candidates[i]);
    if (left < 0) return candidates[i].id;
  }
  return candidates[count - 1].id;
}

/// Keeps the fewest most likely candidates whose weights add up to `target`, at least one, ties to
/// the lower id; returns their number. Candidates stay in the order of their ids. The lowest rank
/// that is needed is found 11 bits at a time, by the weight that falls on each value of the bits.
template <typename Weight>
int64_t RowSampler::KeepMostLikely(Candidate* candidates, int64_t count, double target,
                                   const Weight& weight) {
  constexpr int kDigitBits = 11;
  double missing = std::max(target, std::numeric_limits<double>::min());
  uint64_t last_rank = 0;
  for (int shift = 2 * kDigitBits; shift >= 0; shift -= kDigitBits) {
    std::array<double, 1 << kDigitBits> masses = {};
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t digits = candidates[i].rank >> shift;
      if (digits >> kDigitBits != last_rank) continue;
      masses[digits & (masses.size() - 1)] += weight(candidates[i]);
    }
    size_t digit = 0;
    for (size_t i = 0; i < masses.size(); ++i) {
      if (masses[i] == 0) continue;
      digit = i;
      if (masses[i] >= missing) break;
      missing -= masses[i];
    }
    last_rank = last_rank << kDigitBits | digit;
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Candidate candidate = candidates[i];
    const bool tied = candidate.rank == last_rank;
    candidates[kept] = candidate;
    kept += candidate.rank < last_rank || (tied && missing > 0);
    if (tied) missing -= weight(candidate);
  }
  return kept;
}

}  // namespace shoal
