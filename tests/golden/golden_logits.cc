// Logits of every position of one sequence, straight from the model.
// Usage: golden_logits CHECKPOINT DEVICE float32|bfloat16 CHUNK TOKEN_ID...
// Runs the sequence CHUNK tokens at a time, as one after the other of a server's steps would, and
// writes [num_tokens, vocab_size] float32 to standard output.
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "engine/model/deepseek_moe.h"
#include "kernels/backends/backend_factory.h"

namespace shoal {
namespace {

constexpr int64_t kBlockSize = 16;

struct Options {
  std::string directory;
  std::string device;
  DType dtype = DType::kFloat32;
  int64_t chunk_tokens = 0;
  std::vector<int32_t> token_ids;
};

absl::StatusOr<Backend> MakeBackend(const std::string& device) {
  ASSIGN_OR_RETURN(const BackendFactory factory, BackendFactory::Create({.device = device}));
  return factory.Make(0, nullptr);
}

absl::StatusOr<Tensor> ToDevice(const std::vector<int32_t>& values,
                                std::initializer_list<int64_t> shape, Device& device) {
  ASSIGN_OR_RETURN(const Tensor tensor, device.Allocate(DType::kInt32, shape));
  device.CopyFromHost(values.data(), tensor);
  RETURN_IF_ERROR(device.Synchronize());
  return tensor;
}

/// Tokens [begin, begin + count) of the one sequence, whose blocks lie in the cache last one first.
absl::StatusOr<ForwardBatch> MakeBatch(const Options& options, int64_t begin, int64_t count,
                                       int64_t num_blocks, Device& device) {
  std::vector<int32_t> blocks(num_blocks), positions(count), slots(count);
  std::iota(blocks.rbegin(), blocks.rend(), 0);
  for (int64_t i = 0; i < count; ++i) {
    positions[i] = static_cast<int32_t>(begin + i);
    slots[i] = static_cast<int32_t>(blocks[(begin + i) / kBlockSize] * kBlockSize +
                                    (begin + i) % kBlockSize);
  }
  const auto first = options.token_ids.begin() + begin;
  ForwardBatch batch;
  ASSIGN_OR_RETURN(batch.token_ids, ToDevice({first, first + count}, {count}, device));
  ASSIGN_OR_RETURN(batch.attention.positions, ToDevice(positions, {count}, device));
  ASSIGN_OR_RETURN(batch.attention.slot_mapping, ToDevice(slots, {count}, device));
  ASSIGN_OR_RETURN(batch.attention.cu_seqlens,
                   ToDevice({0, static_cast<int32_t>(count)}, {2}, device));
  ASSIGN_OR_RETURN(batch.attention.block_tables, ToDevice(blocks, {1, num_blocks}, device));
  batch.attention.max_query_len = count;
  batch.attention.max_context_len = begin + count;
  return batch;
}

absl::Status WriteLogits(const Options& options) {
  ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(options.directory));
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                   Checkpoint::Open(options.directory));
  ASSIGN_OR_RETURN(Backend backend, MakeBackend(options.device));
  Device& device = *backend.device;
  ASSIGN_OR_RETURN(const ExpertPlacement placement, ExpertPlacement::Create(config, 1, 0));
  ASSIGN_OR_RETURN(ModelWeights weights,
                   LoadModelWeights(config, *checkpoint, options.dtype, placement, backend, {}));
  const int64_t num_tokens = static_cast<int64_t>(options.token_ids.size());
  ASSIGN_OR_RETURN(
      const std::unique_ptr<DeepseekMoe> model,
      DeepseekMoe::Create(config, std::move(weights), options.dtype,
                          {options.chunk_tokens, num_tokens, options.chunk_tokens, 0}, &backend));

  const int64_t num_blocks = (num_tokens + kBlockSize - 1) / kBlockSize;
  std::vector<Tensor> kv_layers(config.num_hidden_layers);
  for (Tensor& kv : kv_layers) {
    ASSIGN_OR_RETURN(kv, device.Allocate(options.dtype, {num_blocks, 2, config.num_key_value_heads,
                                                         kBlockSize, config.head_dim()}));
  }
  std::vector<int32_t> rows(options.chunk_tokens);
  std::iota(rows.begin(), rows.end(), 0);
  ASSIGN_OR_RETURN(const Tensor row_ids, ToDevice(rows, {options.chunk_tokens}, device));
  std::vector<float> logits(options.chunk_tokens * config.vocab_size);
  for (int64_t begin = 0; begin < num_tokens; begin += options.chunk_tokens) {
    const int64_t count = std::min(options.chunk_tokens, num_tokens - begin);
    ASSIGN_OR_RETURN(const ForwardBatch batch,
                     MakeBatch(options, begin, count, num_blocks, device));
    model->Forward(batch, kv_layers);
    device.CopyToHost(model->Logits(row_ids.Rows(0, count)), logits.data());
    RETURN_IF_ERROR(device.Synchronize());
    const size_t num_values = count * config.vocab_size;
    if (std::fwrite(logits.data(), sizeof(float), num_values, stdout) != num_values) {
      return absl::InternalError("cannot write to standard output");
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  if (argc < 6) {
    std::fputs("usage: golden_logits CHECKPOINT DEVICE float32|bfloat16 CHUNK TOKEN_ID...\n",
               stderr);
    return 2;
  }
  shoal::Options options;
  options.directory = argv[1];
  options.device = argv[2];
  options.dtype =
      std::string(argv[3]) == "bfloat16" ? shoal::DType::kBFloat16 : shoal::DType::kFloat32;
  options.chunk_tokens = std::stoll(argv[4]);
  for (int i = 5; i < argc; ++i) options.token_ids.push_back(std::stoi(argv[i]));
  const absl::Status status = shoal::WriteLogits(options);
  if (!status.ok())
    std::fprintf(stderr, "golden_logits: %s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}
