#include "engine/execution/batch_builder.h"

namespace shoal {

absl::StatusOr<BatchBuilder> BatchBuilder::Create(const Limits& limits, Device* device) {
  BatchBuilder builder(limits, device);
  const int64_t tokens = limits.max_tokens;
  const int64_t sequences = limits.max_sequences;
  const auto allocate = [device](Input& input,
                                 std::initializer_list<int64_t> shape) -> absl::Status {
    ASSIGN_OR_RETURN(input.device, device->Allocate(DType::kInt32, shape));
    input.host.reserve(static_cast<size_t>(input.device.num_elements()));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(allocate(builder.token_ids_, {tokens}));
  RETURN_IF_ERROR(allocate(builder.positions_, {tokens}));
  RETURN_IF_ERROR(allocate(builder.slot_mapping_, {tokens}));
  RETURN_IF_ERROR(allocate(builder.cu_seqlens_, {sequences + 1}));
  RETURN_IF_ERROR(allocate(builder.block_tables_, {sequences, limits.max_blocks}));
  return builder;
}

ForwardBatch BatchBuilder::Build(const ScheduledBatch& batch) {
  for (Input* input : {&token_ids_, &positions_, &slot_mapping_, &cu_seqlens_, &block_tables_}) {
    input->host.clear();
  }
  logits_rows_.clear();
  sampling_.clear();
  cu_seqlens_.host.push_back(0);
  for (const ScheduledSequence& sequence : batch.sequences) Add(sequence);

  const int64_t num_tokens = batch.num_tokens();
  const int64_t num_sequences = std::ssize(batch.sequences);
  return {.token_ids = Upload(token_ids_, num_tokens),
          .attention = {.positions = Upload(positions_, num_tokens),
                        .slot_mapping = Upload(slot_mapping_, num_tokens),
                        .cu_seqlens = Upload(cu_seqlens_, num_sequences + 1),
                        .block_tables = Upload(block_tables_, num_sequences)}};
}

void BatchBuilder::Add(const ScheduledSequence& sequence) {
  const int32_t first_row = cu_seqlens_.host.back();
  for (size_t i = 0; i < sequence.token_ids.size(); ++i) {
    const int64_t position = sequence.first_position + static_cast<int64_t>(i);
    const auto block = static_cast<size_t>(position / limits_.block_size);
    const int64_t slot =
        sequence.block_table[block] * limits_.block_size + position % limits_.block_size;
    token_ids_.host.push_back(sequence.token_ids[i]);
    positions_.host.push_back(static_cast<int32_t>(position));
    slot_mapping_.host.push_back(static_cast<int32_t>(slot));
  }
  cu_seqlens_.host.push_back(first_row + static_cast<int32_t>(sequence.token_ids.size()));

  std::vector<int32_t>& tables = block_tables_.host;
  const size_t next_table = tables.size() + static_cast<size_t>(limits_.max_blocks);
  tables.insert(tables.end(), sequence.block_table.begin(), sequence.block_table.end());
  SHOAL_CHECK(tables.size() <= next_table, "a sequence has {} blocks, at most {} are possible",
              sequence.block_table.size(), limits_.max_blocks);
  tables.resize(next_table);

  for (const int32_t row : sequence.logits_rows) logits_rows_.push_back(first_row + row);
  sampling_.insert(sampling_.end(), sequence.sampling.begin(), sequence.sampling.end());
}

Tensor BatchBuilder::Upload(const Input& input, int64_t num_rows) {
  const Tensor rows = input.device.Rows(0, num_rows);
  device_->CopyFromHost(input.host.data(), rows);
  return rows;
}

}  // namespace shoal
