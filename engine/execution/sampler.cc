#include "engine/execution/sampler.h"

#include <algorithm>

namespace shoal {
namespace {

/// The first `count` elements of a tensor of bytes.
template <typename T>
Tensor First(const Tensor& bytes, int64_t count) {
  return bytes.Rows(0, count * int64_t{sizeof(T)});
}

}  // namespace

absl::StatusOr<Sampler> Sampler::Create(int64_t vocab_limit, const Tensor& history,
                                        DeepseekMoe* model, Backend* backend) {
  Sampler sampler(model, backend);
  Device& device = *backend->device;
  const auto allocate_bytes = [&](int64_t count, size_t size) {
    return device.Allocate(DType::kByte, {count * static_cast<int64_t>(size)});
  };
  SamplingInputs& inputs = sampler.inputs_;
  inputs.history = history;
  ASSIGN_OR_RETURN(inputs.rows, allocate_bytes(kMaxRows, sizeof(SamplingRow)));
  ASSIGN_OR_RETURN(inputs.biases, allocate_bytes(kMaxRows * kMaxRowBiases, sizeof(LogitBias)));
  ASSIGN_OR_RETURN(inputs.masks,
                   device.Allocate(DType::kInt32, {kMaxRows, (vocab_limit + 31) / 32}));
  ASSIGN_OR_RETURN(sampler.row_ids_, device.Allocate(DType::kInt32, {kMaxRows}));
  ASSIGN_OR_RETURN(sampler.sampled_, allocate_bytes(kMaxRows, sizeof(SampledRow)));
  return sampler;
}

void Sampler::WarmUp() {
  const SamplingRow row = {.temperature = 1,
                           .top_p = 0.5f,
                           .typical_p = 0.5f,
                           .repetition_penalty = 2,
                           .top_logprobs = kMaxTopLogprobs,
                           .position = inputs_.history.shape[1] - 1};
  rows_.assign(kMaxRows, row);
  backend_->device->CopyFromHost(rows_.data(), inputs_.rows);
  backend_->ops->Sample(model_->Logits(row_ids_), inputs_, sampled_);
}

void Sampler::Sample(const ScheduledBatch& batch, std::span<SampledRow> out) {
  Device& device = *backend_->device;
  rows_ = batch.sampling;
  const int64_t num_rows = std::ssize(rows_);
  for (int64_t begin = 0; begin < num_rows; begin += kMaxRows) {
    const int64_t count = std::min(kMaxRows, num_rows - begin);
    const Tensor row_ids = row_ids_.Rows(0, count);
    const Tensor sampled = First<SampledRow>(sampled_, count);
    device.CopyFromHost(batch.logits_rows.data() + begin, row_ids);
    const SamplingInputs inputs = Upload(batch, std::span(rows_).subspan(begin, count));
    backend_->ops->Sample(model_->Logits(row_ids), inputs, sampled);
    device.CopyToHost(sampled, out.data() + begin);
  }
}

/// Brings `rows` of the batch to the device with their biases and masks, and has them refer to
/// where these are there.
SamplingInputs Sampler::Upload(const ScheduledBatch& batch, std::span<SamplingRow> rows) {
  Device& device = *backend_->device;
  const int64_t mask_words = inputs_.masks.shape[1];
  int32_t num_biases = 0;
  int32_t num_masks = 0;
  for (SamplingRow& row : rows) {
    SHOAL_CHECK(row.num_biases <= kMaxRowBiases, "{} biases of one row", row.num_biases);
    const Tensor biases = inputs_.biases.Rows(num_biases * int64_t{sizeof(LogitBias)},
                                              row.num_biases * int64_t{sizeof(LogitBias)});
    device.CopyFromHost(batch.biases.data() + row.first_bias, biases);
    row.first_bias = num_biases;
    num_biases += row.num_biases;
    if (row.mask < 0) continue;
    device.CopyFromHost(batch.masks.data() + row.mask * mask_words,
                        inputs_.masks.Rows(num_masks, 1));
    row.mask = num_masks++;
  }
  const Tensor device_rows = First<SamplingRow>(inputs_.rows, std::ssize(rows));
  device.CopyFromHost(rows.data(), device_rows);
  return {.rows = device_rows,
          .history = inputs_.history,
          .biases = First<LogitBias>(inputs_.biases, num_biases),
          .masks = inputs_.masks.Rows(0, num_masks)};
}

}  // namespace shoal
