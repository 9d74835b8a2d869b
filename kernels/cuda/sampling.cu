#include "kernels/cuda/sampling.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/logit_edits.cuh"
#include "kernels/cuda/token_selection.cuh"
#include "kernels/philox.h"

namespace shoal::cuda {
namespace {

constexpr float kLog2E = 1.44269504f;

/// So that a thread may have 80 registers.
constexpr int kMostThreads = 24 * kWarpSize;

/// Logits of a row in the workspace.
constexpr int64_t PaddedVocab(int64_t vocab) { return (vocab + 3) / 4 * 4; }

union SampleShared {
  SelectionShared selection;
  TokenUses uses;
};

/// What of `total` makes the share `p`, at least 1, as the position of its last unit.
__device__ __forceinline__ uint64_t ShareOf(uint64_t total, float p) {
  const double share = ceil(static_cast<double>(p) * static_cast<double>(total));
  const auto units = static_cast<uint64_t>(fmax(share, 1.0));
  return min(units, total) - 1;
}

/// The entropy of the tokens that are left, in octaves below the most likely token: the
/// normalisation of their probabilities cancels out.
__device__ __forceinline__ float MeanOctaves(const TokenSelection& selection) {
  const TokenFilter& filter = selection.filter();
  const uint64_t weights =
      selection.Sum([&](float logit, int id) { return filter.Weight(logit, id); });
  const uint64_t octaves = selection.Sum([&](float logit, int id) -> uint64_t {
    const uint64_t weight = filter.Weight(logit, id);
    if (weight == 0) return 0;
    return static_cast<uint64_t>(static_cast<float>(weight) * filter.Octaves(logit));
  });
  return static_cast<float>(static_cast<double>(octaves) / static_cast<double>(weights));
}

/// The filters that sum up tokens, in their order.
enum Filter { kTopK, kTopP, kTypicalP, kNoFilter, kNumFilters };

/// The filters of the row, bit by bit.
__device__ __forceinline__ unsigned int FiltersOf(const SamplingRow& row) {
  const unsigned int filters = (row.top_k > 0 ? 1u << kTopK : 0) |
                               (row.top_p < 1 ? 1u << kTopP : 0) |
                               (row.typical_p < 1 ? 1u << kTypicalP : 0);
  return filters != 0 ? filters : 1u << kNoFilter;
}

/// Drops unlikely tokens, then inverts the distribution function of the rest, in the order of their
/// ids, at one random number. Only the first warp's result counts.
__device__ __forceinline__ int Draw(const SamplingRow& row, const LogitRow& logits, float highest,
                                    SelectionShared& shared) {
  // Whatever the temperature and min_p, the most likely token is left.
  const TokenFilter filter = {.highest = highest,
                              .octaves_per_unit = fminf(kLog2E / row.temperature, FLT_MAX),
                              .min_weight = fminf(row.min_p, 1)};
  TokenSelection selection(logits, filter, shared);
  const unsigned int filters = FiltersOf(row);
  // A loop, so that the code is there once only.
#pragma unroll 1
  for (int step = 0; step < kNumFilters; ++step) {
    if ((filters >> step & 1) == 0) continue;
    if (step == kTypicalP) {
      selection.filter().typical_octaves = MeanOctaves(selection);
      selection.filter().by_typicality = true;
    }
    const Measure measure = step == kTopK       ? Measure::kTokens
                            : step == kNoFilter ? Measure::kNothing
                                                : Measure::kWeight;
    const uint64_t last = selection.Keep(measure, [&](uint64_t total) {
      if (step == kTopK) return static_cast<uint64_t>(row.top_k - 1);
      return ShareOf(total, step == kTopP ? row.top_p : row.typical_p);
    });
    if (step == kTypicalP) {
      selection.filter().last_typical = last;
    } else {
      selection.filter().last_likely = min(selection.filter().last_likely, last);
    }
  }
  const double uniform = PhiloxUniform(row.seed, row.position);
  return selection.TokenAt([&](uint64_t total) {
    return min(static_cast<uint64_t>(uniform * static_cast<double>(total)), total - 1);
  });
}

/// Logprobs of the chosen token, which the first thread knows, and of the most likely ones, by the
/// logits before any edit.
__device__ __forceinline__ void WriteLogprobs(const SamplingRow& row, const LogitRow& logits,
                                              float highest, SelectionShared& shared,
                                              SampledRow& out) {
  const TokenFilter filter = {.highest = highest, .octaves_per_unit = kLog2E};
  TokenSelection selection(logits, filter, shared);
  const uint64_t sum = selection.Sum([&](float logit, int id) { return filter.Weight(logit, id); });
  const float log_total = highest + logf(static_cast<float>(sum) * 0x1p-40f);
  if (ThreadIndex() == 0) out.logprob = logits.values[out.token_id] - log_total;
  const int count = min(row.top_logprobs, logits.vocab);
  if (count == 0) return;
  selection.FindCandidates(Measure::kEveryToken,
                           [&](uint64_t) { return static_cast<uint64_t>(count - 1); });
  for (int i = ThreadIndex(); i < shared.num_candidates; i += NumThreads()) {
    const Candidate candidate = shared.candidates[i];
    int place = 0;
    for (int j = 0; j < shared.num_candidates; ++j) {
      place += shared.candidates[j].exact < candidate.exact ? 1 : 0;
    }
    if (place >= count) continue;
    out.top_ids[place] = candidate.id();
    out.top_logprobs[place] = logits.values[candidate.id()] - log_total;
  }
}

/// The token of one row, or what SampledRow has instead. Of a token that is drawn only the first
/// warp's result counts.
__device__ __forceinline__ int32_t Choose(const SampleArgs& args, const SamplingRow& row,
                                          const LogitRow& logits, HighestLogit highest,
                                          SampleShared& shared) {
  if (row.forced_token >= 0) return row.forced_token;
  LogitRow edited = logits;
  if (HasEdits(row)) {
    auto* workspace = static_cast<float*>(args.workspace) + blockIdx.x * PaddedVocab(args.vocab);
    edited = EditLogits(args, row, logits, workspace, shared.uses);
    highest = FindHighest(edited, shared.selection.warps);
    if (!highest.finite) return SampledRow::kNoneAllowed;
  }
  return row.temperature > 0 ? Draw(row, edited, highest.logit, shared.selection) : highest.id;
}

/// A block for each row.
__global__ void __launch_bounds__(kMostThreads) SampleKernel(SampleArgs args) {
  auto& shared = SharedMemory<SampleShared>();
  const SamplingRow& row = args.rows[blockIdx.x];
  SampledRow& out = args.out[blockIdx.x];
  const float* values = args.logits + blockIdx.x * args.vocab;
  const LogitRow logits = {
      .values = values,
      .vocab = static_cast<int>(args.vocab),
      .aligned = args.vocab % 4 == 0 && reinterpret_cast<uintptr_t>(values) % sizeof(float4) == 0};
  const HighestLogit highest = FindHighest(logits, shared.selection.warps);
  const int32_t token =
      highest.finite ? Choose(args, row, logits, highest, shared) : SampledRow::kNotFinite;
  for (int i = ThreadIndex(); i < kMaxTopLogprobs; i += NumThreads()) {
    out.top_ids[i] = -1;
    out.top_logprobs[i] = 0;
  }
  if (ThreadIndex() == 0) {
    out.token_id = token;
    out.logprob = 0;
    if (row.recorded != 0) args.history[row.slot * args.max_model_len + row.position] = token;
  }
  __syncthreads();
  if (token >= 0 && row.top_logprobs >= 0) {
    WriteLogprobs(row, logits, highest.logit, shared.selection, out);
  }
}

}  // namespace

size_t SampleWorkspaceBytes(int64_t num_rows, int64_t vocab) {
  return static_cast<size_t>(num_rows * PaddedVocab(vocab)) * sizeof(float);
}

void Sample(const SampleArgs& args, cudaStream_t stream) {
  const int64_t tiles = (args.vocab + kTileTokens - 1) / kTileTokens;
  const auto warps =
      static_cast<unsigned int>(std::clamp<int64_t>(tiles, 1, kMostThreads / kWarpSize));
  Launch(SampleKernel,
         {.blocks = static_cast<unsigned int>(args.num_rows),
          .threads = warps * kWarpSize,
          .shared_bytes = sizeof(SampleShared)},
         stream, args);
}

}  // namespace shoal::cuda
