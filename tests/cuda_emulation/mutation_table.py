"""The bugs that mutations.py plants, and the tests that must find them."""

import dataclasses
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels/cuda"

# The tests that a mutation of a file must be found by, unless it names its own. In them, S is the seed as parity tests
# have it in their names, and I as the others do.
ATTENTION = ("*/AttentionTest.ResultsAre*/I:*/AttentionTest.EqualValues*/I:*/AttentionTest.LongContexts*/I:"
             "*/AttentionTest.GraphsMayBeReplayed/I:*/AttentionTest.Neighbours*/I")
MANY_ITEMS = "*/AttentionTest.ManySequences*/I:*/AttentionTest.Drafts*/I"
GEMM = "*/GemmTest.*/I:*/FfnTest.Experts*/I:*/FfnTest.OneToken*/I"
PLAN = "*/PlanTest.*/I"
FFN = "*/FfnTest.Experts*/I"
NORM = "*/NormTest.NormsRows*/I"
ROUTE = "*/NormTest.Padding*/I"
SELECTION = "*/SamplingTest.AgreesWith*/I:*/SamplingTest.TopLogprobs*/I:*/SamplingTest.RowsDepend*/I"
EDITS = "*/SamplingTest.Edited*/I:*/SamplingTest.LongHistories*/I"
COPY = ("*/OpsParity.Embed*/S:*/OpsParity.Gather*/S:*/OpsParity.MapIds*/S:*/OpsParity.CopyBlocks*/S:"
        "*/OpsParity.ResolveTokens*/S")
ROPE = "*/RopeTest.*/I:*/AttentionParity.WritesRotated*/S"
RANDOM = "*/OpsParity.FillNormal*/S"


@dataclasses.dataclass(frozen=True)
class Mutation:
    name: str
    file: str  # in kernels/cuda
    old: str
    new: str
    tests: str
    checked: bool = False  # whatever the schedule, results stay right: it takes a check of each access


MUTATIONS = []


def mutations(file, tests, *rows, checked=False):
    """Adds one mutation for each (name, old, new) or (name, old, new, tests)."""
    for name, old, new, *own in rows:
        MUTATIONS.append(Mutation(name, file, old, new, *(own or (tests,)), checked=checked))


mutations(
    "gemm_kernel.cuh", GEMM,
    ("wait one group short",
     "WaitForCopies<G::kStages - 2>();\n"
     "          BlockBarrier",
     "WaitForCopies<G::kStages - 1>();\n"
     "          BlockBarrier"),
    ("first wait one group short",
     "WaitForCopies<G::kStages - 2>();\n"
     "  BlockBarrier",
     "WaitForCopies<G::kStages - 1>();\n"
     "  BlockBarrier"),
    ("no barrier after the wait",
     "BlockBarrier<G::kThreads>();\n"
     "          free_stage",
     "free_stage"),
    ("no barrier before the first operands",
     "BlockBarrier<G::kThreads>();\n"
     "  Operands",
     "Operands"),
    ("copies go to the stage that is read next",
     "free_stage = stage;\n"
     "          stage = stage + 1 < G::kStages ? stage + 1 : 0;",
     "stage = stage + 1 < G::kStages ? stage + 1 : 0;\n"
     "          free_stage = stage;"),
    ("copies go to the stage that is being read",
     "Copy<0, 3>(args, tiles, shared.stages[free_stage])",
     "Copy<0, 3>(args, tiles, shared.stages[stage])"),
    ("copies go to the stage before the free one",
     "free_stage = G::kStages - 1",
     "free_stage = G::kStages - 2"),
    ("no swizzle", "((chunk ^ (row & 7)) << 4)", "(chunk << 4)", "*/FfnTest.NoBankConflicts/I"),
    ("rows beyond the group are copied", "inside && row < num_rows_", "inside"),
    ("outputs beyond the weight are copied", "inside && output < num_outputs_", "inside"),
    ("elements beyond the depth are copied",
     "k_ + 8 * Chunk() < args.depth",
     "k_ + 8 * Chunk() <= args.depth"),
    ("no zeros beyond the depth",
     "CopyAsync16(x + ChunkOffset(row, Chunk()), x_[pass], inside && row < num_rows_);",
     "if (inside) CopyAsync16(x + ChunkOffset(row, Chunk()), x_[pass], row < num_rows_);"),
    ("copies go on after the last tile",
     "if (done(tiles)) return;\n"
     "    const bool inside",
     "const bool inside"),
    ("half a tile is taken for enough", "place.num_rows > G::kRows / 2", "place.num_rows > G::kRows / 2 + 1"),
    ("the next group's first tile is the last one's",
     "groups.tile_offsets + group) <= tile",
     "groups.tile_offsets + group) < tile",
     FFN),
    ("experts of other ranks are taken for local",
     "group >= 0 && group < groups.num_groups",
     "group >= 0",
     "*/FfnTest.OneToken*/I"),
    ("the last span is taken for full", "min(kSpan, row_tiles - span * kSpan)", "kSpan"),
    ("outputs beyond the last are stored",
     "if (out_row < 0 || output >= args.num_outputs) return;",
     "if (out_row < 0) return;"),
    ("the last outputs are stored four at a time", "if (i < count) StoreOne", "StoreOne"),
    ("features beyond the last are stored",
     "if (out_row < 0 || first_output >= args.num_outputs) return;",
     "if (out_row < 0) return;",
     FFN),
)
mutations(
    "gemm_kernel.cuh", "*/GemmTest.LinearIsTheSame*/I",
    ("bias beyond the last output is read",
     "if (i < count) sums[i] += static_cast<float>(args.bias",
     "sums[i] += static_cast<float>(args.bias"),
    checked=True,
)
mutations(
    "plan.cu", PLAN,
    ("counts are read before all warps have counted",
     "__syncthreads();\n"
     "  for (int expert = static_cast<int>(threadIdx.x); expert < args.num_experts; expert += kThreads) {\n"
     "    int sum = 0;\n"
     "#pragma unroll\n"
     "    for (int warp",
     "for (int expert = static_cast<int>(threadIdx.x); expert < args.num_experts; expert += kThreads) {\n"
     "    int sum = 0;\n"
     "#pragma unroll\n"
     "    for (int warp"),
    ("totals are read before they are there",
     "shared.totals[expert] = sum;\n"
     "  }\n"
     "  __syncthreads();\n"
     "}",
     "shared.totals[expert] = sum;\n"
     "  }\n"
     "}"),
    ("first rows are read before they are there",
     "args.tile_offsets[args.num_experts] = tiles;\n"
     "    }\n"
     "  }\n"
     "  __syncthreads();",
     "args.tile_offsets[args.num_experts] = tiles;\n"
     "    }\n"
     "  }"),
    ("counts grow before all lanes have read them",
     "__syncwarp();\n"
     "    if (local && rank == 0)",
     "if (local && rank == 0)"),
    ("pairs of no expert count for another", "bit <= args.num_experts", "bit < args.num_experts"),
    ("tiles that are not full are left out",
     "(count + args.tile_rows - 1) / args.tile_rows",
     "count / args.tile_rows"),
    ("blocks beyond the last are counted",
     "first + i < num_blocks ? column[i * args.num_experts] : 0",
     "column[i * args.num_experts]"),
)
mutations(
    "attention_tile.cuh", ATTENTION,
    ("no swizzle", "(column / 8 ^ turn) * 8", "column / 8 * 8", "*/AttentionTest.TilesInShared*/I"),
    ("the key after the last one is seen", "key > last_keys[j / 2]", "key > last_keys[j / 2] + 1"),
    ("the last key is not seen", "key > last_keys[j / 2]", "key >= last_keys[j / 2]"),
    ("the key after the last one is read", "position >= end", "position > end"),
    ("rows that see no key", "highest == kMasked ? 0 : highest * scale", "highest * scale"),
    ("the rows' sums change places", "tile.rows[1].sum = sums[2]", "tile.rows[1].sum = sums[1]"),
)
mutations(
    "attention_long.cuh", ATTENTION,
    ("waits one group short", "kPending = 2 * kStages - 2", "kPending = 2 * kStages - 1"),
    ("no barrier before keys are read",
     "WaitForCopies<kPending>();\n"
     "    __syncthreads();\n"
     "    copy_values",
     "WaitForCopies<kPending>();\n"
     "    copy_values"),
    ("no barrier before values are read",
     "WaitForCopies<kPending>();\n"
     "    __syncthreads();\n"
     "    copy_keys",
     "WaitForCopies<kPending>();\n"
     "    copy_keys"),
    ("values are copied before the barrier",
     "WaitForCopies<kPending>();\n"
     "    __syncthreads();\n"
     "    copy_values(tile + kStages - 1);",
     "copy_values(tile + kStages - 1);\n"
     "    WaitForCopies<kPending + 1>();\n"
     "    __syncthreads();"),
    ("keys go to the stage that is read next",
     "shared.keys[tile % kStages]);\n"
     "    }\n"
     "    CommitCopies",
     "shared.keys[(tile + 1) % kStages]);\n"
     "    }\n"
     "    CommitCopies"),
    ("results overwrite totals that are still read", "__syncthreads();  // all totals have been read\n", ""),
    ("the block's rows are read before they are there",
     "  __syncthreads();\n"
     "  return before > number;",
     "  return before > number;"),
    ("splits end one tile late",
     "tile > 0 && tile % kTilesPerSplit == 0",
     "tile > 1 && tile % kTilesPerSplit == 1",
     "*/AttentionTest.ResultsAre*/I"),
    ("the block's last key is left out",
     "queries.LastKey(attention, end_row - 1) + 1",
     "queries.LastKey(attention, end_row - 1)"),
    ("a tile that needs a mask has none", "> lowest + 1) {", "> lowest + 2) {"),
    ("a tile of which one key is seen is left out",
     "tile * kTileKeys <= highest",
     "tile * kTileKeys < highest"),
    ("rows beyond the last are stored", "if (query_row >= queries.num_rows || ", "if ("),
)
mutations(
    "attention_split.cuh", ATTENTION,
    ("keys: wait one group short",
     "WaitForCopies<kStages - 1>();\n"
     "    __syncwarp();\n"
     "#pragma unroll\n"
     "    for (int step",
     "WaitForCopies<kStages>();\n"
     "    __syncwarp();\n"
     "#pragma unroll\n"
     "    for (int step"),
    ("values: wait one group short",
     "WaitForCopies<kStages - 1>();\n"
     "    __syncwarp();\n"
     "#pragma unroll\n"
     "    for (int j",
     "WaitForCopies<kStages>();\n"
     "    __syncwarp();\n"
     "#pragma unroll\n"
     "    for (int j"),
    ("the next slice goes to a stage that is not read yet", "copy(i + kStages);", "copy(i + kStages - 1);"),
    ("tiles are folded before all are there",
     "__syncthreads();\n"
     "      FoldTiles",
     "FoldTiles"),
    ("the item is read before it is there",
     "number);\n"
     "    __syncthreads();",
     "number);"),
    ("the next item overwrites memory in use",
     "__syncthreads();  // shared memory is free again\n",
     "\n",
     MANY_ITEMS),
    ("is_last is read before it is there",
     "__syncthreads();\n"
     "  __threadfence();\n"
     "  return",
     "__threadfence();\n"
     "  return"),
    ("counters stay", "if (shared.is_last) *counter = 0;", ""),
    ("splits are folded from the last to the first",
     "shared.rows[tile][row], args.scale, split);\n"
     "      sum = Fold(shared.warps[tile]",
     "shared.rows[num_tiles - 1 - tile][row], args.scale, split);\n"
     "      sum = Fold(shared.warps[num_tiles - 1 - tile]",
     "*/AttentionTest.ResultsAre*/I"),
    ("one split more than there are",
     "(context_len + kSplitKeys - 1) / kSplitKeys",
     "context_len / kSplitKeys + 1"),
)
mutations(
    "attention_split.cuh", ATTENTION,
    ("a split counts as done before it is",
     "__threadfence();\n"
     "  __syncthreads();\n"
     "  if (threadIdx.x == 0) {\n"
     "    const int tile",
     "__threadfence();\n"
     "  if (threadIdx.x == 0) {\n"
     "    const int tile"),
    checked=True,
)
mutations(
    "norm.cu", NORM,
    ("squares are added before all are there",
     "= sum;\n"
     "  }\n"
     "  __syncthreads();\n"
     "  const int token",
     "= sum;\n"
     "  }\n"
     "  const int token"),
    ("scales are read before they are there",
     "sqrtf(mean + args.epsilon);\n"
     "  }\n"
     "  __syncthreads();",
     "sqrtf(mean + args.epsilon);\n"
     "  }"),
    ("rows are multiplied before they are there",
     "__syncthreads();\n"
     "  MultiplyRouter",
     "MultiplyRouter",
     ROUTE),
    ("logits are added before all are there",
     "= sums[i / 4][i % 4];\n"
     "    }\n"
     "    __syncthreads();",
     "= sums[i / 4][i % 4];\n"
     "    }",
     ROUTE),
    ("logits are overwritten while they are added",
     "[group + i / kSlots] = sum;\n"
     "    }\n"
     "    __syncthreads();",
     "[group + i / kSlots] = sum;\n"
     "    }",
     ROUTE),
    ("wait one group short", "WaitForCopies<kStages - 1>();", "WaitForCopies<kStages>();", ROUTE),
    ("the last copies are not waited for", "WaitForCopies<0>();\n", "", ROUTE),
    ("experts beyond the last are copied",
     "row < router_.num_experts && column_ < hidden_size_",
     "column_ < hidden_size_",
     ROUTE),
    ("the router's columns beyond the last are read",
     "lane / 4 < rows.num_tokens && column < rows.hidden_size",
     "lane / 4 < rows.num_tokens",
     ROUTE),
    ("vectors beyond the row",
     "token < rows.num_tokens && column < rows.hidden_size) visit",
     "token < rows.num_tokens && column <= rows.hidden_size) visit"),
    ("the higher of two alike",
     "rank == best_rank && id < best_id",
     "rank == best_rank && id > best_id",
     "*/NormParity.RoutingPrefers*/S"),
    ("one padding token is routed",
     "token >= *routing.num_real_tokens) {",
     "token > *routing.num_real_tokens) {",
     ROUTE),
    ("rows of no expert count",
     " || __ldg(ids + first + i) < 0) continue;",
     ") continue;",
     "*/NormTest.Combine*/I"),
)
mutations(
    "block.cuh", SELECTION,
    ("minimum: values are read before all are there",
     "= value;\n"
     "  __syncthreads();",
     "= value;"),
    ("sum: values are overwritten while they are read",
     "WarpRunningSum(value);\n"
     "  __syncthreads();  // nobody still reads what was there\n",
     "WarpRunningSum(value);\n"),
    ("sum: values are read before all are there",
     "= running;\n"
     "  __syncthreads();",
     "= running;"),
)
mutations(
    "token_selection.cuh", SELECTION,
    ("digits are added before they are cleared",
     "shared_.digits.Clear();\n"
     "    __syncthreads();",
     "shared_.digits.Clear();"),
    ("digits are read before all are added",
     "shared_.digits.Add(digit, amount);\n"
     "      }\n"
     "    });\n"
     "    __syncthreads();",
     "shared_.digits.Add(digit, amount);\n"
     "      }\n"
     "    });"),
    ("candidates come before the count is cleared",
     "shared_.num_candidates = 0;\n"
     "    __syncthreads();",
     "shared_.num_candidates = 0;"),
    ("candidates are read before all are there",
     "SpanOf(first), sum);\n"
     "    });\n"
     "    __syncthreads();",
     "SpanOf(first), sum);\n"
     "    });"),
    ("the last token is read before it is found",
     "= candidate.exact;\n"
     "      }\n"
     "    }\n"
     "    __syncthreads();",
     "= candidate.exact;\n"
     "      }\n"
     "    }"),
    ("the place is read before it is found",
     "    __syncthreads();\n"
     "    return shared_.found;",
     "    return shared_.found;"),
    ("no carry", "before + added < added ? 1 : 0", "0", "*/SamplingParity.LargeVocabulary*/S"),
    ("the higher of two alike",
     "if (values[i] > highest)",
     "if (values[i] >= highest)",
     "*/SamplingParity.Greedy*/S"),
    ("more candidates than there is room for",
     "if (i < SelectionShared::kMaxCandidates) shared_",
     "shared_",
     "*/SamplingTest.TiesGo*/I"),
)
mutations(
    "logit_edits.cuh", EDITS,
    ("tokens are counted before the counts are cleared",
     "uses.generated[i] = 0;\n"
     "    __syncthreads();",
     "uses.generated[i] = 0;"),
    ("counts are read before all are counted",
     "atomicAdd(&uses.generated[at], 1);\n"
     "    }\n"
     "    __syncthreads();",
     "atomicAdd(&uses.generated[at], 1);\n"
     "    }"),
    ("counts are cleared while they are read",
     "uses.generated[i]);\n"
     "    }\n"
     "    __syncthreads();",
     "uses.generated[i]);\n"
     "    }"),
    ("biases are added before the mask",
     "mask_words, edited);\n"
     "  __syncthreads();",
     "mask_words, edited);"),
    ("penalties come before the biases",
     "row.num_biases, edited);\n"
     "  __syncthreads();",
     "row.num_biases, edited);"),
    ("the last token of the prompt counts as generated",
     "i >= row.num_prompt_tokens",
     "i >= row.num_prompt_tokens - 1"),
)
mutations(
    "copy.cu", COPY,
    ("rows of no id are not zeros", "id < 0 ? uint4{} : __ldg(from + i)", "__ldg(from + i)"),
    ("one id too many", "if (i >= num_ids) return;", "if (i > num_ids) return;"),
    ("padding is resolved", "t >= args.num_tokens || args.slots[t] < 0", "t >= args.num_tokens"),
)
mutations(
    "rope.cu", ROPE,
    ("padding is written", "if (slot < 0) return;\n", ""),
    ("the last query head is written as a key",
     "if (head < attention.num_heads) return;",
     "if (head + 1 < attention.num_heads) return;"),
    ("values of the last item", "item < num_rotations + num_values", "item + 1 < num_rotations + num_values"),
)
mutations(
    "random.cu", RANDOM,
    ("elements beyond the last", "if (first + i < args.num_elements) args.out", "args.out"),
)
