// Text: a string that remembers which of its bytes came from untrusted input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/jinja/jinja.h"

namespace shoal::jinja {

/// UTF-8 bytes plus the ranges of them that stem from input. Thread: one.
class Text {
 public:
  Text() = default;
  explicit Text(std::string bytes, bool from_input = false);

  std::string_view view() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }

  void Append(std::string_view bytes, bool from_input);
  void Append(const Text& other) { Append(other, 0, other.size()); }
  /// Bytes [begin, end) of `source`, which is another object, with their origin.
  void Append(const Text& source, size_t begin, size_t end);

  Text Slice(size_t begin, size_t end) const;

  /// Whether any byte stems from input.
  bool FromInput() const { return !input_.empty(); }
  /// Whether any byte of [begin, end) does.
  bool FromInput(size_t begin, size_t end) const;

  /// Steps of the budget that making or scanning this text costs.
  int64_t cost() const {
    return static_cast<int64_t>((bytes_.size() + input_.size() * sizeof(Range)) / 256);
  }

  /// Cut where the origin changes.
  std::vector<Segment> Segments() const;

 private:
  struct Range {
    size_t begin, end;
  };
  void AddRange(size_t begin, size_t end);

  std::string bytes_;
  std::vector<Range> input_;  // ascending, none empty, none touching
};

}  // namespace shoal::jinja
