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
  ASSIGN_OR_RETURN(builder.token_ids_, device->Allocate(DType::kInt32, {tokens}));
  RETURN_IF_ERROR(allocate(builder.positions_, {tokens}));
  RETURN_IF_ERROR(allocate(builder.slot_mapping_, {tokens}));
  RETURN_IF_ERROR(allocate(builder.history_slots_, {tokens}));
  RETURN_IF_ERROR(allocate(builder.cu_seqlens_, {sequences + 1}));
  RETURN_IF_ERROR(allocate(builder.block_tables_, {sequences, limits.max_blocks}));
  return builder;
}

BatchInputs BatchBuilder::Build(const ScheduledBatch& batch) {
  for (Input* input :
       {&positions_, &slot_mapping_, &history_slots_, &cu_seqlens_, &block_tables_}) {
    input->host.clear();
  }
  cu_seqlens_.host.push_back(0);
  std::span<const int32_t> blocks = batch.block_tables;
  for (const ScheduledSequence& sequence : batch.sequences) {
    Add(sequence, blocks.first(sequence.num_blocks));
    blocks = blocks.subspan(sequence.num_blocks);
  }
  const int64_t num_tokens = batch.num_tokens();
  SHOAL_CHECK(cu_seqlens_.host.back() == num_tokens, "the sequences have {} tokens, the batch {}",
              cu_seqlens_.host.back(), num_tokens);

  const int64_t num_sequences = std::ssize(batch.sequences);
  const auto upload = [this](const Input& input, int64_t num_rows) {
    return Upload(input.host, input.device, num_rows);
  };
  return {.forward = {.token_ids = Upload(batch.token_ids, token_ids_, num_tokens),
                      .attention = {.positions = upload(positions_, num_tokens),
                                    .slot_mapping = upload(slot_mapping_, num_tokens),
                                    .cu_seqlens = upload(cu_seqlens_, num_sequences + 1),
                                    .block_tables = upload(block_tables_, num_sequences)},
                      .rank_tokens = batch.rank_tokens},
          .history_slots = upload(history_slots_, num_tokens)};
}

void BatchBuilder::Add(const ScheduledSequence& sequence, std::span<const int32_t> blocks) {
  for (int32_t i = 0; i < sequence.num_tokens; ++i) {
    const int64_t position = sequence.first_position + i;
    const int64_t block = blocks[static_cast<size_t>(position / limits_.block_size)];
    const int64_t slot = block * limits_.block_size + position % limits_.block_size;
    positions_.host.push_back(static_cast<int32_t>(position));
    slot_mapping_.host.push_back(static_cast<int32_t>(slot));
    history_slots_.host.push_back(sequence.slot);
  }
  cu_seqlens_.host.push_back(cu_seqlens_.host.back() + sequence.num_tokens);

  std::vector<int32_t>& tables = block_tables_.host;
  const size_t next_table = tables.size() + static_cast<size_t>(limits_.max_blocks);
  tables.insert(tables.end(), blocks.begin(), blocks.end());
  SHOAL_CHECK(tables.size() <= next_table, "a sequence has {} blocks, at most {} are possible",
              blocks.size(), limits_.max_blocks);
  tables.resize(next_table);
}

Tensor BatchBuilder::Upload(std::span<const int32_t> values, const Tensor& input,
                            int64_t num_rows) {
  const Tensor rows = input.Rows(0, num_rows);
  device_->CopyFromHost(values.data(), rows);
  return rows;
}

}  // namespace shoal
