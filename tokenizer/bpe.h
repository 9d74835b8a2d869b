// Bpe: one piece of text to token ids by byte-pair encoding.
#pragma once

#include <absl/container/flat_hash_map.h>

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace shoal {

/// An entry of the vocabulary; its id is its place.
struct Token {
  std::string bytes;  // what it stands for, valid UTF-8 or not; empty: the id is not used
  bool special = false;
};

/// Merges, as long as there are any, the neighbours whose merge has the lowest rank, leftmost first
/// (Sennrich et al. 2016), in O(n log n). Immutable. Thread: any.
class Bpe {
 public:
  struct Merge {
    int32_t left, right, result;  // token ids
  };
  struct Symbol {
    int32_t id;  // -1: merged into the symbol before it
    int32_t previous, next;
  };
  /// Memory that calls reuse. Thread: one at a time.
  struct Workspace {
    std::vector<Symbol> symbols;
    std::vector<uint64_t> heap;  // rank << 32 | position of the left symbol
  };

  /// `tokens` outlive the Bpe. `byte_ids`: the token of each byte, -1 if it has none. `merges`: by
  /// rank; of equal pairs the last counts. `ignore_merges`: a piece that is a token is it at once,
  /// whether merging would give it or not.
  Bpe(std::span<const Token> tokens, const std::array<int32_t, 256>& byte_ids,
      std::vector<Merge> merges, bool ignore_merges);

  /// Appends the ids of `piece`. A byte without a token is left out.
  void Encode(std::string_view piece, Workspace* workspace, std::vector<int32_t>* ids) const;

 private:
  void MergeBytes(std::string_view piece, Workspace* workspace, std::vector<int32_t>* ids) const;
  void PushMerge(int32_t left, Workspace* workspace) const;

  std::array<int32_t, 256> byte_ids_;
  std::vector<Merge> merges_;
  absl::flat_hash_map<uint64_t, int32_t> ranks_;  // places in merges_, by left << 32 | right
  // Ids of the tokens that need no merging, by their bytes in the caller's tokens.
  absl::flat_hash_map<std::string_view, int32_t, std::hash<std::string_view>> words_;
};

}  // namespace shoal
