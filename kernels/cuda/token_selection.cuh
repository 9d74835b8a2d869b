// Which tokens of a row of logits are kept, what they weigh, and where a sum over them is reached.
// A block works on one row.
//
// Weights are whole numbers: sums are exact, so neither the order of additions nor the number of
// threads has a part in the result, and atomics in shared memory may do them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/ptx.cuh"

namespace shoal::cuda {

/// A row of logits, none of them NaN or +infinity.
struct LogitRow {
  const float* values = nullptr;  // [vocab]
  int vocab = 0;                  // at most 2^kTokenIdBits
  bool aligned = false;           // to 16 bytes, the number of values too
};
inline constexpr int kTokenIdBits = 22;

/// Tokens that a warp reads at a time; lane l has four in a row from 4 l on, of each quarter.
inline constexpr int kTileTokens = 512;
inline constexpr int kLaneTokens = kTileTokens / kWarpSize;

/// Of the i-th value that this lane has of the tile that begins with token `first`.
__device__ __forceinline__ int TokenId(int first, int i) {
  return first + i / 4 * (kTileTokens / 4) + LaneIndex() * 4 + i % 4;
}

/// The logits from `id` on, -infinity beyond the vocabulary.
__device__ __forceinline__ float4 LoadLogits(const LogitRow& row, int id) {
  if (row.aligned && id < row.vocab) return *reinterpret_cast<const float4*>(row.values + id);
  const auto load = [&](int at) { return at < row.vocab ? row.values[at] : -INFINITY; };
  return make_float4(load(id), load(id + 1), load(id + 2), load(id + 3));
}

/// Calls visit(first, values) for each tile of this warp; values[i] is the logit of TokenId(first,
/// i), -infinity beyond the vocabulary. All lanes take part in each call.
template <typename Visit>
__device__ __forceinline__ void ForEachTile(const LogitRow& row, const Visit& visit) {
  for (int first = WarpIndex() * kTileTokens; first < row.vocab;
       first += NumWarps() * kTileTokens) {
    float values[kLaneTokens];
#pragma unroll
    for (int i = 0; i < kLaneTokens; i += 4) {
      const float4 loaded = LoadLogits(row, TokenId(first, i));
      values[i] = loaded.x;
      values[i + 1] = loaded.y;
      values[i + 2] = loaded.z;
      values[i + 3] = loaded.w;
    }
    visit(first, values);
  }
}

/// Unsigned order that falls as the logit rises; +0 and -0 are alike.
__device__ __forceinline__ uint32_t RankOf(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

__device__ __forceinline__ float LogitOf(uint32_t rank) {
  return __uint_as_float(rank & 0x80000000u ? rank : ~rank & 0x7fffffffu);
}

/// A row's highest logit, and the lowest id that has it.
struct HighestLogit {
  float logit = 0;
  int id = 0;
  bool finite = false;  // false: a logit is NaN or +infinity, or all are -infinity
};

__device__ __forceinline__ HighestLogit FindHighest(const LogitRow& row, WarpValues& shared) {
  float highest = -INFINITY;
  int id = 0;
  bool bad = false;
  ForEachTile(row, [&](int first, const float(&values)[kLaneTokens]) {
#pragma unroll
    for (int i = 0; i < kLaneTokens; ++i) {
      bad |= !(values[i] < INFINITY);
      if (values[i] > highest) {
        highest = values[i];
        id = TokenId(first, i);
      }
    }
  });
  // No finite logit has rank 0.
  const uint64_t key = bad ? 0 : static_cast<uint64_t>(RankOf(highest)) << 32 | id;
  const uint64_t least = BlockMin(key, shared);
  const float logit = LogitOf(static_cast<uint32_t>(least >> 32));
  return {.logit = logit,
          .id = static_cast<int>(least & 0xffffffffu),
          .finite = least >> 32 != 0 && logit > -INFINITY};
}

/// Sums of whole numbers in shared memory, which has atomics for 32 bits only.
template <int kCount>
struct WholeSums {
  uint32_t low[kCount];
  uint32_t high[kCount];

  __device__ __forceinline__ void Add(int i, uint64_t amount) {
    const auto added = static_cast<uint32_t>(amount);
    const uint32_t before = atomicAdd(&low[i], added);
    const uint32_t carry = before + added < added ? 1 : 0;
    const uint32_t rest = static_cast<uint32_t>(amount >> 32) + carry;
    if (rest != 0) atomicAdd(&high[i], rest);
  }
  __device__ __forceinline__ uint64_t Value(int i) const {
    return static_cast<uint64_t>(high[i]) << 32 | low[i];
  }
  __device__ __forceinline__ void Clear() {
    for (int i = ThreadIndex(); i < kCount; i += NumThreads()) low[i] = high[i] = 0;
  }
};

/// Where a sum over elements in order passes a position.
struct Found {
  int index = 0;  // of the first element with which the sum is above the position, or the last
  uint64_t before = 0;  // sum of the elements before it
  uint64_t total = 0;   // of all
};

/// The order in which tokens are kept, as digits of 11 bits, most significant first: two digits of
/// how far a token is from the first one, in equal steps, which spreads tokens over the values of a
/// digit; then, for tokens that are alike in these, five digits of the exact order.
inline constexpr int kDigitBits = 11;
inline constexpr int kDigits = 1 << kDigitBits;
inline constexpr int kCoarseBits = 2 * kDigitBits;
inline constexpr int kExactBits = 5 * kDigitBits;  // 32 of logit or distance, kTokenIdBits of id

/// What the ranks of some tokens have in common: their first digits.
struct RankPrefix {
  int coarse_shift = kCoarseBits;  // bits that are open
  int exact_shift = kExactBits;
  uint32_t coarse = 0;  // the others
  uint64_t exact = 0;

  __device__ __forceinline__ bool IsEmpty() const { return coarse_shift == kCoarseBits; }
  __device__ __forceinline__ bool IsCoarse() const { return coarse_shift > 0; }

  __device__ __forceinline__ void Append(int digit) {
    if (IsCoarse()) {
      coarse = coarse << kDigitBits | digit;
      coarse_shift -= kDigitBits;
    } else {
      exact = exact << kDigitBits | digit;
      exact_shift -= kDigitBits;
    }
  }
};

/// Behind all ranks.
inline constexpr RankPrefix kBehindAll = {.coarse_shift = 0, .coarse = 1u << kCoarseBits};
inline constexpr uint64_t kKeepAll = ~uint64_t{0};

/// What is left of a row's tokens. The weight of a token is its probability, the highest being
/// 2^40.
struct TokenFilter {
  float highest = 0;
  float octaves_per_unit = 0;       // log2 e / temperature
  float min_weight = 0;             // of the most likely token's weight
  uint64_t last_likely = kKeepAll;  // exact rank of the last token kept, by falling probability
  /// From here on ranks are by the distance from this number of octaves.
  bool by_typicality = false;
  float typical_octaves = 0;
  uint64_t last_typical = kKeepAll;  // exact rank of the last token kept, by rising distance

  /// By how many factors of two the token is less likely than the most likely one.
  __device__ __forceinline__ float Octaves(float logit) const {
    return (highest - logit) * octaves_per_unit;
  }
  __device__ __forceinline__ float Distance(float octaves) const {
    return fabsf(octaves - typical_octaves);
  }
  __device__ __forceinline__ static uint64_t WithId(uint32_t rank, int id) {
    return static_cast<uint64_t>(rank) << kTokenIdBits | id;
  }
  __device__ __forceinline__ uint32_t CoarseRank(float octaves) const {
    constexpr float kStepsPerOctave = 48;  // so that what weighs anything comes before the last
    constexpr float kMostSteps = kDigits - 0x1p-11f;
    const float distance = by_typicality ? Distance(octaves) : octaves;
    return static_cast<uint32_t>(fminf(distance * kStepsPerOctave, kMostSteps) * kDigits);
  }
  __device__ __forceinline__ uint64_t ExactRank(float logit, float octaves, int id) const {
    return WithId(by_typicality ? __float_as_uint(Distance(octaves)) : RankOf(logit), id);
  }
  /// Less than 0, 0 or more as the token comes before those with this prefix, has it, or is behind.
  __device__ __forceinline__ int Compare(float logit, int id, const RankPrefix& prefix) const {
    const float octaves = Octaves(logit);
    const uint32_t coarse = CoarseRank(octaves) >> prefix.coarse_shift;
    if (coarse != prefix.coarse) return coarse < prefix.coarse ? -1 : 1;
    if (prefix.exact_shift == kExactBits) return 0;
    const uint64_t exact = ExactRank(logit, octaves, id) >> prefix.exact_shift;
    return exact == prefix.exact ? 0 : exact < prefix.exact ? -1 : 1;
  }
  /// The digit after the prefix.
  __device__ __forceinline__ int NextDigit(float logit, int id, const RankPrefix& prefix) const {
    const float octaves = Octaves(logit);
    const uint64_t bits = prefix.IsCoarse()
                              ? CoarseRank(octaves) >> (prefix.coarse_shift - kDigitBits)
                              : ExactRank(logit, octaves, id) >> (prefix.exact_shift - kDigitBits);
    return static_cast<int>(bits % kDigits);
  }
  /// 0 for a token that is not kept.
  __device__ __forceinline__ uint64_t Weight(float logit, int id) const {
    const float octaves = Octaves(logit);
    const float weight = Exp2(-octaves);
    bool kept = weight >= min_weight;
    if (last_likely != kKeepAll) kept &= WithId(RankOf(logit), id) <= last_likely;
    if (last_typical != kKeepAll) {
      kept &= WithId(__float_as_uint(Distance(octaves)), id) <= last_typical;
    }
    return kept ? static_cast<uint64_t>(weight * 0x1p40f) : 0;
  }
};

/// What is summed up.
enum class Measure {
  kNothing,  // so that all tokens are kept
  kWeight,
  kTokens,      // those that weigh something
  kEveryToken,  // those that weigh nothing too
};

/// A token of the last prefix.
struct Candidate {
  uint64_t exact = 0;  // rank
  uint64_t weight = 0;

  __device__ __forceinline__ int id() const {
    return static_cast<int>(exact % (uint64_t{1} << kTokenIdBits));
  }
};

struct SelectionShared {
  static constexpr int kMaxCandidates = 512;
  static constexpr int kSpans = 1024;

  WholeSums<kDigits> digits;  // what falls on each value of a digit
  WholeSums<kSpans> spans;    // the weight kept of each span of tokens
  Candidate candidates[kMaxCandidates];
  WarpValues warps;
  Found found;
  uint64_t last = 0;  // exact rank
  int num_candidates = 0;
};

/// Chooses among the tokens of a row. All threads of the block call each function.
class TokenSelection {
 public:
  __device__ __forceinline__ TokenSelection(const LogitRow& row, const TokenFilter& filter,
                                            SelectionShared& shared)
      : filter_(filter), row_(row), shared_(shared) {
    while ((row.vocab - 1) >> span_bits_ >= SelectionShared::kSpans) ++span_bits_;
  }

  __device__ __forceinline__ const TokenFilter& filter() const { return filter_; }
  __device__ __forceinline__ TokenFilter& filter() { return filter_; }

  /// Finds the tokens of the lowest ranks whose sum is just above target(sum over all): the last of
  /// them is among the candidates. Returns what remains of the target where these begin. The spans
  /// have the weight of all tokens before them, unless `measure` is kEveryToken: then those tokens
  /// are candidates too. If the sum is never above the target, all tokens come before the
  /// candidates.
  template <typename Target>
  __device__ __forceinline__ uint64_t FindCandidates(Measure measure, const Target& target) {
    RankPrefix prefix;
    uint64_t position = 0;
    bool done = false;
#pragma unroll 1
    while (!done) {
      bool all = measure == Measure::kNothing;
      if (!all) {
        SumDigits(measure, prefix);
        const bool first = prefix.IsEmpty();
        const Found found = FindSum(shared_.digits, [&](uint64_t total) {
          return first ? position = target(total) : position;
        });
        all = first && measure != Measure::kEveryToken && position >= found.total;
        position -= found.before;
        prefix.Append(found.index);
      }
      if (all) prefix = kBehindAll;
      done = !prefix.IsCoarse() && Collect(measure, prefix);
    }
    return position;
  }

  /// Keeps the tokens of the lowest ranks whose sum is just above target(sum over all), or all if
  /// it never is. The spans have their weight. Returns the exact rank of the last one.
  template <typename Target>
  __device__ __forceinline__ uint64_t Keep(Measure measure, const Target& target) {
    const uint64_t position = FindCandidates(measure, target);
    if (shared_.num_candidates == 0) return kKeepAll;
    const auto amount = [&](const Candidate& candidate) {
      return measure == Measure::kWeight ? candidate.weight : 1;
    };
    for (int i = ThreadIndex(); i < shared_.num_candidates; i += NumThreads()) {
      const Candidate candidate = shared_.candidates[i];
      uint64_t before = 0;
      for (int j = 0; j < shared_.num_candidates; ++j) {
        const Candidate& other = shared_.candidates[j];
        if (other.exact < candidate.exact) before += amount(other);
      }
      if (before <= position && position < before + amount(candidate)) {
        shared_.last = candidate.exact;
      }
    }
    __syncthreads();
    const uint64_t last = shared_.last;
    for (int i = ThreadIndex(); i < shared_.num_candidates; i += NumThreads()) {
      const Candidate candidate = shared_.candidates[i];
      if (candidate.exact <= last) shared_.spans.Add(SpanOf(candidate.id()), candidate.weight);
    }
    __syncthreads();
    return last;
  }

  /// The sum of amount(logit, id) over all tokens.
  template <typename Amount>
  __device__ __forceinline__ uint64_t Sum(const Amount& amount) const {
    uint64_t sum = 0;
    ForEachTile(row_, [&](int first, const float(&values)[kLaneTokens]) {
#pragma unroll
      for (int i = 0; i < kLaneTokens; ++i) sum += amount(values[i], TokenId(first, i));
    });
    return BlockSum(sum, shared_.warps);
  }

  /// The token with which the weight of the tokens by rising id, as the spans have it, is above
  /// target(sum over all), which is below that sum. Only the first warp's result counts.
  template <typename Target>
  __device__ __forceinline__ int TokenAt(const Target& target) {
    uint64_t position = 0;
    const Found span =
        FindSum(shared_.spans, [&](uint64_t total) { return position = target(total); });
    if (WarpIndex() > 0) return 0;
    position -= span.before;
    int first = span.index << span_bits_;
    for (;; first += kWarpSize * 4) {
      const int id = first + LaneIndex() * 4;
      const float4 logits = LoadLogits(row_, id);
      const uint64_t weights[4] = {filter_.Weight(logits.x, id), filter_.Weight(logits.y, id + 1),
                                   filter_.Weight(logits.z, id + 2),
                                   filter_.Weight(logits.w, id + 3)};
      uint64_t sum = WarpRunningSum(weights[0] + weights[1] + weights[2] + weights[3]);
      const int lane = __ffs(static_cast<int>(__ballot_sync(kAllLanes, sum > position))) - 1;
      if (lane < 0 && first + kWarpSize * 4 < row_.vocab) {
        position -= __shfl_sync(kAllLanes, sum, kWarpSize - 1);
        continue;
      }
      // Back from the end of the lane's four to the first with which the sum is above.
      int token = id + 3;
#pragma unroll
      for (int i = 3; i > 0; --i) {
        sum -= weights[i];
        if (sum > position) token = id + i - 1;
      }
      return __shfl_sync(kAllLanes, token, max(lane, 0));
    }
  }

 private:
  __device__ __forceinline__ int SpanOf(int id) const { return id >> span_bits_; }

  /// Sums up each value of the digit after the prefix, of tokens that have the prefix. The last
  /// value of the first digit, where tokens that weigh nothing gather, is left out.
  __device__ __forceinline__ void SumDigits(Measure measure, const RankPrefix& prefix) {
    shared_.digits.Clear();
    __syncthreads();
    const bool first_digit = prefix.IsEmpty();
    ForEachTile(row_, [&](int first, const float(&values)[kLaneTokens]) {
#pragma unroll
      for (int i = 0; i < kLaneTokens; ++i) {
        const int id = TokenId(first, i);
        if (id >= row_.vocab || filter_.Compare(values[i], id, prefix) != 0) continue;
        const int digit = filter_.NextDigit(values[i], id, prefix);
        if (first_digit && digit == kDigits - 1) continue;
        const uint64_t amount = Amount(measure, values[i], id);
        if (amount > 0) shared_.digits.Add(digit, amount);
      }
    });
    __syncthreads();
  }

  __device__ __forceinline__ uint64_t Amount(Measure measure, float logit, int id) const {
    if (measure == Measure::kEveryToken) return 1;
    const uint64_t weight = filter_.Weight(logit, id);
    return measure == Measure::kWeight ? weight : weight > 0 ? 1 : 0;
  }

  /// Makes the tokens that have the prefix candidates; sums the weight of those before it by spans,
  /// or, if every token counts, makes them candidates too. Returns false if there are too many.
  __device__ __forceinline__ bool Collect(Measure measure, const RankPrefix& prefix) {
    shared_.spans.Clear();
    if (ThreadIndex() == 0) shared_.num_candidates = 0;
    __syncthreads();
    const bool every_token = measure == Measure::kEveryToken;
    ForEachTile(row_, [&](int first, const float(&values)[kLaneTokens]) {
      uint64_t sum = 0;
#pragma unroll
      for (int i = 0; i < kLaneTokens; ++i) {
        const int id = TokenId(first, i);
        const int order = filter_.Compare(values[i], id, prefix);
        if (id >= row_.vocab || order > 0) continue;
        const uint64_t weight = filter_.Weight(values[i], id);
        if (order < 0) sum += weight;
        if (every_token || (order == 0 && weight > 0)) {
          AddCandidate({filter_.ExactRank(values[i], filter_.Octaves(values[i]), id), weight});
        }
      }
      sum = WarpSum(sum);
      if (LaneIndex() == 0 && sum > 0) shared_.spans.Add(SpanOf(first), sum);
    });
    __syncthreads();
    return shared_.num_candidates <= SelectionShared::kMaxCandidates;
  }

  __device__ __forceinline__ void AddCandidate(const Candidate& candidate) {
    const int i = atomicAdd(&shared_.num_candidates, 1);
    if (i < SelectionShared::kMaxCandidates) shared_.candidates[i] = candidate;
  }

  /// Where the sum of the elements passes target(their total).
  template <int kCount, typename Target>
  __device__ __forceinline__ Found FindSum(const WholeSums<kCount>& sums, const Target& target) {
    const int count = kCount / NumThreads() + (kCount % NumThreads() > 0 ? 1 : 0);
    const int begin = min(ThreadIndex() * count, kCount), end = min(begin + count, kCount);
    uint64_t own = 0, total;
    for (int i = begin; i < end; ++i) own += sums.Value(i);
    uint64_t before = BlockSumBefore(own, shared_.warps, total);
    const uint64_t position = target(total);
    if (before <= position && position < before + own) {
      int i = begin;
      for (; before + sums.Value(i) <= position; ++i) before += sums.Value(i);
      shared_.found = {.index = i, .before = before, .total = total};
    } else if (ThreadIndex() == 0 && position >= total) {
      shared_.found = {.index = kCount - 1, .before = total, .total = total};
    }
    __syncthreads();
    return shared_.found;
  }

  TokenFilter filter_;
  const LogitRow row_;
  SelectionShared& shared_;
  int span_bits_ = 9;  // a span has 2^span_bits_ tokens: whole tiles
};

}  // namespace shoal::cuda
