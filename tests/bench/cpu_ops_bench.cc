// How near the CPU ops come to the machine's limits at the shapes of DeepSeekMoE 16B. Every figure
// is a median, next to the ceiling measured in the same run: reading memory for decode,
// multiply-adds for prefill. Weights are larger than the caches.
//
//   cpu_ops_bench [num_threads]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"

namespace shoal {
namespace {

constexpr int64_t kHidden = 2048, kWidth = 1408, kDenseWidth = 10944;
constexpr int64_t kExperts = 64, kTopK = 6, kShared = 2, kRoutes = kTopK + kShared;
constexpr AttentionShape kHeads = {16, 16, 128};

/// Adds up n floats, n a multiple of 128, in 8 independent streams.
struct ReadMemory {
  struct Args {
    const float* data;
    int64_t n;
    float* sum;
  };
  template <Isa isa>
  static SHOAL_INLINE void Run(const Args& args) {
    Vec sums[8] = {}, v;
    const int64_t stream = args.n / 8 / kLanes * kLanes;
    for (int64_t i = 0; i < stream; i += kLanes) {
#pragma GCC unroll 8
      for (int s = 0; s < 8; ++s) {
        Load(args.data + s * stream + i, v);
        sums[s] = sums[s] + v;
      }
    }
    for (int s = 1; s < 8; ++s) sums[0] = sums[0] + sums[s];
    *args.sum = ReduceAdd(sums[0]);
  }
};

/// `rounds` times 16 independent multiply-adds of 16 lanes.
struct MultiplyAdd {
  struct Args {
    int64_t rounds;
    float* sum;
  };
  template <Isa isa>
  static SHOAL_INLINE void Run(const Args& args) {
    Vec sums[16], factor, addend;
    for (int s = 0; s < 16; ++s) Fill(1.0f + 0.01f * static_cast<float>(s), sums[s]);
    Load(args.sum, factor);
    Fill(0.001f, addend);
    for (int64_t r = 0; r < args.rounds; ++r) {
#pragma GCC unroll 16
      for (int s = 0; s < 16; ++s) sums[s] = sums[s] * factor + addend;
    }
    for (int s = 1; s < 16; ++s) sums[0] = sums[0] + sums[s];
    Store(sums[0], args.sum);
  }
};

/// Of 15 rounds, or of as many as fit in a second, but at least 3.
template <typename Body>
double MedianSeconds(const Body& body) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  body();
  std::vector<double> seconds;
  const Clock::time_point begin = Clock::now();
  while (seconds.size() < 3 || (seconds.size() < 15 && seconds_since(begin) < 1)) {
    const Clock::time_point start = Clock::now();
    body();
    seconds.push_back(seconds_since(start));
  }
  const auto middle = seconds.begin() + static_cast<int64_t>(seconds.size()) / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

class Bench {
 public:
  explicit Bench(int num_threads)
      : pool_(std::make_shared<ThreadPool>(num_threads)),
        used_(std::make_shared<UsedBytes>(0)),
        device_(pool_, int64_t{8} << 30, used_),
        ops_(pool_, BestIsa(), used_) {}

  void Run() {
    MeasureCeilings();
    for (DType dtype : {DType::kBFloat16, DType::kFloat32}) {
      for (int64_t tokens : {1, 8, 64, 512}) RunLinear(dtype, tokens);
      for (int64_t tokens : {1, 8, 64, 512}) RunDense(dtype, tokens);
      for (int64_t tokens : {1, 8, 64, 512}) RunExperts(dtype, tokens);
      for (int64_t tokens : {1, 8, 64, 512}) RunCombine(dtype, tokens);
      RunAttention(dtype, 8, 2048, 1);
      RunAttention(dtype, 1, 512, 512);
    }
    RunSampling();
  }

 private:
  Tensor Random(DType dtype, std::initializer_list<int64_t> shape) {
    const Tensor tensor = device_.Allocate(dtype, shape).value();
    pool_->ParallelFor(tensor.num_elements(), 1 << 20, [&](int64_t begin, int64_t end, int) {
      std::minstd_rand random(static_cast<uint32_t>(begin + 1));
      for (int64_t i = begin; i < end; ++i) {
        const float value = static_cast<float>(random() % 2001) * 1e-4f - 0.1f;
        if (dtype == DType::kFloat32) {
          tensor.as<float>()[i] = value;
        } else {
          tensor.as<BFloat16>()[i] = BFloat16(value);
        }
      }
    });
    return tensor;
  }

  Tensor Ints(const std::vector<int32_t>& values, std::initializer_list<int64_t> shape) {
    const Tensor tensor = device_.Allocate(DType::kInt32, shape).value();
    device_.CopyFromHost(values.data(), tensor);
    return tensor;
  }

  void MeasureCeilings() {
    constexpr int64_t kFloats = int64_t{1} << 28, kPiece = 1 << 16;
    const Tensor data = Random(DType::kFloat32, {kFloats});
    const double read = MedianSeconds([&] {
      pool_->ParallelFor(kFloats / kPiece, 1, [&](int64_t begin, int64_t end, int) {
        float sum = 0;
        for (int64_t i = begin; i < end; ++i) {
          RunKernel<ReadMemory>(BestIsa(), {data.as<float>() + i * kPiece, kPiece, &sum});
          data.as<float>()[i * kPiece] = sum * 1e-9f;
        }
      });
    });
    read_gb_ = static_cast<double>(data.size_bytes()) / read * 1e-9;
    constexpr int64_t kRounds = 1 << 20;
    const int num_threads = pool_->num_threads();
    const double compute = MedianSeconds([&] {
      pool_->ParallelFor(num_threads, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          float sums[kLanes] = {};
          RunKernel<MultiplyAdd>(BestIsa(), {kRounds, sums});
        }
      });
    });
    peak_gflop_ = 2.0 * 16 * kLanes * kRounds * num_threads / compute * 1e-9;
    fmt::print("{} threads: reads {:.1f} GB/s, multiply-adds {:.0f} GFLOP/s\n", num_threads,
               read_gb_, peak_gflop_);
  }

  void Report(const std::string& what, double seconds, double bytes, double flops) const {
    const double gb = bytes / seconds * 1e-9, gflop = flops / seconds * 1e-9;
    fmt::print("{:<44} {:>9.3f} ms  {:>6.1f} GB/s ({:>3.0f} %)  {:>6.1f} GFLOP/s ({:>3.0f} %)\n",
               what, seconds * 1e3, gb, 100 * gb / read_gb_, gflop, 100 * gflop / peak_gflop_);
  }

  void RunLinear(DType dtype, int64_t tokens) {
    const int64_t rows = 102400;
    if (linear_.dtype != dtype || linear_.empty()) {
      linear_ = {dtype, rows, kHidden, Random(dtype, {rows, kHidden}).data};
    }
    const Tensor x = Random(dtype, {tokens, kHidden});
    const Tensor out = Random(DType::kFloat32, {tokens, rows});
    const double seconds = MedianSeconds([&] { ops_.Linear(x, linear_, {}, out); });
    const double elements = static_cast<double>(rows) * kHidden;
    Report(fmt::format("Linear 102400 x 2048 {}, {} tokens", Name(dtype), tokens), seconds,
           elements * static_cast<double>(SizeOf(dtype)),
           2 * elements * static_cast<double>(tokens));
  }

  FfnWeights RandomFfn(DType dtype, int64_t num_experts, int64_t width) {
    return {dtype,
            num_experts,
            kHidden,
            width,
            Random(dtype, {num_experts, 2, width, kHidden}).data,
            Random(dtype, {num_experts, kHidden, width}).data};
  }

  void RunDense(DType dtype, int64_t tokens) {
    if (dense_.dtype != dtype || dense_.empty()) dense_ = RandomFfn(dtype, 1, kDenseWidth);
    const Tensor x = Random(dtype, {tokens, kHidden}), out = Random(dtype, {tokens, kHidden});
    const double seconds = MedianSeconds([&] { ops_.DenseFfn(x, dense_, out); });
    const double elements = 3.0 * kHidden * kDenseWidth;
    Report(fmt::format("DenseFfn of 10944 {}, {} tokens", Name(dtype), tokens), seconds,
           elements * static_cast<double>(SizeOf(dtype)),
           2 * elements * static_cast<double>(tokens));
  }

  void RunCombine(DType dtype, int64_t tokens) {
    const Tensor rows = Random(dtype, {tokens, kRoutes, kHidden});
    const Tensor residual = Random(dtype, {tokens, kHidden});
    const Tensor out = Random(dtype, {tokens, kHidden});
    const Routing routing = {
        .expert_ids = device_.Allocate(DType::kInt32, {tokens, kRoutes}).value(),
        .weights = device_.Allocate(DType::kFloat32, {tokens, kRoutes}).value(),
        .num_tokens = {}};
    const Norm norm = {Random(dtype, {kHidden}), 1e-6f};
    const double seconds = MedianSeconds([&] { ops_.Combine(rows, routing, residual, norm, out); });
    Report(fmt::format("Combine of 8 rows {}, {} tokens", Name(dtype), tokens), seconds,
           static_cast<double>(rows.size_bytes() + 3 * residual.size_bytes()), 0);
  }

  /// Routed experts, and the shared ones with every token.
  void RunExperts(DType dtype, int64_t tokens) {
    if (experts_.dtype != dtype || experts_.empty()) {
      experts_ = RandomFfn(dtype, kExperts + kShared, kWidth);
    }
    // Another set of experts each time, so that a single token's weights come from memory.
    std::mt19937 random(7);
    constexpr int kRoutings = 8;
    std::vector<Tensor> expert_ids;
    int64_t distinct = 0;
    for (int i = 0; i < kRoutings; ++i) {
      std::vector<int32_t> ids, all(kExperts);
      std::vector<bool> used(kExperts);
      for (int32_t e = 0; e < kExperts; ++e) all[e] = e;
      for (int64_t t = 0; t < tokens; ++t) {
        std::shuffle(all.begin(), all.end(), random);
        ids.insert(ids.end(), all.begin(), all.begin() + kTopK);
        for (int32_t shared = 0; shared < kShared; ++shared) ids.push_back(kExperts + shared);
        for (int k = 0; k < kTopK; ++k) used[all[k]] = true;
      }
      distinct += kShared + std::count(used.begin(), used.end(), true);
      expert_ids.push_back(Ints(ids, {tokens, kRoutes}));
    }
    const Tensor x = Random(dtype, {tokens, kHidden});
    const Tensor rows = Random(dtype, {tokens, kRoutes, kHidden});
    int round = 0;
    const double seconds = MedianSeconds(
        [&] { ops_.ExpertFfn(x, expert_ids[++round % kRoutings], {experts_, 0}, rows); });
    const double expert = 3.0 * kHidden * kWidth;
    Report(
        fmt::format("ExpertFfn {} of 66 {}, {} tokens", distinct / kRoutings, Name(dtype), tokens),
        seconds,
        expert * static_cast<double>(distinct) / kRoutings * static_cast<double>(SizeOf(dtype)),
        2 * expert * kRoutes * static_cast<double>(tokens));
  }

  void RunAttention(DType dtype, int64_t sequences, int64_t context, int64_t queries) {
    constexpr int64_t kBlock = 16;
    const int64_t blocks = context / kBlock, tokens = sequences * queries;
    const Tensor kv =
        Random(dtype, {sequences * blocks, 2, kHeads.num_kv_heads, kBlock, kHeads.head_dim});
    std::vector<int32_t> tables(sequences * blocks), positions, starts = {0};
    for (size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<int32_t>(i);
    std::shuffle(tables.begin(), tables.end(), std::mt19937(3));
    for (int64_t s = 0; s < sequences; ++s) {
      for (int64_t q = context - queries; q < context; ++q) {
        positions.push_back(static_cast<int32_t>(q));
      }
      starts.push_back(static_cast<int32_t>(positions.size()));
    }
    const AttentionMeta meta = {.positions = Ints(positions, {tokens}),
                                .slot_mapping = {},
                                .cu_seqlens = Ints(starts, {sequences + 1}),
                                .block_tables = Ints(tables, {sequences, blocks}),
                                .max_query_len = queries,
                                .max_context_len = context};
    const Tensor qkv = Random(dtype, {tokens, 3 * kHidden}), out = Random(dtype, {tokens, kHidden});
    const double seconds = MedianSeconds([&] { ops_.PagedAttention(qkv, kv, meta, kHeads, out); });
    double seen = 0;
    for (int32_t position : positions) seen += position + 1;
    Report(
        fmt::format("PagedAttention {}, {} x {} at {}", Name(dtype), sequences, queries, context),
        seconds, static_cast<double>(kv.size_bytes()), 4 * seen * kHidden);
  }

  void RunSampling() {
    constexpr int64_t kVocab = 102400;
    constexpr int32_t kHistory = 1000;
    const Tensor logits = Random(DType::kFloat32, {1, kVocab});
    for (int64_t i = 0; i < kVocab; ++i) logits.as<float>()[i] *= 50;
    std::minstd_rand random(5);
    std::vector<int32_t> history(kHistory);
    for (int32_t& token : history) token = static_cast<int32_t>(random() % kVocab);
    std::vector<int32_t> mask((kVocab + 31) / 32);
    for (int32_t& word : mask) word = static_cast<int32_t>(random() * 2);
    const SamplingInputs inputs = {
        .rows = device_.Allocate(DType::kByte, {int64_t{sizeof(SamplingRow)}}).value(),
        .history = Ints(history, {1, kHistory}),
        .biases = {},
        .masks = Ints(mask, {1, std::ssize(mask)})};
    const Tensor out = device_.Allocate(DType::kByte, {int64_t{sizeof(SampledRow)}}).value();
    const auto run = [&](const char* what, const SamplingRow& row) {
      device_.CopyFromHost(&row, inputs.rows);
      const double seconds = MedianSeconds([&] { ops_.Sample(logits, inputs, out); });
      Report(fmt::format("Sample of 102400, {}", what), seconds,
             static_cast<double>(logits.size_bytes()), 0);
    };
    run("greedy", {});
    run("greedy, penalties", {.presence_penalty = 1, .position = kHistory});
    run("greedy, mask", {.mask = 0});
    run("temperature", {.temperature = 1});
    run("temperature, penalties", {.temperature = 1, .presence_penalty = 1, .position = kHistory});
    run("top-p", {.temperature = 1, .top_p = 0.95f});
    run("typical-p", {.temperature = 1, .typical_p = 0.95f});
    run("top-k, top-p, 20 logprobs",
        {.temperature = 0.8f, .top_k = 50, .top_p = 0.95f, .top_logprobs = 20});
  }

  const std::shared_ptr<ThreadPool> pool_;
  const std::shared_ptr<UsedBytes> used_;
  CpuDevice device_;
  CpuOps ops_;
  double read_gb_ = 0;
  double peak_gflop_ = 0;
  Weight linear_;
  FfnWeights dense_;
  FfnWeights experts_;
};

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  shoal::Bench(argc > 1 ? std::max(1, std::atoi(argv[1])) : 2).Run();
  return 0;
}
