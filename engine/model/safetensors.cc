#include "engine/model/safetensors.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "engine/model/json_file.h"

namespace shoal {
namespace {

using nlohmann::json;

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;
constexpr uint64_t kMaxNumber = uint64_t{1} << 62;  // no file is larger

constexpr std::pair<std::string_view, DType> kDTypes[] = {
    {"BF16", DType::kBFloat16}, {"F16", DType::kFloat16}, {"F32", DType::kFloat32}};

std::string_view FormatName(DType dtype) {
  for (const auto& [name, value] : kDTypes) {
    if (value == dtype) return name;
  }
  SHOAL_CHECK(false, "no safetensors name for {}", Name(dtype));
}

/// Receives the header's JSON token by token and accepts exactly the format's structure, so that
/// neither depth nor size of hostile input costs more than its own length.
class HeaderReader final : public nlohmann::json_sax<json> {
 public:
  std::vector<TensorInfo> TakeTensors() { return std::move(tensors_); }
  /// Why parsing stopped.
  absl::Status error() const { return absl::InvalidArgumentError(error_); }

  bool start_object(size_t) override {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kHeader;
        return true;
      case Place::kTensorValue:
        place_ = Place::kTensor;
        return true;
      case Place::kMetadataValue:
        place_ = Place::kMetadata;
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool key(std::string& name) override {
    if (place_ == Place::kHeader) return NextTensor(name);
    if (place_ == Place::kMetadata) return true;
    // In a tensor: each key once.
    if (name == "dtype" && !has_dtype_) {
      place_ = Place::kDType;
    } else if (name == "shape" && !has_shape_) {
      place_ = Place::kShapeValue;
    } else if (name == "data_offsets" && !has_offsets_) {
      place_ = Place::kOffsetsValue;
    } else {
      return Fail(fmt::format("has an unexpected key {}", Shown(name)));
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor && !(has_dtype_ && has_shape_ && has_offsets_)) {
      return Fail("lacks one of dtype, shape and data_offsets");
    }
    place_ = place_ == Place::kHeader ? Place::kEnd : Place::kHeader;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == Place::kShapeValue) {
      place_ = Place::kShape;
    } else if (place_ == Place::kOffsetsValue) {
      place_ = Place::kOffsets;
    } else {
      return Unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    if (place_ == Place::kOffsets && num_offsets_ != 2) {
      return Fail("has data_offsets that are not two numbers");
    }
    (place_ == Place::kShape ? has_shape_ : has_offsets_) = true;
    place_ = Place::kTensor;
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    if (value > kMaxNumber) {
      return Fail(fmt::format("holds the number {}, expected at most {}", value, kMaxNumber));
    }
    if (place_ == Place::kShape) {
      if (tensors_.back().shape.size() == Tensor::kMaxRank) {
        return Fail(fmt::format("has more than {} dimensions", Tensor::kMaxRank));
      }
      tensors_.back().shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place_ != Place::kOffsets) return Unexpected("a number");
    if (num_offsets_ == 2) return Fail("has data_offsets that are not two numbers");
    (num_offsets_++ == 0 ? tensors_.back().begin : tensors_.back().end) =
        static_cast<int64_t>(value);
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kDType) return Unexpected("a string");
    for (const auto& [name, dtype] : kDTypes) {
      if (value != name) continue;
      tensors_.back().dtype = dtype;
      has_dtype_ = true;
      place_ = Place::kTensor;
      return true;
    }
    return Fail(fmt::format("has dtype {}, expected BF16, F16 or F32", Shown(value)));
  }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(int64_t value) override {
    return Fail(fmt::format("holds the number {}, expected at least 0", value));
  }
  bool number_float(double, const std::string& text) override {
    return Fail(fmt::format("holds the number {}, expected an integer", text.substr(0, 40)));
  }
  bool binary(json::binary_t&) override { return Unexpected("binary data"); }

  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    error_ = fmt::format("the header is malformed JSON at byte {}", kLengthBytes + position);
    return false;
  }

 private:
  /// Where in the header the next token stands.
  enum class Place {
    kStart,
    kHeader,       // a tensor's name, or the end
    kTensorValue,  // { of a tensor
    kTensor,       // a key of a tensor, or its end
    kDType,
    kShapeValue,  // [ of a shape
    kShape,
    kOffsetsValue,  // [ of data_offsets
    kOffsets,
    kMetadataValue,  // { of __metadata__
    kMetadata,       // keys and strings, which are not used
    kEnd,
  };

  bool NextTensor(std::string& name) {
    if (!names_.insert(name).second) {
      error_ = fmt::format("tensor {} is listed twice", Shown(name));
      return false;
    }
    if (name == "__metadata__") {
      place_ = Place::kMetadataValue;
      return true;
    }
    tensors_.emplace_back().name = std::move(name);
    has_dtype_ = has_shape_ = has_offsets_ = false;
    num_offsets_ = 0;
    place_ = Place::kTensorValue;
    return true;
  }

  bool Fail(const std::string& problem) {
    if (place_ == Place::kMetadataValue || place_ == Place::kMetadata) {
      error_ = "__metadata__ " + problem;
    } else if (tensors_.empty()) {
      error_ = "the header " + problem;
    } else {
      error_ = "tensor " + Shown(tensors_.back().name) + " " + problem;
    }
    return false;
  }
  bool Unexpected(const std::string& token) { return Fail("holds " + token + " out of place"); }

  std::vector<TensorInfo> tensors_;
  std::set<std::string> names_;
  Place place_ = Place::kStart;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
  int num_offsets_ = 0;
  std::string error_;
};

/// Bytes that dtype and shape ask for; -1 if that overflows.
int64_t ExpectedBytes(const TensorInfo& tensor) {
  int64_t bytes = SizeOf(tensor.dtype);
  for (int64_t dim : tensor.shape) {
    if (__builtin_mul_overflow(bytes, dim, &bytes)) return -1;
  }
  return bytes;
}

/// Checks that the tensors, sorted by their place, fill the `data_bytes` bytes from `data_start`.
absl::Status CheckRanges(std::span<const TensorInfo> tensors, int64_t data_start,
                         int64_t data_bytes) {
  int64_t next = 0;
  for (const TensorInfo& tensor : tensors) {
    const auto fail = [&](const std::string& problem) {
      return absl::InvalidArgumentError(fmt::format("tensor {} has data_offsets [{}, {}], {}",
                                                    Shown(tensor.name), tensor.begin, tensor.end,
                                                    problem));
    };
    if (tensor.begin > tensor.end || tensor.end > data_bytes) {
      return fail(fmt::format("expected a range within the file's {} data bytes", data_bytes));
    }
    if (tensor.begin != next) return fail(fmt::format("expected to begin at {}", next));
    if (const int64_t expected = ExpectedBytes(tensor); tensor.end - tensor.begin != expected) {
      return fail(fmt::format("but its dtype {} and shape [{}] take {} bytes",
                              FormatName(tensor.dtype), fmt::join(tensor.shape, ", "),
                              expected < 0 ? "too many" : fmt::to_string(expected)));
    }
    if ((data_start + tensor.begin) % SizeOf(tensor.dtype) != 0) {
      return fail(fmt::format("which is byte {} of the file, expected a multiple of {}",
                              data_start + tensor.begin, SizeOf(tensor.dtype)));
    }
    next = tensor.end;
  }
  if (next != data_bytes) {
    return absl::InvalidArgumentError(fmt::format(
        "the tensors take {} bytes, but {} data bytes follow the header", next, data_bytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(std::span<const std::byte> bytes,
                                                               int64_t file_bytes) {
  const int64_t available = std::min<int64_t>(static_cast<int64_t>(bytes.size()), file_bytes);
  if (available < kLengthBytes) {
    return absl::InvalidArgumentError(
        fmt::format("the file has {} bytes, expected at least {}", available, kLengthBytes));
  }
  uint64_t header_bytes = 0;
  for (int64_t i = 0; i < kLengthBytes; ++i) {
    header_bytes |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  }
  if (header_bytes > kMaxHeaderBytes ||
      static_cast<int64_t>(header_bytes) > available - kLengthBytes) {
    return absl::InvalidArgumentError(
        fmt::format("the header length is {}, expected at most {}", header_bytes,
                    std::min(kMaxHeaderBytes, available - kLengthBytes)));
  }
  const int64_t data_start = kLengthBytes + static_cast<int64_t>(header_bytes);
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  HeaderReader reader;
  if (!json::sax_parse(text + kLengthBytes, text + data_start, &reader)) return reader.error();
  std::vector<TensorInfo> tensors = reader.TakeTensors();
  std::ranges::sort(tensors, {}, [](const TensorInfo& t) { return std::pair(t.begin, t.end); });
  RETURN_IF_ERROR(CheckRanges(tensors, data_start, file_bytes - data_start));
  return tensors;
}

std::string FormatSafetensorsHeader(std::span<const TensorInfo> tensors) {
  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  for (const TensorInfo& tensor : tensors) {
    header[tensor.name] = {{"dtype", FormatName(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {tensor.begin, tensor.end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length(kLengthBytes, '\0');
  for (int64_t i = 0; i < kLengthBytes; ++i) {
    length[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  }
  return length + text;
}

}  // namespace shoal
