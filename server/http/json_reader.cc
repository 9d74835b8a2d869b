#include "server/http/json_reader.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "server/service/field_error.h"

namespace shoal {
namespace {

constexpr size_t kMaxShownBytes = 40;

/// The beginning of `text`, cut between code points.
std::string_view Shorten(std::string_view text) {
  if (text.size() <= kMaxShownBytes) return text;
  size_t size = kMaxShownBytes;
  while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xC0) == 0x80) --size;
  return text.substr(0, size);
}

std::string Describe(const JsonEvent& event) {
  switch (event.type) {
    case JsonEvent::Type::kNull:
      return "null";
    case JsonEvent::Type::kBool:
      return event.boolean ? "true" : "false";
    case JsonEvent::Type::kInteger:
      return fmt::format("{}", event.integer);
    case JsonEvent::Type::kFloat:
      return fmt::format("{}", event.number);
    case JsonEvent::Type::kString:
      return event.string->size() > kMaxShownBytes
                 ? fmt::format("the string \"{}...\"", Shorten(*event.string))
                 : fmt::format("the string \"{}\"", *event.string);
    case JsonEvent::Type::kArray:
      return "an array";
    case JsonEvent::Type::kObject:
      return "an object";
    case JsonEvent::Type::kEnd:
      break;
  }
  return event.boolean ? "empty" : "not";
}

/// What the parser calls; the names are the library's.
class SaxReader {
 public:
  explicit SaxReader(const JsonHandler& handler) : handler_(handler) {}

  absl::Status status() const { return status_; }

  bool null() { return Value({.type = JsonEvent::Type::kNull}); }
  bool boolean(bool value) { return Value({.type = JsonEvent::Type::kBool, .boolean = value}); }
  bool number_integer(int64_t value) {
    return Value({.type = JsonEvent::Type::kInteger,
                  .integer = value,
                  .number = static_cast<double>(value)});
  }
  bool number_unsigned(uint64_t value) {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Value({.type = JsonEvent::Type::kFloat, .number = static_cast<double>(value)});
    }
    return number_integer(static_cast<int64_t>(value));
  }
  bool number_float(double value, const std::string&) {
    constexpr double kMaxExact = 1LL << 53;
    if (std::abs(value) <= kMaxExact && std::trunc(value) == value) {
      return Value({.type = JsonEvent::Type::kInteger,
                    .integer = static_cast<int64_t>(value),
                    .number = value});
    }
    return Value({.type = JsonEvent::Type::kFloat, .number = value});
  }
  bool string(std::string& value) {
    return Value({.type = JsonEvent::Type::kString, .string = &value});
  }
  bool binary(nlohmann::json::binary_t&) { return false; }  // not in JSON texts

  bool start_object(size_t) { return Begin(JsonEvent::Type::kObject); }
  bool start_array(size_t) { return Begin(JsonEvent::Type::kArray); }
  bool end_object() { return End(); }
  bool end_array() { return End(); }
  bool key(std::string& key) {
    containers_.back().key = std::move(key);
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& exception) {
    constexpr int kNumberOverflow = 406;
    if (exception.id == kNumberOverflow) {
      if (!containers_.empty()) ++containers_.back().index;
      const std::string path = Path();
      status_ = FieldError(path, fmt::format("{} is a number too large", Name(path)));
      return false;
    }
    // The library's reason stands between " - " and what it read last, which may be anything.
    std::string_view reason = exception.what();
    const size_t begin = reason.find(" - ");
    reason = begin == std::string_view::npos ? "" : reason.substr(begin + 3);
    reason = reason.substr(0, reason.find("; "));
    status_ = absl::InvalidArgumentError(fmt::format("the body is not valid JSON at byte {}{}{}",
                                                     position, reason.empty() ? "" : ": ", reason));
    return false;
  }

 private:
  struct Container {
    bool is_object = false;
    std::string key;     // of the present member
    int64_t index = -1;  // of the present element
  };

  bool Value(JsonEvent event) {
    if (++num_nodes_ > kMaxJsonNodes) {
      status_ = absl::InvalidArgumentError(
          fmt::format("the body has more than {} JSON values", kMaxJsonNodes));
      return false;
    }
    event.depth = static_cast<int>(containers_.size());
    if (!containers_.empty()) {
      ++containers_.back().index;
      if (containers_.back().is_object) event.key = containers_.back().key;
    }
    return Pass(event);
  }

  bool Begin(JsonEvent::Type type) {
    if (!Value({.type = type})) return false;
    if (containers_.size() >= kMaxJsonDepth) {
      status_ = absl::InvalidArgumentError(
          fmt::format("the body's JSON is nested more than {} deep", kMaxJsonDepth));
      return false;
    }
    containers_.push_back({.is_object = type == JsonEvent::Type::kObject, .key = ""});
    return true;
  }

  bool End() {
    const bool is_empty = containers_.back().index < 0;
    containers_.pop_back();
    return Pass({.type = JsonEvent::Type::kEnd,
                 .depth = static_cast<int>(containers_.size()),
                 .boolean = is_empty});
  }

  bool Pass(const JsonEvent& event) {
    const std::string expected = handler_(event);
    if (expected.empty()) return true;
    const std::string path = Path();
    status_ = FieldError(
        path, fmt::format("{} must be {}, but is {}", Name(path), expected, Describe(event)));
    return false;
  }

  /// Where the present value stands: "messages[2].content".
  std::string Path() const {
    std::string path;
    for (const Container& container : containers_) {
      if (container.is_object) {
        path += fmt::format("{}{}", path.empty() ? "" : ".", Shorten(container.key));
      } else {
        path += fmt::format("[{}]", container.index);
      }
    }
    return path;
  }

  static std::string Name(const std::string& path) { return path.empty() ? "the body" : path; }

  const JsonHandler& handler_;
  std::vector<Container> containers_;
  int64_t num_nodes_ = 0;
  absl::Status status_;
};

}  // namespace

absl::Status ReadJson(std::string_view text, const JsonHandler& handler) {
  // The library takes this byte for the end of the text.
  if (const size_t at = text.find('\0'); at != std::string_view::npos) {
    return absl::InvalidArgumentError(
        fmt::format("the body is not valid JSON at byte {}: a zero byte", at + 1));
  }
  SaxReader reader(handler);
  nlohmann::json::sax_parse(text, &reader);
  return reader.status();
}

}  // namespace shoal
