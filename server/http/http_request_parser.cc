#include "server/http/http_request_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <random>

namespace shoal {
namespace {

namespace http = boost::beast::http;

constexpr size_t kMaxRequestLineBytes = 8 << 10;
constexpr int kMaxFields = 64;
constexpr int kMaxEmptyLines = 4;  // before a request; RFC 9112 section 2.2 asks for one
constexpr size_t kMaxRequestIdBytes = 128;
// The shortest end of a chunked body, "0" and two line ends. Beast's parser asserts that it sees no
// less.
constexpr size_t kMinChunkedBytes = 5;
// What may stay unparsed inside a body: one chunk header or the trailers.
constexpr size_t kMaxChunkHeaderBytes = 4 << 10;
// A body in chunks of one byte is six times as long as what it says; more is padding.
constexpr int64_t kMaxChunkOverhead = 8;

std::string RandomRequestId() {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return fmt::format("{:016x}{:016x}", generator(), generator());
}

/// An id that is safe in a header and in a log: visible ASCII without quotes.
bool IsSaneRequestId(std::string_view id) {
  return !id.empty() && id.size() <= kMaxRequestIdBytes &&
         std::all_of(id.begin(), id.end(),
                     [](char c) { return c > ' ' && c <= '~' && c != '"' && c != '\\'; });
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<std::string> DecodePercent(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded += text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = HexDigit(text[i + 1]), low = HexDigit(text[i + 2]);
    if (high < 0 || low < 0 || high * 16 + low == 0) return std::nullopt;
    decoded += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return decoded;
}

std::string_view ToStd(boost::beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

struct HttpRequestParser::Impl {
  http::request_parser<http::string_body> parser;
};

HttpRequestParser::HttpRequestParser(int64_t max_header_bytes, int64_t max_body_bytes)
    : max_header_bytes_(max_header_bytes),
      max_body_bytes_(max_body_bytes),
      impl_(std::make_unique<Impl>()) {
  impl_->parser.header_limit(static_cast<uint32_t>(max_header_bytes) + 4);
  impl_->parser.body_limit(boost::none);
  request_.request_id = RandomRequestId();
}

HttpRequestParser::~HttpRequestParser() = default;

bool HttpRequestParser::done() const { return head_done_ && impl_->parser.is_done(); }

std::optional<HttpParseError> HttpRequestParser::SkipEmptyLines(std::string& bytes) {
  size_t size = 0;
  for (; num_empty_lines_ <= kMaxEmptyLines && bytes.compare(size, 2, "\r\n") == 0; size += 2) {
    ++num_empty_lines_;
  }
  bytes.erase(0, size);
  if (num_empty_lines_ <= kMaxEmptyLines) return std::nullopt;
  return HttpParseError{400,
                        fmt::format("more than {} empty lines before a request", kMaxEmptyLines)};
}

std::optional<HttpParseError> HttpRequestParser::CheckRawHead(std::string_view head) {
  // The last byte waits for its successor.
  for (; num_checked_ + 1 < head.size(); ++num_checked_) {
    const size_t i = num_checked_;
    const auto c = static_cast<unsigned char>(head[i]);
    const bool is_line_end = c == '\r' && head[i + 1] == '\n';
    const bool is_paired_lf = c == '\n' && i > 0 && head[i - 1] == '\r';
    if ((c < ' ' && c != '\t' && !is_line_end && !is_paired_lf) || c == 0x7f) {
      return HttpParseError{400, fmt::format("byte 0x{:02x} is not allowed in a request head", c)};
    }
    if (is_paired_lf && (head[i + 1] == ' ' || head[i + 1] == '\t')) {
      return HttpParseError{400, "header lines must not be folded"};
    }
  }
  const size_t line_end = head.find("\r\n");
  if (std::min(line_end, head.size()) > kMaxRequestLineBytes) {
    return HttpParseError{414, fmt::format("request line exceeds {} bytes", kMaxRequestLineBytes)};
  }
  if (head.size() > static_cast<size_t>(max_header_bytes_)) {
    return HttpParseError{431, fmt::format("request head exceeds {} bytes", max_header_bytes_)};
  }
  return std::nullopt;
}

std::optional<HttpParseError> HttpRequestParser::ParseHead(std::string& bytes) {
  if (num_checked_ == 0) {
    if (auto error = SkipEmptyLines(bytes)) return error;
  }
  const size_t end = bytes.find("\r\n\r\n");
  const size_t size = end == std::string::npos ? bytes.size() : end + 4;
  if (auto error = CheckRawHead(std::string_view(bytes).substr(0, size))) return error;
  if (end == std::string::npos) return std::nullopt;

  boost::system::error_code code;
  impl_->parser.put(boost::asio::buffer(bytes.data(), size), code);
  if (code && code != http::error::need_more) {
    return HttpParseError{400, fmt::format("malformed request: {}", code.message())};
  }
  if (!impl_->parser.is_header_done()) return HttpParseError{400, "malformed request"};
  bytes.erase(0, size);
  head_done_ = true;
  impl_->parser.eager(true);
  // Only now: a declared length above the limit is CheckLength()'s to refuse. Counts down by
  // chunks.
  impl_->parser.body_limit(static_cast<uint64_t>(max_body_bytes_));
  request_.method = std::string(ToStd(impl_->parser.get().method_string()));
  if (const std::string_view id = Header("x-request-id"); IsSaneRequestId(id)) {
    request_.request_id = std::string(id);
  }
  request_.timeout_ms = JoinedHeader("x-request-timeout-ms");
  if (auto error = CheckFields()) return error;
  return TakeTarget();
}

std::optional<HttpParseError> HttpRequestParser::CheckFields() const {
  const auto& fields = impl_->parser.get();
  if (std::distance(fields.begin(), fields.end()) > kMaxFields) {
    return HttpParseError{431, fmt::format("more than {} header fields", kMaxFields)};
  }
  if (fields.count(http::field::host) > 1 ||
      (!is_http_1_0() && fields[http::field::host].empty())) {
    return HttpParseError{400, "exactly one Host header is required"};
  }
  const std::string_view length = ToStd(fields[http::field::content_length]);
  if (fields.count(http::field::content_length) > 1 || length.find(',') != length.npos) {
    return HttpParseError{400, "more than one Content-Length"};
  }
  if (fields.count(http::field::transfer_encoding) == 0) return std::nullopt;
  const auto coding = fields[http::field::transfer_encoding];
  if (is_http_1_0() || !boost::beast::iequals(coding, "chunked")) {
    return HttpParseError{501, fmt::format("transfer coding '{}' is not supported", ToStd(coding))};
  }
  return std::nullopt;
}

std::optional<HttpParseError> HttpRequestParser::TakeTarget() {
  const std::string_view target = ToStd(impl_->parser.get().target());
  if (!target.starts_with('/')) {
    return HttpParseError{400, "the request target must be a path"};
  }
  const size_t mark = target.find('?');
  std::optional<std::string> path = DecodePercent(target.substr(0, mark));
  if (!path) return HttpParseError{400, "the request path has a bad percent escape"};
  request_.path = *std::move(path);
  if (mark != target.npos) request_.query = std::string(target.substr(mark + 1));
  return std::nullopt;
}

std::optional<HttpParseError> HttpRequestParser::ParseBody(std::string& bytes) {
  auto& parser = impl_->parser;
  boost::system::error_code code;
  const bool is_enough = bytes.size() >= (parser.chunked() ? kMinChunkedBytes : 1);
  if (!parser.is_done() && is_enough) {
    const size_t size = parser.put(boost::asio::buffer(bytes), code);
    num_body_bytes_ += static_cast<int64_t>(size);
    bytes.erase(0, size);
  }
  const int64_t max_bytes = kMaxChunkOverhead * max_body_bytes_ + kMaxChunkHeaderBytes;
  if (parser.chunked() && num_body_bytes_ > max_bytes) {
    return HttpParseError{413, fmt::format("chunked request body exceeds {} bytes", max_bytes)};
  }
  if (code == http::error::body_limit) {
    return HttpParseError{413, fmt::format("request body exceeds {} bytes", max_body_bytes_)};
  }
  if (code && code != http::error::need_more) {
    return HttpParseError{400, fmt::format("malformed request body: {}", code.message())};
  }
  if (parser.is_done()) {
    request_.body = std::move(parser.get().body());
  } else if (bytes.size() > kMaxChunkHeaderBytes) {
    return HttpParseError{400, fmt::format("chunk header exceeds {} bytes", kMaxChunkHeaderBytes)};
  }
  return std::nullopt;
}

bool HttpRequestParser::has_body() const {
  return impl_->parser.chunked() || impl_->parser.content_length().value_or(0) > 0;
}

std::optional<HttpParseError> HttpRequestParser::CheckLength(bool needs_body) const {
  const auto length = impl_->parser.content_length();
  if (length && *length > static_cast<uint64_t>(max_body_bytes_)) {
    return HttpParseError{
        413, fmt::format("request body of {} bytes exceeds {} bytes", *length, max_body_bytes_)};
  }
  if (needs_body && request_.method == "POST" && !length && !impl_->parser.chunked()) {
    return HttpParseError{411, "a POST request needs Content-Length or chunked transfer coding"};
  }
  return std::nullopt;
}

bool HttpRequestParser::keep_alive() const { return impl_->parser.get().keep_alive(); }

bool HttpRequestParser::is_http_1_0() const { return impl_->parser.get().version() == 10; }

bool HttpRequestParser::expects_continue() const {
  return !is_http_1_0() &&
         boost::beast::iequals(impl_->parser.get()[http::field::expect], "100-continue");
}

std::string_view HttpRequestParser::Header(std::string_view name) const {
  return ToStd(impl_->parser.get()[boost::beast::string_view(name.data(), name.size())]);
}

std::optional<std::string> HttpRequestParser::JoinedHeader(std::string_view name) const {
  std::optional<std::string> joined;
  const auto [begin, end] =
      impl_->parser.get().equal_range(boost::beast::string_view(name.data(), name.size()));
  for (auto field = begin; field != end; ++field) {
    joined = joined ? *joined + ", " : "";
    *joined += ToStd(field->value());
  }
  return joined;
}

}  // namespace shoal
