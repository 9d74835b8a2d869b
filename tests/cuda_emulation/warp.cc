// The collectives of a warp.

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "tests/cuda_emulation/block.h"
#include "tests/cuda_emulation/report.h"

namespace cuda_emulation {
namespace {

struct ShuffleOperand {
  uint64_t value;
  int argument;
  int width;
  uint64_t result;
};

struct VoteOperand {
  bool predicate;
  uint32_t result;
};

struct MatrixOperand {
  const std::byte* row;
  uint32_t* out;
};

struct MultiplyOperand {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

template <typename T>
T& At(Operands operands, int lane) {
  return *static_cast<T*>(operands[static_cast<size_t>(lane)]);
}

/// The lane whose value `lane` gets: outside its segment of `width` lanes, its own.
int SourceLane(Opcode opcode, int lane, const ShuffleOperand& operand) {
  const int segment = lane / operand.width * operand.width;
  int source = lane;
  switch (opcode) {
    case Opcode::kShuffle:
      return segment + (operand.argument & (operand.width - 1));
    case Opcode::kShuffleXor:
      source = lane ^ operand.argument;
      return source < segment + operand.width ? source : lane;
    case Opcode::kShuffleDown:
      source = lane + operand.argument;
      return source < segment + operand.width ? source : lane;
    default:
      source = lane - operand.argument;
      return source >= segment ? source : lane;
  }
}

void ExecuteShuffle(Opcode opcode, Operands operands) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    auto& operand = At<ShuffleOperand>(operands, lane);
    operand.result = At<ShuffleOperand>(operands, SourceLane(opcode, lane, operand)).value;
  }
}

void ExecuteVote(Operands operands) {
  uint32_t lanes = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    lanes |= static_cast<uint32_t>(At<VoteOperand>(operands, lane).predicate) << lane;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) At<VoteOperand>(operands, lane).result = lanes;
}

/// Wavefronts beyond one for the 8 rows of 16 bytes of a matrix: the banks repeat every 128 bytes.
uint64_t BankConflicts(const std::array<const std::byte*, 8>& rows) {
  std::array<uint8_t, 8> num_rows = {};
  uint8_t most = 1;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (std::find(rows.begin(), rows.begin() + i, rows[i]) != rows.begin() + i) continue;
    most = std::max(most, ++num_rows[reinterpret_cast<uintptr_t>(rows[i]) / 16 % 8]);
  }
  return most - 1u;
}

void ExecuteLoadMatrices(Operands operands, bool transposed) {
  uint64_t conflicts = 0;
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::array<const std::byte*, 8> rows;
    std::array<std::array<uint16_t, 8>, 8> elements;
    for (int row = 0; row < 8; ++row) {
      const auto r = static_cast<size_t>(row);
      rows[r] = At<MatrixOperand>(operands, 8 * matrix + row).row;
      std::memcpy(elements[r].data(), rows[r], sizeof(elements[r]));
    }
    conflicts += BankConflicts(rows);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const auto major = static_cast<size_t>(lane / 4);
      const auto minor = static_cast<size_t>(2 * (lane % 4));
      const uint32_t low = transposed ? elements[minor][major] : elements[major][minor];
      const uint32_t high = transposed ? elements[minor + 1][major] : elements[major][minor + 1];
      At<MatrixOperand>(operands, lane).out[matrix] = low | high << 16;
    }
  }
  current_thread->runner->CountBankConflicts(conflicts);
}

// Two bfloat16, the second in the upper half, of each of 8 columns; and floats.
using Pairs = uint32_t __attribute__((vector_size(32)));
using Row = float __attribute__((vector_size(32)));

/// The matrices of an mma: pairs of a [16, 16 / 2], of b [16 / 2, 8], and c [16, 8].
struct MultiplyTile {
  uint32_t a[16][8];
  alignas(32) uint32_t b[8][8];
  alignas(32) float c[16][8];
};

/// Products of two bfloat16 are exact in float32; the sum of an element is taken in the order of k,
/// each addition rounded.
__attribute__((always_inline)) inline void MultiplyTiles(MultiplyTile& tile) {
  Row b[16];
  for (int pair = 0; pair < 8; ++pair) {
    const Pairs pairs = *reinterpret_cast<const Pairs*>(tile.b[pair]);
    b[2 * pair] = reinterpret_cast<Row>(pairs << 16);
    b[2 * pair + 1] = reinterpret_cast<Row>(pairs & 0xffff0000u);
  }
  for (int row = 0; row < 16; ++row) {
    Row sum = *reinterpret_cast<const Row*>(tile.c[row]);
    for (int pair = 0; pair < 8; ++pair) {
      const Pairs pairs = Pairs{} + tile.a[row][pair];
      sum += reinterpret_cast<Row>(pairs << 16) * b[2 * pair];
      sum += reinterpret_cast<Row>(pairs & 0xffff0000u) * b[2 * pair + 1];
    }
    *reinterpret_cast<Row*>(tile.c[row]) = sum;
  }
}

__attribute__((target("avx2"))) void MultiplyTilesAvx2(MultiplyTile& tile) { MultiplyTiles(tile); }
void MultiplyTilesAnywhere(MultiplyTile& tile) { MultiplyTiles(tile); }

void ExecuteMultiplyAdd(Operands operands) {
  static const bool kAvx2 = __builtin_cpu_supports("avx2");
  MultiplyTile tile;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& operand = At<MultiplyOperand>(operands, lane);
    const int group = lane / 4;
    const int pair = lane % 4;
    for (int i = 0; i < 4; ++i) tile.a[group + 8 * (i % 2)][pair + 4 * (i / 2)] = operand.a[i];
    for (int i = 0; i < 2; ++i) tile.b[pair + 4 * i][group] = operand.b[i];
    for (int i = 0; i < 4; ++i) tile.c[group + 8 * (i / 2)][2 * pair + i % 2] = operand.c[i];
  }
  kAvx2 ? MultiplyTilesAvx2(tile) : MultiplyTilesAnywhere(tile);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& operand = At<MultiplyOperand>(operands, lane);
    for (int i = 0; i < 4; ++i) {
      operand.c[i] = tile.c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
    }
  }
}

}  // namespace

void ExecuteCollective(Opcode opcode, Operands operands) {
  switch (opcode) {
    case Opcode::kBarrier:
      return;
    case Opcode::kShuffle:
    case Opcode::kShuffleXor:
    case Opcode::kShuffleDown:
    case Opcode::kShuffleUp:
      return ExecuteShuffle(opcode, operands);
    case Opcode::kBallot:
    case Opcode::kAny:
    case Opcode::kAll:
      return ExecuteVote(operands);
    case Opcode::kLoadMatrices:
    case Opcode::kLoadMatricesTransposed:
      return ExecuteLoadMatrices(operands, opcode == Opcode::kLoadMatricesTransposed);
    case Opcode::kMultiplyAdd:
      return ExecuteMultiplyAdd(operands);
    case Opcode::kCount:
      break;
  }
  Violation("unknown collective");
}

const char* OpcodeName(Opcode opcode) {
  constexpr std::array<const char*, static_cast<size_t>(Opcode::kCount)> kNames = {
      "__syncwarp",       "__shfl_sync",
      "__shfl_xor_sync",  "__shfl_down_sync",
      "__shfl_up_sync",   "__ballot_sync",
      "__any_sync",       "__all_sync",
      "ldmatrix.m8n8.x4", "ldmatrix.m8n8.x4.trans",
      "mma.m16n8k16"};
  return kNames[static_cast<size_t>(opcode)];
}

void WarpBarrier(uint32_t mask) {
  current_thread->runner->Rendezvous(Opcode::kBarrier, mask, nullptr);
}

uint64_t ShuffleBits(Opcode opcode, uint32_t mask, uint64_t value, int lane_argument, int width) {
  if (width <= 0 || width > kWarpSize || !std::has_single_bit(static_cast<unsigned int>(width))) {
    Violation("%s with a width of %d lanes", OpcodeName(opcode), width);
  }
  ShuffleOperand operand = {value, lane_argument, width, 0};
  current_thread->runner->Rendezvous(opcode, mask, &operand);
  return operand.result;
}

uint32_t Vote(Opcode opcode, uint32_t mask, int predicate) {
  VoteOperand operand = {predicate != 0, 0};
  current_thread->runner->Rendezvous(opcode, mask, &operand);
  return operand.result;
}

void LoadMatrices(Opcode opcode, const void* row, uint32_t (&out)[4]) {
  const SharedMemory& memory = current_thread->runner->shared_memory();
  if (!memory.Contains(row, 16)) {
    Violation("%s from shared memory + %d, which has %zu bytes", OpcodeName(opcode),
              static_cast<int>(SharedOffset(row)), memory.size());
  }
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    Violation("%s from shared memory + %u: not aligned to 16 bytes", OpcodeName(opcode),
              SharedOffset(row));
  }
  NoteAccess(Access::kRead, row, 16);
  MatrixOperand operand = {static_cast<const std::byte*>(row), out};
  current_thread->runner->Rendezvous(opcode, 0xffffffffu, &operand);
}

void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MultiplyOperand operand = {c, a, {b0, b1}};
  current_thread->runner->Rendezvous(Opcode::kMultiplyAdd, 0xffffffffu, &operand);
}

}  // namespace cuda_emulation
