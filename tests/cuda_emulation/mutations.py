#!/usr/bin/env python3
"""Plants one bug at a time in the CUDA kernels and fails if the tests under the emulator do not find it.

Usage: mutations.py BUILD_DIR [--seeds N] [--jobs N] [--only TEXT] [--list]

BUILD_DIR is a configured build with the target kernels_cuda_test, which is brought up to date first. Each mutation
replaces text that must be there exactly once, compiles the sources that it concerns and links them with the rest of
the test program. The tests of the mutation then run once for each seed, until one fails. If some seeds miss the bug,
the sources are compiled once more, so that every access is checked, and the tests run on one seed. Printed is on how
many seeds the bug was found, what the checker said, and what found it; a bug that nothing finds makes this exit 1.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels/cuda"
TARGET = "kernels_cuda_test"
# A mutation may make a kernel wait for ever, or hand out endless work.
TIMEOUT_SECONDS = 60

# What a kernel is compiled with so that each of its loads and stores is checked.
CHECKED = "-fsanitize-coverage=func,trace-loads,trace-stores"

# The tests that a mutation of a file must be found by, unless it names its own. In them, S is the seed as parity tests
# have it in their names, and I as the others do.
ATTENTION = ("*/AttentionTest.ResultsAre*/I:*/AttentionTest.EqualValues*/I:*/AttentionTest.LongContexts*/I:"
             "*/AttentionTest.GraphsMayBeReplayed/I:*/AttentionTest.Neighbours*/I")
MANY_ITEMS = "*/AttentionTest.ManySequences*/I:*/AttentionTest.Drafts*/I"
GEMM = "*/GemmTest.*/I:*/FfnTest.Experts*/I:*/FfnTest.OneToken*/I"
PLAN = "*/PlanTest.*/I"
NORM = "*/NormTest.NormsRows*/I:*/NormTest.Combine*/I:*/NormTest.Tokens*/I:*/NormTest.Padding*/I"
SELECTION = "*/SamplingTest.AgreesWith*/I:*/SamplingTest.TopLogprobs*/I:*/SamplingTest.RowsDepend*/I"
EVERY_SAMPLING = "*/SamplingTest.*/I:*/SamplingParity.*/S"
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


MUTATIONS = []


def mutations(file, tests, *rows):
    """Adds one mutation for each (name, old, new) or (name, old, new, tests)."""
    for name, old, new, *own in rows:
        MUTATIONS.append(Mutation(name, file, old, new, *(own or (tests,))))


mutations(
    "gemm_kernel.cuh", GEMM,
    ("wait one group short", "WaitForCopies<G::kStages - 2>();\n          BlockBarrier",
     "WaitForCopies<G::kStages - 1>();\n          BlockBarrier"),
    ("first wait one group short", "WaitForCopies<G::kStages - 2>();\n  BlockBarrier",
     "WaitForCopies<G::kStages - 1>();\n  BlockBarrier"),
    ("no barrier after the wait", "BlockBarrier<G::kThreads>();\n          free_stage", "free_stage"),
    ("no barrier before the first operands", "BlockBarrier<G::kThreads>();\n  Operands", "Operands"),
    ("copies go to the stage that is read next", "free_stage = stage;\n          stage = stage + 1 < G::kStages ? stage + 1 : 0;",
     "stage = stage + 1 < G::kStages ? stage + 1 : 0;\n          free_stage = stage;"),
    ("copies go to the stage that is being read", "Copy<0, 3>(args, tiles, shared.stages[free_stage])",
     "Copy<0, 3>(args, tiles, shared.stages[stage])"),
    ("copies go to the stage before the free one", "free_stage = G::kStages - 1", "free_stage = G::kStages - 2"),
    ("no swizzle", "((chunk ^ (row & 7)) << 4)", "(chunk << 4)", "*/FfnTest.NoBankConflicts/I"),
    ("rows beyond the group are copied", "inside && row < num_rows_", "inside"),
    ("outputs beyond the weight are copied", "inside && output < num_outputs_", "inside"),
    ("elements beyond the depth are copied", "k_ + 8 * Chunk() < args.depth", "k_ + 8 * Chunk() <= args.depth"),
    ("no zeros beyond the depth", "CopyAsync16(x + ChunkOffset(row, Chunk()), x_[pass], inside && row < num_rows_);",
     "if (inside) CopyAsync16(x + ChunkOffset(row, Chunk()), x_[pass], row < num_rows_);"),
    ("copies go on after the last tile", "if (done(tiles)) return;\n    const bool inside", "const bool inside"),
    ("half a tile is taken for enough", "place.num_rows > G::kRows / 2", "place.num_rows > G::kRows / 2 + 1"),
    ("the next group's first tile is the last one's", "groups.tile_offsets + group) <= tile",
     "groups.tile_offsets + group) < tile"),
    ("experts of other ranks are taken for local", "group >= 0 && group < groups.num_groups", "group >= 0"),
    ("the last span is taken for full", "min(kSpan, row_tiles - span * kSpan)", "kSpan"),
    ("outputs beyond the last are stored", "if (out_row < 0 || output >= args.num_outputs) return;",
     "if (out_row < 0) return;"),
    ("the last outputs are stored four at a time", "if (i < count) StoreOne", "StoreOne"),
    ("features beyond the last are stored", "if (out_row < 0 || first_output >= args.num_outputs) return;",
     "if (out_row < 0) return;"),
    ("bias beyond the last output is read", "if (i < count) sums[i] += static_cast<float>(args.bias",
     "sums[i] += static_cast<float>(args.bias"),
)
mutations(
    "plan.cu", PLAN,
    ("counts are read before all warps have counted", "__syncthreads();\n  for (int expert = static_cast<int>(threadIdx.x); "
     "expert < args.num_experts; expert += kThreads) {\n    int sum = 0;\n#pragma unroll\n    for (int warp",
     "for (int expert = static_cast<int>(threadIdx.x); "
     "expert < args.num_experts; expert += kThreads) {\n    int sum = 0;\n#pragma unroll\n    for (int warp"),
    ("totals are read before they are there", "shared.totals[expert] = sum;\n  }\n  __syncthreads();\n}",
     "shared.totals[expert] = sum;\n  }\n}"),
    ("first rows are read before they are there", "args.tile_offsets[args.num_experts] = tiles;\n    }\n  }\n  __syncthreads();",
     "args.tile_offsets[args.num_experts] = tiles;\n    }\n  }"),
    ("counts grow before all lanes have read them", "__syncwarp();\n    if (local && rank == 0)", "if (local && rank == 0)"),
    ("pairs of no expert count for another", "bit <= args.num_experts", "bit < args.num_experts"),
    ("tiles that are not full are left out", "(count + args.tile_rows - 1) / args.tile_rows", "count / args.tile_rows"),
    ("blocks beyond the last are counted", "first + i < num_blocks ? column[i * args.num_experts] : 0",
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
    ("no barrier before keys are read", "WaitForCopies<kPending>();\n    __syncthreads();\n    copy_values",
     "WaitForCopies<kPending>();\n    copy_values"),
    ("no barrier before values are read", "WaitForCopies<kPending>();\n    __syncthreads();\n    copy_keys",
     "WaitForCopies<kPending>();\n    copy_keys"),
    ("values are copied before the barrier", "WaitForCopies<kPending>();\n    __syncthreads();\n    copy_values(tile + kStages - 1);",
     "copy_values(tile + kStages - 1);\n    WaitForCopies<kPending + 1>();\n    __syncthreads();"),
    ("keys go to the stage that is read next", "shared.keys[tile % kStages]);\n    }\n    CommitCopies",
     "shared.keys[(tile + 1) % kStages]);\n    }\n    CommitCopies"),
    ("results overwrite totals that are still read", "__syncthreads();  // all totals have been read\n", ""),
    ("the block's rows are read before they are there", "  __syncthreads();\n  return before > number;", "  return before > number;"),
    ("splits end one tile late", "tile > 0 && tile % kTilesPerSplit == 0", "tile > 1 && tile % kTilesPerSplit == 1"),
    ("the block's last key is left out", "queries.LastKey(attention, end_row - 1) + 1", "queries.LastKey(attention, end_row - 1)"),
    ("a tile that needs a mask has none", "> lowest + 1) {", "> lowest + 2) {"),
    ("a tile of which one key is seen is left out", "tile * kTileKeys <= highest", "tile * kTileKeys < highest"),
    ("rows beyond the last are stored", "if (query_row >= queries.num_rows || ", "if ("),
)
mutations(
    "attention_split.cuh", ATTENTION,
    ("keys: wait one group short", "WaitForCopies<kStages - 1>();\n    __syncwarp();\n#pragma unroll\n    for (int step",
     "WaitForCopies<kStages>();\n    __syncwarp();\n#pragma unroll\n    for (int step"),
    ("values: wait one group short", "WaitForCopies<kStages - 1>();\n    __syncwarp();\n#pragma unroll\n    for (int j",
     "WaitForCopies<kStages>();\n    __syncwarp();\n#pragma unroll\n    for (int j"),
    ("the next slice goes to a stage that is not read yet", "copy(i + kStages);", "copy(i + kStages - 1);"),
    ("tiles are folded before all are there", "__syncthreads();\n      FoldTiles", "FoldTiles"),
    ("the item is read before it is there", "number);\n    __syncthreads();", "number);"),
    ("the next item overwrites memory in use", "__syncthreads();  // shared memory is free again\n", "\n", MANY_ITEMS),
    ("a split counts as done before it is", "__threadfence();\n  __syncthreads();\n  if (threadIdx.x == 0) {\n    const int tile",
     "__threadfence();\n  if (threadIdx.x == 0) {\n    const int tile"),
    ("is_last is read before it is there", "__syncthreads();\n  __threadfence();\n  return", "__threadfence();\n  return"),
    ("counters stay", "if (shared.is_last) *counter = 0;", ""),
    ("splits are folded from the last to the first", "shared.rows[tile][row], args.scale, split);\n      sum = Fold(shared.warps[tile]",
     "shared.rows[num_tiles - 1 - tile][row], args.scale, split);\n      sum = Fold(shared.warps[num_tiles - 1 - tile]"),
    ("one split more than there are", "(context_len + kSplitKeys - 1) / kSplitKeys", "context_len / kSplitKeys + 1"),
)
mutations(
    "norm.cu", NORM,
    ("squares are added before all are there", "= sum;\n  }\n  __syncthreads();\n  const int token", "= sum;\n  }\n  const int token"),
    ("scales are read before they are there", "sqrtf(mean + args.epsilon);\n  }\n  __syncthreads();", "sqrtf(mean + args.epsilon);\n  }"),
    ("rows are multiplied before they are there", "__syncthreads();\n  MultiplyRouter", "MultiplyRouter"),
    ("logits are added before all are there", "= sums[i / 4][i % 4];\n    }\n    __syncthreads();", "= sums[i / 4][i % 4];\n    }"),
    ("logits are overwritten while they are added", "[group + i / kSlots] = sum;\n    }\n    __syncthreads();",
     "[group + i / kSlots] = sum;\n    }"),
    ("wait one group short", "WaitForCopies<kStages - 1>();", "WaitForCopies<kStages>();"),
    ("the last copies are not waited for", "WaitForCopies<0>();\n", ""),
    ("experts beyond the last are copied", "row < router_.num_experts && column_ < hidden_size_", "column_ < hidden_size_"),
    ("the router's columns beyond the last are read", "lane / 4 < rows.num_tokens && column < rows.hidden_size", "lane / 4 < rows.num_tokens"),
    ("vectors beyond the row", "token < rows.num_tokens && column < rows.hidden_size) visit",
     "token < rows.num_tokens && column <= rows.hidden_size) visit"),
    ("the higher of two alike", "rank == best_rank && id < best_id", "rank == best_rank && id > best_id"),
    ("one padding token is routed", "token >= *routing.num_real_tokens) {", "token > *routing.num_real_tokens) {"),
    ("rows of no expert count", " || __ldg(ids + first + i) < 0) continue;", ") continue;"),
    ("normalised rows are not rounded", "    Unpack(Pack(x), x);\n", ""),
)
mutations(
    "block.cuh", SELECTION,
    ("minimum: values are overwritten while they are read", "value = WarpMin(value);\n  __syncthreads();  // nobody still reads what was there\n",
     "value = WarpMin(value);\n"),
    ("minimum: values are read before all are there", "= value;\n  __syncthreads();", "= value;"),
    ("sum: values are overwritten while they are read", "WarpRunningSum(value);\n  __syncthreads();  // nobody still reads what was there\n",
     "WarpRunningSum(value);\n"),
    ("sum: values are read before all are there", "= running;\n  __syncthreads();", "= running;"),
)
mutations(
    "token_selection.cuh", SELECTION,
    ("digits are added before they are cleared", "shared_.digits.Clear();\n    __syncthreads();", "shared_.digits.Clear();"),
    ("digits are read before all are added", "shared_.digits.Add(digit, amount);\n      }\n    });\n    __syncthreads();",
     "shared_.digits.Add(digit, amount);\n      }\n    });"),
    ("candidates come before the count is cleared", "shared_.num_candidates = 0;\n    __syncthreads();", "shared_.num_candidates = 0;"),
    ("candidates are read before all are there", "SpanOf(first), sum);\n    });\n    __syncthreads();", "SpanOf(first), sum);\n    });"),
    ("the last token is read before it is found", "= candidate.exact;\n      }\n    }\n    __syncthreads();", "= candidate.exact;\n      }\n    }"),
    ("the place is read before it is found", "    __syncthreads();\n    return shared_.found;", "    return shared_.found;"),
    ("no carry", "before + added < added ? 1 : 0", "0", EVERY_SAMPLING),
    ("the higher of two alike", "if (values[i] > highest)", "if (values[i] >= highest)"),
    ("tokens beyond the vocabulary", "id >= row_.vocab || filter_.Compare", "filter_.Compare", EVERY_SAMPLING),
    ("more candidates than there is room for", "if (i < SelectionShared::kMaxCandidates) shared_", "shared_", EVERY_SAMPLING),
)
mutations(
    "sampling.cu", EDITS,
    ("the token is read before it is there", "  __syncthreads();\n  if (token >= 0 && row.top_logprobs", "  if (token >= 0 && row.top_logprobs",
     SELECTION),
)
mutations(
    "logit_edits.cuh", EDITS,
    ("tokens are counted before the counts are cleared", "uses.generated[i] = 0;\n    __syncthreads();", "uses.generated[i] = 0;"),
    ("counts are read before all are counted", "atomicAdd(&uses.generated[at], 1);\n    }\n    __syncthreads();",
     "atomicAdd(&uses.generated[at], 1);\n    }"),
    ("counts are cleared while they are read", "uses.generated[i]);\n    }\n    __syncthreads();", "uses.generated[i]);\n    }"),
    ("biases are added before the mask", "mask_words, edited);\n  __syncthreads();", "mask_words, edited);"),
    ("penalties come before the biases", "row.num_biases, edited);\n  __syncthreads();", "row.num_biases, edited);"),
    ("the last token of the prompt counts as generated", "i >= row.num_prompt_tokens", "i >= row.num_prompt_tokens - 1"),
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
    ("the last query head is written as a key", "if (head < attention.num_heads) return;", "if (head + 1 < attention.num_heads) return;"),
    ("values of the last item", "item < num_rotations + num_values", "item + 1 < num_rotations + num_values"),
)
mutations(
    "random.cu", RANDOM,
    ("elements beyond the last", "if (first + i < args.num_elements) args.out", "args.out"),
)


class Build:
    """Commands of a build directory."""

    def __init__(self, directory):
        self.directory = directory.resolve()
        subprocess.run(["ninja", "-C", str(self.directory), TARGET], check=True, stdout=subprocess.DEVNULL)
        link = self._ninja("-t", "commands", TARGET).splitlines()[-1]
        self.link = shlex.split(link.split("&&")[1] if "&&" in link else link)
        self.program = self.directory / self.link[self.link.index("-o") + 1]
        self.ccache = shutil.which("ccache")
        self.entries = {}  # of compilations of kernels, by the name of the source
        self.includes = {}  # what each of them includes
        for entry in json.loads(self._ninja("-t", "compdb")):
            source = pathlib.Path(entry["file"])
            if source.suffix == ".cu" and source.parent == KERNELS and "cuda_emulated.dir" in entry["output"]:
                self.entries[source.name] = entry
                self.includes[source.name] = self._ninja("-t", "deps", entry["output"]).split()

    def _ninja(self, *arguments):
        return subprocess.run(["ninja", "-C", str(self.directory), "--quiet", *arguments], check=True,
                              capture_output=True, text=True).stdout

    def sources_using(self, file):
        """The .cu files that are, or include, a file of kernels/cuda."""
        return sorted(name for name, included in self.includes.items()
                      if name == file or str(KERNELS / file) in included)

    def compile_source(self, name, mutant, flags):
        """The object file of a source, with what `mutant` holds in place of its headers and itself."""
        own = mutant / "kernels/cuda" / name
        output = mutant / f"{name}.o"
        words, skip = [], False
        for word in shlex.split(self.entries[name]["command"]):
            if not skip and word not in ("-MT", "-MF", "-o", "-c", "-MD") and not word.endswith("ccache"):
                words.append(word)
            skip = word in ("-MT", "-MF", "-o", "-c")
        # A mutant may leave something unused.
        words[1:1] = ["-w", *flags, f"-I{mutant}"]
        words += ["-o", str(output), "-c", str(own if own.exists() else KERNELS / name)]
        run_tool(words if self.ccache is None else [self.ccache, *words], self.directory)
        return output

    def link_program(self, objects, output):
        """The test program, with `objects` in place of members of libraries: what comes first counts."""
        words = list(self.link)
        at = words.index("-o")
        words[at + 1] = str(output)
        words[at:at] = [str(path) for path in objects]
        run_tool(words, self.directory)


class NoMutant(Exception):
    """A mutation that cannot be made."""


def run_tool(words, directory):
    result = subprocess.run(words, cwd=directory, capture_output=True, text=True)
    if result.returncode != 0:
        errors = re.findall(r"error: .*", result.stderr)
        raise NoMutant(errors[0] if errors else result.stderr[-300:])


def write(path, text):
    """Writes a file unless it is so already: compilers' caches look at its time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def tests_of_seed(tests, seed):
    return ":".join(re.sub(r"/I$", f"/{seed - 1}", re.sub(r"/S$", f"/Seed{seed}", each)) for each in tests.split(":"))


def run_tests(program, tests, seed):
    """None if all tests pass, otherwise what failed."""
    command = [str(program), "--gtest_fail_fast", "--gtest_brief=1", f"--gtest_filter={tests_of_seed(tests, seed)}"]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace",
                                timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return "takes too long"
    if result.returncode == 0:
        return None
    violation = re.search(r"CUDA emulation: (.*?)(?:; kernel .*)?$", result.stderr, re.MULTILINE)
    if violation:
        return re.sub(r"0x[0-9a-f]+|\d+", "N", violation.group(1))[:60]
    failed = re.search(r"\[  FAILED  \] (?:\w+/)?(\w+\.\w+)", result.stdout)
    return failed.group(1) if failed else f"exit code {result.returncode}"


@dataclasses.dataclass
class Finding:
    mutation: Mutation
    seeds: int = 0  # on which it was found
    by: str = ""
    checked: str = ""  # what the checker of accesses said, if it was asked
    trouble: str = ""  # no mutant came of it

    @property
    def found(self):
        return not self.trouble and (self.seeds > 0 or self.checked != "")


def make_mutant(build, mutation, directory, flags):
    """The test program with a mutation."""
    text = (KERNELS / mutation.file).read_text()
    count = text.count(mutation.old)
    if count != 1:
        raise NoMutant(f"its text is in {mutation.file} {count} times")
    for other in directory.glob("kernels/cuda/*"):
        if other.name != mutation.file:
            other.unlink()
    write(directory / "kernels/cuda" / mutation.file, text.replace(mutation.old, mutation.new))
    program = directory / TARGET
    sources = build.sources_using(mutation.file)
    build.link_program([build.compile_source(source, directory, flags) for source in sources], program)
    return program


def examine(build, number, mutation, num_seeds):
    finding = Finding(mutation)
    directory = build.directory / "mutations" / f"{number:03}"
    try:
        program = make_mutant(build, mutation, directory, [])
        reasons = [run_tests(program, mutation.tests, seed) for seed in range(1, num_seeds + 1)]
        reasons = sorted(reason for reason in reasons if reason)
        finding.seeds = len(reasons)
        finding.by = max(reasons, key=reasons.count, default="")
        if finding.seeds < num_seeds:
            program = make_mutant(build, mutation, directory, [CHECKED])
            finding.checked = run_tests(program, mutation.tests, 1) or ""
        program.unlink()
    except NoMutant as trouble:
        finding.trouble = str(trouble)
    return finding


def check_tests(build, chosen):
    """Exits unless every test that a mutation names is there, and passes without it."""
    for tests in sorted({mutation.tests for mutation in chosen}):
        for each in tests_of_seed(tests, 1).split(":"):
            listed = subprocess.run([str(build.program), "--gtest_list_tests", f"--gtest_filter={each}"], check=True,
                                    capture_output=True, text=True, cwd=ROOT).stdout
            if not re.search(r"^  \S", listed, re.MULTILINE):
                sys.exit(f"mutations.py: there is no test {each}")
        reason = run_tests(build.program, tests, 1)
        if reason:
            sys.exit(f"mutations.py: without any mutation, {tests} fails: {reason}")


def print_finding(finding, num_seeds):
    seeds = "-" if finding.trouble else f"{finding.seeds}/{num_seeds}"
    what = finding.trouble or finding.by
    if finding.checked:
        what += f"{'; ' if what else ''}checked: {finding.checked}"
    mark = "" if finding.found else "  <- NO MUTANT" if finding.trouble else "  <- NOT FOUND"
    print(f"{finding.mutation.file:20} {finding.mutation.name:54} {seeds:>6}  {what}{mark}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="mutations whose file or name has this text")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    chosen = [(number, mutation) for number, mutation in enumerate(MUTATIONS)
              if arguments.only in f"{mutation.file}: {mutation.name}"]
    if arguments.list:
        for _, mutation in chosen:
            print(f"{mutation.file}: {mutation.name}")
        return 0
    start = time.monotonic()
    build = Build(arguments.build)
    check_tests(build, [mutation for _, mutation in chosen])
    findings = []
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for finding in pool.map(lambda each: examine(build, *each, arguments.seeds), chosen):
            print_finding(finding, arguments.seeds)
            findings.append(finding)
    num_found = sum(finding.found for finding in findings)
    print(f"{num_found} of {len(findings)} found, {time.monotonic() - start:.0f} s")
    return 0 if num_found == len(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
