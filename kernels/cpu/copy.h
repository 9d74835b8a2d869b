// Copy: stages that move data and compute nothing. Shapes already checked; ids are checked here.
#pragma once

#include "kernels/cpu/cpu.h"
#include "kernels/ops.h"

namespace shoal {

/// out[i] = row ids[i] of the `num_rows` rows at `table`, or zeros for a negative id. Ops::Embed,
/// Ops::GatherRows.
void CopyRows(Cpu& cpu, const void* table, int64_t num_rows, const Tensor& ids, const Tensor& out);

/// Ops::MapIds, Ops::CopyBlocks and Ops::ResolveTokens.
void MapIdsByTable(Cpu& cpu, const Tensor& ids, const Tensor& table, const Tensor& out);
void CopyKvBlocks(Cpu& cpu, const Tensor& kv, const Tensor& copies);
void ResolveTokensByHistory(const Tensor& token_ids, const Tensor& slots, const Tensor& positions,
                            const Tensor& history);

/// The entry of history [num_slots, max_model_len] for one token.
int32_t& HistoryEntry(const Tensor& history, int64_t slot, int64_t position);

}  // namespace shoal
