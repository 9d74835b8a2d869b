#include "tokenizer/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>

namespace shoal {
namespace {

// The definition, one merge at a time over the whole piece.
std::vector<int32_t> MergeOneByOne(std::vector<int32_t> ids,
                                   const std::vector<Bpe::Merge>& merges) {
  while (true) {
    size_t best_rank = merges.size();
    size_t best = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank].left != ids[i] || merges[rank].right != ids[i + 1]) continue;
        best_rank = rank;
        best = i;
      }
    }
    if (best_rank == merges.size()) return ids;
    ids[best] = merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

struct Vocabulary {
  std::vector<Token> tokens;
  std::array<int32_t, 256> byte_ids;
  std::vector<Bpe::Merge> merges;
};

// Three letters and random merges over them, as a trainer could have found them.
Vocabulary RandomVocabulary(std::mt19937* random) {
  Vocabulary vocabulary{{{"a"}, {"b"}, {"c"}}, {}, {}};
  vocabulary.byte_ids.fill(-1);
  for (int i = 0; i < 3; ++i) vocabulary.byte_ids['a' + i] = i;
  std::map<std::string, int32_t> known = {{"a", 0}, {"b", 1}, {"c", 2}};
  while (vocabulary.merges.size() < 12) {
    const auto left = static_cast<int32_t>((*random)() % vocabulary.tokens.size());
    const auto right = static_cast<int32_t>((*random)() % vocabulary.tokens.size());
    const std::string bytes = vocabulary.tokens[left].bytes + vocabulary.tokens[right].bytes;
    if (known.contains(bytes)) continue;
    known[bytes] = static_cast<int32_t>(vocabulary.tokens.size());
    vocabulary.merges.push_back({left, right, known[bytes]});
    vocabulary.tokens.push_back({bytes});
  }
  return vocabulary;
}

TEST(Bpe, MergesLowestRankLeftmostFirst) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const Vocabulary vocabulary = RandomVocabulary(&random);
    const Bpe bpe(vocabulary.tokens, vocabulary.byte_ids, vocabulary.merges, false);
    Bpe::Workspace workspace;
    for (int i = 0; i < 20; ++i) {
      std::string piece(random() % 30, '\0');
      for (char& letter : piece) letter = static_cast<char>('a' + random() % 3);
      std::vector<int32_t> letters;
      for (const char letter : piece) letters.push_back(letter - 'a');
      std::vector<int32_t> ids;
      bpe.Encode(piece, &workspace, &ids);
      ASSERT_EQ(ids, MergeOneByOne(letters, vocabulary.merges)) << piece;
    }
  }
}

// "abc" cannot come of its merges, as "ab" goes first and no merge takes "ab" and "c".
TEST(Bpe, TakesAnUnreachableTokenOnlyWhenMergesAreIgnored) {
  Vocabulary vocabulary{
      {{"a"}, {"b"}, {"c"}, {"ab"}, {"bc"}, {"abc"}}, {}, {{0, 1, 3}, {1, 2, 4}, {0, 4, 5}}};
  vocabulary.byte_ids.fill(-1);
  for (int i = 0; i < 3; ++i) vocabulary.byte_ids['a' + i] = i;
  for (const bool ignore_merges : {false, true}) {
    const Bpe bpe(vocabulary.tokens, vocabulary.byte_ids, vocabulary.merges, ignore_merges);
    Bpe::Workspace workspace;
    std::vector<int32_t> ids;
    bpe.Encode("abc", &workspace, &ids);
    EXPECT_EQ(ids, ignore_merges ? std::vector<int32_t>({5}) : std::vector<int32_t>({3, 2}));
  }
}

}  // namespace
}  // namespace shoal
