#include "engine/execution/batch_builder.h"

#include <algorithm>
#include <span>

namespace shoal {
namespace {

constexpr int32_t kPadding = -1;

/// Tokens of the sequence up to its last one in this step.
int64_t ContextLen(const ScheduledSequence& sequence) {
  return sequence.first_position + sequence.num_tokens;
}

}  // namespace

BatchShape BatchShape::Of(const ScheduledBatch& batch) {
  BatchShape shape = {.num_sequences = std::ssize(batch.sequences)};
  for (const ScheduledSequence& sequence : batch.sequences) {
    shape.num_tokens += sequence.num_tokens;
    shape.max_query_len = std::max<int64_t>(shape.max_query_len, sequence.num_tokens);
    shape.max_context_len = std::max(shape.max_context_len, ContextLen(sequence));
  }
  return shape;
}

/// As Place() adds them.
int64_t BatchBuilder::DeviceBytes(const Limits& limits) {
  const auto part = [](int64_t count) {
    return InputBuffer::PartBytes(count * SizeOf(DType::kInt32));
  };
  return 4 * part(limits.max_tokens) + part(limits.max_sequences + 1) + part(1) +
         part(limits.max_sequences * limits.max_blocks);
}

absl::StatusOr<BatchBuilder> BatchBuilder::Create(const Limits& limits, Device* device) {
  ASSIGN_OR_RETURN(InputBuffer buffer, InputBuffer::Create(DeviceBytes(limits), device));
  return BatchBuilder(limits, std::move(buffer));
}

BatchInputs BatchBuilder::Build(const ScheduledBatch& batch, const BatchShape& shape) {
  const BatchShape own = BatchShape::Of(batch);
  SHOAL_CHECK(own.num_tokens == batch.num_tokens(), "the sequences have {} tokens, the batch {}",
              own.num_tokens, batch.num_tokens());
  SHOAL_CHECK(
      own.num_tokens <= shape.num_tokens && own.num_sequences <= shape.num_sequences &&
          own.max_query_len <= shape.max_query_len && own.max_context_len <= shape.max_context_len,
      "{} tokens of {} sequences, {} of one, {} up to its last, in a step of {}, {}, {} and {}",
      own.num_tokens, own.num_sequences, own.max_query_len, own.max_context_len, shape.num_tokens,
      shape.num_sequences, shape.max_query_len, shape.max_context_len);
  SHOAL_CHECK(shape.padded ||
                  (own.num_tokens == shape.num_tokens && own.num_sequences == shape.num_sequences),
              "{} tokens of {} sequences in a step of {} and {} without padding", own.num_tokens,
              own.num_sequences, shape.num_tokens, shape.num_sequences);
  buffer_.Clear();
  BatchInputs inputs = Place(shape);
  inputs.forward.rank_tokens = batch.rank_tokens;
  WriteBlockTables(batch, inputs.forward.attention.block_tables);
  Write(batch, inputs);
  buffer_.Upload();
  return inputs;
}

int64_t BatchBuilder::NumBlocks(int64_t context_len) const {
  return (context_len + limits_.block_size - 1) / limits_.block_size;
}

/// The block tables are as wide as the longest sequence needs: a step copies no more than it reads.
BatchInputs BatchBuilder::Place(const BatchShape& shape) {
  const int64_t num_blocks = NumBlocks(shape.max_context_len);
  SHOAL_CHECK(num_blocks <= limits_.max_blocks, "{} blocks of a sequence, at most {} are possible",
              num_blocks, limits_.max_blocks);
  const auto add = [this](std::initializer_list<int64_t> dims) {
    return buffer_.Add(DType::kInt32, dims);
  };
  BatchInputs inputs;
  ForwardBatch& forward = inputs.forward;
  AttentionMeta& attention = forward.attention;
  forward.token_ids = add({shape.num_tokens});
  attention.positions = add({shape.num_tokens});
  attention.slot_mapping = add({shape.num_tokens});
  inputs.history_slots = add({shape.num_tokens});
  attention.cu_seqlens = add({shape.num_sequences + 1});
  if (shape.padded) forward.num_tokens = add({1});
  attention.block_tables = add({shape.num_sequences, num_blocks});
  attention.max_query_len = shape.max_query_len;
  attention.max_context_len = shape.max_context_len;
  return inputs;
}

void BatchBuilder::Write(const ScheduledBatch& batch, const BatchInputs& inputs) {
  const auto host = [this](const Tensor& part) { return buffer_.Host<int32_t>(part); };
  const AttentionMeta& attention = inputs.forward.attention;
  const std::span<int32_t> token_ids = host(inputs.forward.token_ids);
  const std::span<int32_t> positions = host(attention.positions);
  const std::span<int32_t> slot_mapping = host(attention.slot_mapping);
  const std::span<int32_t> history_slots = host(inputs.history_slots);
  const std::span<int32_t> cu_seqlens = host(attention.cu_seqlens);
  std::ranges::copy(batch.token_ids, token_ids.begin());
  std::span<const int32_t> blocks = batch.block_tables;
  size_t token = 0, end = 0;
  cu_seqlens[0] = 0;
  for (const ScheduledSequence& sequence : batch.sequences) {
    for (int64_t position = sequence.first_position; position < ContextLen(sequence); ++position) {
      const int64_t block = blocks[static_cast<size_t>(position / limits_.block_size)];
      const int64_t slot = block * limits_.block_size + position % limits_.block_size;
      positions[token] = static_cast<int32_t>(position);
      slot_mapping[token] = static_cast<int32_t>(slot);
      history_slots[token++] = sequence.slot;
    }
    cu_seqlens[++end] = static_cast<int32_t>(token);
    blocks = blocks.subspan(static_cast<size_t>(sequence.num_blocks));
  }
  std::ranges::fill(token_ids.subspan(token), kPadding);
  std::ranges::fill(positions.subspan(token), 0);
  std::ranges::fill(slot_mapping.subspan(token), kPadding);
  std::ranges::fill(history_slots.subspan(token), kPadding);
  std::ranges::fill(cu_seqlens.subspan(end + 1), static_cast<int32_t>(token));
  if (const Tensor& count = inputs.forward.num_tokens; !count.empty()) {
    host(count)[0] = static_cast<int32_t>(token);
  }
}

/// Past a sequence's blocks the tables are 0.
void BatchBuilder::WriteBlockTables(const ScheduledBatch& batch, const Tensor& block_tables) {
  const auto width = static_cast<size_t>(block_tables.shape[1]);
  std::span<int32_t> tables = buffer_.Host<int32_t>(block_tables);
  std::span<const int32_t> blocks = batch.block_tables;
  for (const ScheduledSequence& sequence : batch.sequences) {
    const int64_t count = NumBlocks(ContextLen(sequence));
    SHOAL_CHECK(count <= sequence.num_blocks, "{} blocks of a sequence that needs {}",
                sequence.num_blocks, count);
    const auto rest =
        std::ranges::copy(blocks.first(static_cast<size_t>(count)), tables.begin()).out;
    std::ranges::fill(rest, tables.begin() + static_cast<std::ptrdiff_t>(width), 0);
    tables = tables.subspan(width);
    blocks = blocks.subspan(static_cast<size_t>(sequence.num_blocks));
  }
  std::ranges::fill(tables, 0);
}

}  // namespace shoal
