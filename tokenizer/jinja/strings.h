// String operations of Python's str and of Jinja's filters, on text that keeps its origin.
#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "tokenizer/jinja/value.h"

namespace shoal::jinja {

enum class Side { kLeft, kRight, kBoth };

/// Without the characters of `characters` (white space if none) at the ends.
Text Strip(const Text& text, const std::optional<Text>& characters, Side side);

/// At most `limit` cuts (negative: all), from the left or, with Side::kRight, from the right.
/// Without a separator: at runs of white space, no empty parts. The separator is not empty.
std::vector<Text> Split(const Text& text, const std::optional<Text>& separator, int64_t limit,
                        Side side);
std::vector<Text> SplitLines(const Text& text, bool keep_ends);

/// The first `limit` occurrences (negative: all) replaced. RESOURCE_EXHAUSTED: too long.
absl::StatusOr<Text> Replace(Heap& heap, const Text& text, const Text& from, const Text& to,
                             int64_t limit);

enum class Case {
  kUpper,
  kLower,
  kCapitalized,  // first character upper, the rest lower
  kTitle,        // as str.title(): a capital wherever letters begin
  kWords,        // as the filter title: a capital after white space and - ( { [ <
};
Text ToCase(const Text& text, Case target);
/// Whether there are cased characters and all are `target`, kUpper or kLower.
bool HasCase(std::string_view text, Case target);

/// "{}", "{0}" and "{name}" of str.format, without format specifications.
absl::StatusOr<Value> FormatBraces(Heap& heap, const Text& format, const Args& args);
/// %s, %d, %i, %f with an optional width, 0 and precision, as Python's % operator.
absl::StatusOr<Value> FormatPercent(Heap& heap, const Text& format, std::span<const Value> values);

}  // namespace shoal::jinja
