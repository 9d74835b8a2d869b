#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/cuda/attention_long.cuh"
#include "kernels/cuda/attention_split.cuh"
#include "kernels/cuda/launch.h"

namespace shoal::cuda {
namespace {

using attention::kBlockRows;
using attention::kMaxSequences;
using attention::kThreads;
using attention::LongArgs;
using attention::PartialSums;
using attention::RowSum;
using attention::SplitArgs;

constexpr int64_t kMaxShortQueryLen = 16;
constexpr int64_t kMaxPartialQueries = 4096;  // splits of single queries that have room in memory
constexpr int kMaxParts = 4;
constexpr int kBlocksPerMultiprocessor = 3;  // of AttendSplits: more would not fit

/// Who takes which sequences. Both forms give the same bits, so this is a matter of speed alone.
struct Schedule {
  int64_t short_query_len = 0;       // up to so many tokens: split by keys
  int64_t sequences_per_launch = 0;  // of AttendSplits
};

Schedule ScheduleFor(const AttentionArgs& args) {
  const int64_t num_splits =
      (args.max_context_len + attention::kSplitKeys - 1) / attention::kSplitKeys;
  const int64_t queries = num_splits > 1 ? kMaxPartialQueries / num_splits  // per launch
                                         : kMaxSequences * kMaxShortQueryLen;
  Schedule schedule;
  if (args.max_query_len <= kMaxShortQueryLen) {
    schedule.short_query_len = std::min(args.max_query_len, queries);
  } else {  // there is work enough for one launch, but hardly for more
    const int64_t each = std::clamp<int64_t>(queries / args.num_sequences, 1, kMaxShortQueryLen);
    schedule.short_query_len = std::min(each, queries);
  }
  if (schedule.short_query_len > 0) {
    schedule.sequences_per_launch =
        std::min<int64_t>(queries / schedule.short_query_len, kMaxSequences);
  }
  return schedule;
}

/// Factor from a product of query and key to an exponent of 2.
float Scale(const AttentionArgs& args) {
  return static_cast<float>(std::numbers::log2e / std::sqrt(static_cast<double>(args.head_dim)));
}

int64_t PartialRows(const AttentionArgs& heads) { return kMaxPartialQueries * heads.num_heads; }

PartialSums PartialSumsIn(void* workspace, const AttentionArgs& args) {
  auto* values = static_cast<float*>(workspace);
  return {.values = values,
          .rows = reinterpret_cast<RowSum*>(values + PartialRows(args) * args.head_dim),
          .counters = args.counters};
}

int NumMultiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

/// The sequences of at most `schedule.short_query_len` tokens, launch after launch.
template <int kDim>
void LaunchSplits(const SplitArgs& all, const Schedule& schedule, cudaStream_t stream) {
  const AttentionArgs& args = all.attention;
  const int64_t num_splits =
      (args.max_context_len + attention::kSplitKeys - 1) / attention::kSplitKeys;
  const int64_t most_blocks = int64_t{kBlocksPerMultiprocessor} * NumMultiprocessors();
  for (int64_t first = 0; first < args.num_sequences; first += schedule.sequences_per_launch) {
    SplitArgs part = all;
    part.short_query_len = static_cast<int>(schedule.short_query_len);
    part.first_sequence = static_cast<int>(first);
    part.num_sequences =
        static_cast<int>(std::min(schedule.sequences_per_launch, args.num_sequences - first));
    const int64_t num_items = part.num_sequences * num_splits * part.RowTiles() *
                              args.num_kv_heads * attention::NumParts<kDim>(args);
    const auto num_blocks = static_cast<unsigned>(std::min(num_items, most_blocks));
    Launch(attention::AttendSplits<kDim>,
           {num_blocks, kThreads, sizeof(attention::SplitShared<kDim>)}, stream, part);
  }
}

template <int kDim>
void LaunchLong(const LongArgs& work, cudaStream_t stream) {
  const AttentionArgs& args = work.attention;
  const int64_t group = args.num_heads / args.num_kv_heads;
  // Each sequence has at most one block of rows that is not full.
  const int64_t num_sequences =
      std::min(args.num_sequences, args.num_tokens / (work.short_query_len + 1));
  const int64_t num_tiles = args.num_tokens * group / kBlockRows + num_sequences;
  const auto num_blocks =
      static_cast<unsigned>(num_tiles * args.num_kv_heads * attention::NumParts<kDim>(args));
  Launch(attention::AttendLong<kDim>, {num_blocks, kThreads, sizeof(attention::LongShared<kDim>)},
         stream, work);
}

template <int kDim>
void LaunchAttention(const AttentionArgs& args, void* workspace, BFloat16* out,
                     cudaStream_t stream) {
  const Schedule schedule = ScheduleFor(args);
  const bool any_long = args.max_query_len > schedule.short_query_len;
  const bool all_long = any_long && args.num_sequences * args.max_query_len == args.num_tokens;
  const float scale = Scale(args);
  if (schedule.short_query_len > 0 && !all_long) {
    const SplitArgs work = {
        .attention = args, .out = out, .scale = scale, .partial = PartialSumsIn(workspace, args)};
    LaunchSplits<kDim>(work, schedule, stream);
  }
  if (any_long) {
    const LongArgs work = {.attention = args,
                           .out = out,
                           .scale = scale,
                           .short_query_len = static_cast<int>(schedule.short_query_len)};
    LaunchLong<kDim>(work, stream);
  }
}

}  // namespace

size_t AttentionWorkspaceBytes(const AttentionArgs& heads) {
  return static_cast<size_t>(PartialRows(heads)) *
         (heads.head_dim * sizeof(float) + kMaxParts * sizeof(RowSum));
}

size_t AttentionCounterBytes(const AttentionArgs& heads) {
  return sizeof(int32_t) * kMaxSequences * heads.num_heads * kMaxParts;
}

void PagedAttention(const AttentionArgs& args, void* workspace, BFloat16* out,
                    cudaStream_t stream) {
  if (args.num_tokens == 0 || args.num_sequences == 0 || args.max_query_len == 0) return;
  if (args.head_dim <= 32) {
    LaunchAttention<32>(args, workspace, out, stream);
  } else if (args.head_dim <= 64) {
    LaunchAttention<64>(args, workspace, out, stream);
  } else if (args.head_dim <= 128) {
    LaunchAttention<128>(args, workspace, out, stream);
  } else {
    LaunchAttention<256>(args, workspace, out, stream);
  }
}

}  // namespace shoal::cuda
