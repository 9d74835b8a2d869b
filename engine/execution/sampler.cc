#include "engine/execution/sampler.h"

#include <vector>

namespace shoal {
namespace {

template <typename T>
constexpr int64_t BytesOf(int64_t count) {
  return count * static_cast<int64_t>(sizeof(T));
}

/// int32s of a mask.
int64_t MaskWords(int64_t vocab) { return (vocab + 31) / 32; }

/// As Upload() adds them.
int64_t InputBytes(const Sampler::Limits& limits) {
  const int64_t rows = limits.max_rows;
  return InputBuffer::PartBytes(BytesOf<SamplingRow>(rows)) +
         InputBuffer::PartBytes(BytesOf<int32_t>(rows)) +
         InputBuffer::PartBytes(BytesOf<LogitBias>(rows * Sampler::kMaxRowBiases)) +
         InputBuffer::PartBytes(BytesOf<int32_t>(rows * MaskWords(limits.vocab)));
}

}  // namespace

int64_t Sampler::DeviceBytes(const Limits& limits) {
  return InputBytes(limits) + BytesOf<SampledRow>(limits.max_rows);
}

absl::StatusOr<Sampler> Sampler::Create(const Limits& limits, const Tensor& history,
                                        DeepseekMoe* model, Backend* backend) {
  Device& device = *backend->device;
  ASSIGN_OR_RETURN(InputBuffer buffer, InputBuffer::Create(InputBytes(limits), &device));
  Sampler sampler(limits, std::move(buffer));
  ASSIGN_OR_RETURN(sampler.sampled_,
                   device.Allocate(DType::kByte, {BytesOf<SampledRow>(limits.max_rows)}));
  sampler.history_ = history;
  sampler.model_ = model;
  sampler.backend_ = backend;
  return sampler;
}

absl::Status Sampler::WarmUp() {
  const SamplingRow row = {.temperature = 1,
                           .top_p = 0.5f,
                           .typical_p = 0.5f,
                           .repetition_penalty = 2,
                           .top_logprobs = kMaxTopLogprobs,
                           .position = history_.shape[1] - 1};
  const auto num_rows = static_cast<size_t>(limits_.max_rows);
  ScheduledBatch batch;
  batch.logits_rows.assign(num_rows, 0);
  batch.sampling.assign(num_rows, row);
  std::vector<SampledRow> out(num_rows);
  Sample(batch, out);
  return backend_->device->Synchronize();
}

void Sampler::Sample(const ScheduledBatch& batch, std::span<SampledRow> out) {
  const int64_t num_rows = std::ssize(batch.sampling);
  for (int64_t first = 0; first < num_rows; first += limits_.max_rows) {
    const int64_t count = std::min(limits_.max_rows, num_rows - first);
    const Chunk chunk = Upload(batch, first, count);
    const Tensor sampled = sampled_.Rows(0, BytesOf<SampledRow>(count));
    backend_->ops->Sample(model_->Logits(chunk.row_ids), chunk.inputs, sampled);
    backend_->device->CopyToHost(sampled, out.data() + first);
  }
}

/// Brings rows of the batch to the device, with the biases and masks that they refer to.
Sampler::Chunk Sampler::Upload(const ScheduledBatch& batch, int64_t first_row, int64_t num_rows) {
  int64_t num_biases = 0, num_masks = 0;
  for (int64_t i = first_row; i < first_row + num_rows; ++i) {
    const SamplingRow& row = batch.sampling[static_cast<size_t>(i)];
    SHOAL_CHECK(row.num_biases <= kMaxRowBiases, "{} biases of one row", row.num_biases);
    num_biases += row.num_biases;
    if (row.mask >= 0) ++num_masks;
  }
  buffer_.Clear();
  Chunk chunk;
  chunk.inputs.rows = buffer_.Add(DType::kByte, {BytesOf<SamplingRow>(num_rows)});
  chunk.row_ids = buffer_.Add(DType::kInt32, {num_rows});
  chunk.inputs.biases = buffer_.Add(DType::kByte, {BytesOf<LogitBias>(num_biases)});
  chunk.inputs.masks = buffer_.Add(DType::kInt32, {num_masks, MaskWords(limits_.vocab)});
  chunk.inputs.history = history_;
  Write(batch, first_row, chunk);
  buffer_.Upload();
  return chunk;
}

/// Each row's biases and mask follow those of the row before it.
void Sampler::Write(const ScheduledBatch& batch, int64_t first_row, const Chunk& chunk) {
  const int64_t mask_words = MaskWords(limits_.vocab);
  const std::span<SamplingRow> rows = buffer_.Host<SamplingRow>(chunk.inputs.rows);
  const std::span<int32_t> row_ids = buffer_.Host<int32_t>(chunk.row_ids);
  const std::span<LogitBias> biases = buffer_.Host<LogitBias>(chunk.inputs.biases);
  const std::span<int32_t> masks = buffer_.Host<int32_t>(chunk.inputs.masks);
  int32_t num_biases = 0, num_masks = 0;
  std::copy_n(batch.logits_rows.begin() + first_row, row_ids.size(), row_ids.begin());
  std::copy_n(batch.sampling.begin() + first_row, rows.size(), rows.begin());
  for (SamplingRow& row : rows) {
    std::copy_n(batch.biases.begin() + row.first_bias, row.num_biases, biases.begin() + num_biases);
    row.first_bias = num_biases;
    num_biases += row.num_biases;
    if (row.mask < 0) continue;
    std::copy_n(batch.masks.begin() + row.mask * mask_words, mask_words,
                masks.begin() + num_masks * mask_words);
    row.mask = num_masks++;
  }
}

}  // namespace shoal
