#include "tokenizer/jinja/text.h"

#include <algorithm>
#include <utility>

namespace shoal::jinja {

Text::Text(std::string bytes, bool from_input) : bytes_(std::move(bytes)) {
  if (from_input) AddRange(0, bytes_.size());
}

void Text::AddRange(size_t begin, size_t end) {
  if (begin == end) return;
  if (!input_.empty() && input_.back().end == begin) {
    input_.back().end = end;
  } else {
    input_.push_back({begin, end});
  }
}

void Text::Append(std::string_view bytes, bool from_input) {
  const size_t begin = bytes_.size();
  bytes_.append(bytes);
  if (from_input) AddRange(begin, bytes_.size());
}

void Text::Append(const Text& source, size_t begin, size_t end) {
  const size_t offset = bytes_.size();
  bytes_.append(source.bytes_, begin, end - begin);
  auto range = std::ranges::upper_bound(source.input_, begin, {}, &Range::end);
  for (; range != source.input_.end() && range->begin < end; ++range) {
    AddRange(offset + std::max(range->begin, begin) - begin,
             offset + std::min(range->end, end) - begin);
  }
}

Text Text::Slice(size_t begin, size_t end) const {
  Text slice;
  slice.Append(*this, begin, end);
  return slice;
}

bool Text::FromInput(size_t begin, size_t end) const {
  const auto range = std::ranges::upper_bound(input_, begin, {}, &Range::end);
  return range != input_.end() && range->begin < end;
}

std::vector<Segment> Text::Segments() const {
  std::vector<Segment> segments;
  size_t position = 0;
  for (const Range& range : input_) {
    if (range.begin > position) {
      segments.push_back({bytes_.substr(position, range.begin - position), false});
    }
    segments.push_back({bytes_.substr(range.begin, range.end - range.begin), true});
    position = range.end;
  }
  if (position < bytes_.size()) segments.push_back({bytes_.substr(position), false});
  return segments;
}

}  // namespace shoal::jinja
