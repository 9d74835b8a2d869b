#include "kernels/cpu/sampling.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/philox.h"

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

float FindHighest(Isa isa, const float* logits, int64_t vocab) {
  float highest = 0;
  RunKernel<HighestLogit>(isa, {.logits = logits, .n = vocab, .highest = &highest});
  return highest;
}

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

void RowSampler::Reserve(int64_t vocab) {
  editor_.Reserve(vocab);
  weights_.Reserve(RoundUpToLanes(vocab));
  candidates_.Reserve(vocab);
}

SampledRow RowSampler::Sample(Isa isa, const float* logits, int64_t vocab, const SamplingRow& row,
                              const SamplingInputs& inputs) {
  SHOAL_CHECK(row.forced_token < vocab && row.top_logprobs <= kMaxTopLogprobs,
              "forced token {} of {}, {} top logprobs", row.forced_token, vocab, row.top_logprobs);
  SampledRow out;
  const float highest = FindHighest(isa, logits, vocab);
  if (!std::isfinite(highest)) return out;
  out.token_id =
      row.forced_token >= 0 ? row.forced_token : Choose(isa, {logits, vocab, highest}, row, inputs);
  if (out.token_id < 0 || row.top_logprobs < 0) return out;
  float sum = 0;
  RunKernel<ExpLogits>(isa, {.logits = logits, .n = vocab, .highest = highest, .sum = &sum});
  const float log_total = highest + std::log(sum);
  out.logprob = logits[out.token_id] - log_total;
  FindTopLogprobs(logits, vocab, row.top_logprobs, log_total, out);
  return out;
}

int32_t RowSampler::Choose(Isa isa, Logits logits, const SamplingRow& row,
                           const SamplingInputs& inputs) {
  if (LogitEditor::HasEdits(row)) {
    logits.values = editor_.Edit(isa, logits.values, logits.vocab, row, inputs);
    logits.highest = FindHighest(isa, logits.values, logits.vocab);
    if (!std::isfinite(logits.highest)) return SampledRow::kNoneAllowed;
  }
  if (row.temperature > 0) return Draw(isa, logits, row);
  const float* end = logits.values + logits.vocab;
  return static_cast<int32_t>(std::find(logits.values, end, logits.highest) - logits.values);
}

/// Drops unlikely tokens, then inverts the distribution function of the rest, in the order of their
/// ids, at one random number.
int32_t RowSampler::Draw(Isa isa, const Logits& logits, const SamplingRow& row) {
  double total = 0;
  std::span<Candidate> candidates = LikelyTokens(isa, logits, row, total);
  const auto weight = [](const Candidate& candidate) { return double{candidate.weight}; };
  const auto keep = [&](double target, const auto& measure) {
    candidates = KeepLowestRanks(candidates, target, measure);
    total = 0;
    for (const Candidate& candidate : candidates) total += weight(candidate);
  };
  if (row.top_k > 0 && row.top_k < std::ssize(candidates)) {
    keep(row.top_k, [](const Candidate&) { return 1.0; });
  }
  if (row.top_p < 1) keep(row.top_p * total, weight);
  if (row.typical_p < 1) {
    RankByTypicality(logits, row.temperature, candidates);
    keep(row.typical_p * total, weight);
  }
  double left = PhiloxUniform(row.seed, row.position) * total;
  for (const Candidate& candidate : candidates.first(candidates.size() - 1)) {
    left -= weight(candidate);
    if (left < 0) return candidate.id;
  }
  return candidates.back().id;
}

/// The tokens that min_p keeps, ranked by falling probability at the row's temperature; `total` is
/// their weight. Those that top_p is going to drop anyway may be missing, but count.
std::span<RowSampler::Candidate> RowSampler::LikelyTokens(Isa isa, const Logits& logits,
                                                          const SamplingRow& row, double& total) {
  const int64_t vocab = logits.vocab;
  float* weights = weights_.Reserve(RoundUpToLanes(vocab));
  float sum = 0;
  RunKernel<ExpLogits>(isa, {.logits = logits.values,
                             .n = vocab,
                             .highest = logits.highest,
                             .temperature = row.temperature,
                             .out = weights,
                             .sum = &sum});
  // Saves ranking the tail: all tokens this unlikely have at most half of what top_p drops.
  const float negligible = row.min_p <= 0 && row.top_k <= 0 && row.top_p < 1
                               ? (1 - row.top_p) * sum / (2 * static_cast<float>(vocab))
                               : 0;
  Candidate* candidates = candidates_.Reserve(vocab);
  size_t count = 0;
  double likely_weight = 0;
  for (int32_t id = 0; id < vocab; ++id) {
    // Without branches, which random logits would make unpredictable.
    const bool likely = weights[id] > 0 && weights[id] >= row.min_p;
    likely_weight += likely ? weights[id] : 0.0f;
    candidates[count] = {.rank = RankOf(logits.values[id]), .id = id, .weight = weights[id]};
    count += likely && weights[id] >= negligible;
  }
  total = likely_weight;
  return {candidates, count};
}

/// Ranks by how far a token's information -ln p is from the entropy, the mean of it: the
/// normalisation of p cancels out.
void RowSampler::RankByTypicality(const Logits& logits, float temperature,
                                  std::span<Candidate> candidates) {
  const auto log_weight = [&](const Candidate& candidate) {
    return double{(logits.values[candidate.id] - logits.highest) / temperature};
  };
  double sum = 0, total = 0;
  for (const Candidate& candidate : candidates) {
    sum += candidate.weight * log_weight(candidate);
    total += candidate.weight;
  }
  for (Candidate& candidate : candidates) {
    candidate.rank = RankOf(-static_cast<float>(std::abs(log_weight(candidate) - sum / total)));
  }
}

/// Keeps the fewest candidates of the lowest ranks whose weights add up to `target`, at least one,
/// ties to the lower id. Candidates stay in the order of their ids. The last rank that is needed is
/// found 11 bits at a time, by the weight that falls on each value of the bits.
template <typename Weight>
std::span<RowSampler::Candidate> RowSampler::KeepLowestRanks(std::span<Candidate> candidates,
                                                             double target, const Weight& weight) {
  constexpr int kDigitBits = 11;
  double missing = std::max(target, std::numeric_limits<double>::min());
  uint64_t last_rank = 0;
  for (int shift = 2 * kDigitBits; shift >= 0; shift -= kDigitBits) {
    std::array<double, 1 << kDigitBits> masses = {};
    for (const Candidate& candidate : candidates) {
      const uint64_t digits = candidate.rank >> shift;
      if (digits >> kDigitBits != last_rank) continue;
      masses[digits & (masses.size() - 1)] += weight(candidate);
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
  size_t kept = 0;
  for (const Candidate candidate : candidates) {
    const bool tied = candidate.rank == last_rank;
    candidates[kept] = candidate;
    kept += candidate.rank < last_rank || (tied && missing > 0);
    if (tied) missing -= weight(candidate);
  }
  return candidates.first(kept);
}

}  // namespace shoal
