#include "tokenizer/bpe.h"

#include <algorithm>
#include <functional>
#include <utility>

namespace shoal {
namespace {

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(std::span<const Token> tokens, const std::array<int32_t, 256>& byte_ids,
         std::vector<Merge> merges, bool ignore_merges)
    : byte_ids_(byte_ids), merges_(std::move(merges)) {
  ranks_.reserve(merges_.size());
  for (size_t rank = 0; rank < merges_.size(); ++rank) {
    ranks_[PairKey(merges_[rank].left, merges_[rank].right)] = static_cast<int32_t>(rank);
  }
  // Most pieces of real text are one token: those that merging gives anyway are found without
  // merging.
  Workspace workspace;
  std::vector<int32_t> ids;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string& bytes = tokens[id].bytes;
    if (tokens[id].special || bytes.empty()) continue;
    ids.clear();
    if (!ignore_merges) MergeBytes(bytes, &workspace, &ids);
    if (ignore_merges || (ids.size() == 1 && ids[0] == static_cast<int32_t>(id))) {
      words_[bytes] = static_cast<int32_t>(id);
    }
  }
}

void Bpe::Encode(std::string_view piece, Workspace* workspace, std::vector<int32_t>* ids) const {
  if (const auto word = words_.find(piece); word != words_.end()) {
    ids->push_back(word->second);
  } else {
    MergeBytes(piece, workspace, ids);
  }
}

void Bpe::MergeBytes(std::string_view piece, Workspace* workspace,
                     std::vector<int32_t>* ids) const {
  std::vector<Symbol>& symbols = workspace->symbols;
  symbols.clear();
  for (const char byte : piece) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    const auto position = static_cast<int32_t>(symbols.size());
    if (id >= 0) symbols.push_back({id, position - 1, position + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;

  std::vector<uint64_t>& heap = workspace->heap;
  heap.clear();
  for (size_t left = 0; left < symbols.size(); ++left) {
    PushMerge(static_cast<int32_t>(left), workspace);
  }
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const Merge& merge = merges_[heap.back() >> 32];
    const auto left = static_cast<int32_t>(heap.back() & 0xFFFFFFFF);
    heap.pop_back();
    const int32_t right = symbols[left].next;
    // An earlier merge may have taken either side since this one was pushed.
    if (symbols[left].id != merge.left || right < 0 || symbols[right].id != merge.right) continue;
    symbols[left].id = merge.result;
    symbols[left].next = symbols[right].next;
    symbols[right].id = -1;
    if (symbols[left].next >= 0) symbols[symbols[left].next].previous = left;
    PushMerge(left, workspace);
    if (symbols[left].previous >= 0) PushMerge(symbols[left].previous, workspace);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids->push_back(symbols[i].id);
}

void Bpe::PushMerge(int32_t left, Workspace* workspace) const {
  const std::vector<Symbol>& symbols = workspace->symbols;
  const int32_t right = symbols[left].next;
  if (right < 0) return;
  const auto rank = ranks_.find(PairKey(symbols[left].id, symbols[right].id));
  if (rank == ranks_.end()) return;
  const auto key = static_cast<uint64_t>(rank->second) << 32 | static_cast<uint32_t>(left);
  workspace->heap.push_back(key);
  std::push_heap(workspace->heap.begin(), workspace->heap.end(), std::greater<>());
}

}  // namespace shoal
