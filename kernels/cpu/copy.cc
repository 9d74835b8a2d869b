#include "kernels/cpu/copy.h"

#include <algorithm>
#include <cstring>

namespace shoal {

void CopyRows(Cpu& cpu, const void* table, int64_t num_rows, const Tensor& ids, const Tensor& out) {
  const int64_t row_bytes = out.shape[1] * SizeOf(out.dtype);
  const auto* row_ids = ids.as<const int32_t>();
  const auto* from = static_cast<const std::byte*>(table);
  auto* to = out.as<std::byte>();
  cpu.pool->ParallelFor(out.shape[0], GrainFor(row_bytes), [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      SHOAL_CHECK(row_ids[i] < num_rows, "row {} of {}", row_ids[i], num_rows);
      if (row_ids[i] < 0) {
        std::memset(to + i * row_bytes, 0, row_bytes);
      } else {
        std::memcpy(to + i * row_bytes, from + row_ids[i] * row_bytes, row_bytes);
      }
    }
  });
}

void MapIdsByTable(Cpu& cpu, const Tensor& ids, const Tensor& table, const Tensor& out) {
  const int64_t num_entries = table.shape[0];
  const auto* from = ids.as<const int32_t>();
  const auto* entries = table.as<const int32_t>();
  auto* to = out.as<int32_t>();
  cpu.pool->ParallelFor(ids.num_elements(), GrainFor(1), [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      SHOAL_CHECK(from[i] < num_entries, "id {} of {}", from[i], num_entries);
      to[i] = from[i] < 0 ? from[i] : entries[from[i]];
    }
  });
}

void CopyKvBlocks(Cpu& cpu, const Tensor& kv, const Tensor& copies) {
  const int64_t num_blocks = kv.shape[0];
  const int64_t num_copies = copies.shape[0] / static_cast<int64_t>(sizeof(BlockCopy));
  const int64_t block_bytes = num_blocks == 0 ? 0 : kv.size_bytes() / num_blocks;
  const auto* pairs = copies.as<const BlockCopy>();
  auto* blocks = kv.as<std::byte>();
  cpu.pool->ParallelFor(num_copies, GrainFor(block_bytes), [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t source = pairs[i].source, target = pairs[i].target;
      SHOAL_CHECK(std::min(source, target) >= 0 && std::max(source, target) < num_blocks &&
                      source != target,
                  "block {} to {} of {}", source, target, num_blocks);
      std::memcpy(blocks + target * block_bytes, blocks + source * block_bytes, block_bytes);
    }
  });
}

void ResolveTokensByHistory(const Tensor& token_ids, const Tensor& slots, const Tensor& positions,
                            const Tensor& history) {
  for (int64_t t = 0; t < token_ids.shape[0]; ++t) {
    const int32_t slot = slots.as<const int32_t>()[t];
    if (slot < 0) continue;
    int32_t& token = token_ids.as<int32_t>()[t];
    int32_t& entry = HistoryEntry(history, slot, positions.as<const int32_t>()[t]);
    if (token >= 0) {
      entry = token;
    } else {
      token = std::max(entry, 0);
    }
  }
}

int32_t& HistoryEntry(const Tensor& history, int64_t slot, int64_t position) {
  SHOAL_CHECK(slot >= 0 && slot < history.shape[0] && position >= 0 && position < history.shape[1],
              "position {} of slot {} in a history of {} slots, {} tokens each", position, slot,
              history.shape[0], history.shape[1]);
  return history.as<int32_t>()[slot * history.shape[1] + position];
}

}  // namespace shoal
