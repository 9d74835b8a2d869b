#include "engine/request/prompt_lookup.h"

#include <absl/hash/hash.h>
#include <absl/types/span.h>

#include <algorithm>

#include "kernels/status.h"

namespace shoal {

PromptLookup::PromptLookup(int min_ngram, int max_ngram)
    : min_ngram_(min_ngram), max_ngram_(max_ngram) {
  SHOAL_CHECK(1 <= min_ngram && min_ngram <= max_ngram, "n-grams of {} to {} tokens", min_ngram,
              max_ngram);
  for (int n = min_ngram; n <= max_ngram; ++n) {
    last_.emplace_back(0, NgramHash{&tokens_, n}, NgramEqual{&tokens_, n});
  }
}

void PromptLookup::Propose(std::span<const int32_t> tokens, int64_t max_drafts,
                           std::vector<int32_t>& drafts) {
  const auto size = static_cast<int32_t>(tokens.size());
  SHOAL_CHECK(num_indexed_ <= std::max(size - 1, 0), "a sequence of {} tokens has {} now",
              num_indexed_ + 1, size);
  tokens_ = tokens;
  // All but the last token, so that the last n tokens are not found as themselves.
  while (num_indexed_ + 1 < size) {
    ++num_indexed_;
    for (int n = min_ngram_; n <= std::min(max_ngram_, num_indexed_); ++n) {
      last_[n - min_ngram_].insert_or_assign(num_indexed_, num_indexed_);
    }
  }
  for (int n = std::min(max_ngram_, size); n >= min_ngram_; --n) {
    const auto& last = last_[n - min_ngram_];
    const auto found = last.find(size);
    if (found == last.end()) continue;
    const int64_t num_drafts = std::clamp<int64_t>(max_drafts, 0, size - found->second);
    const auto first = tokens.begin() + found->second;
    drafts.insert(drafts.end(), first, first + num_drafts);
    return;
  }
}

PromptLookup::Tokens PromptLookup::NgramBefore(Tokens tokens, int32_t end, int n) {
  return tokens.subspan(static_cast<size_t>(end - n), static_cast<size_t>(n));
}

size_t PromptLookup::NgramHash::operator()(int32_t end) const {
  const Tokens ngram = NgramBefore(*tokens, end, n);
  return absl::HashOf(absl::MakeConstSpan(ngram.data(), ngram.size()));
}

bool PromptLookup::NgramEqual::operator()(int32_t a, int32_t b) const {
  return std::ranges::equal(NgramBefore(*tokens, a, n), NgramBefore(*tokens, b, n));
}

}  // namespace shoal
