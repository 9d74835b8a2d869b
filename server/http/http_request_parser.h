// HttpRequestParser: bytes to HTTP/1.1 requests, strictly (RFC 9112). Knows no sockets.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "server/http/http_exchange.h"

namespace shoal {

/// Why bytes are not a request that we take: the status to answer with and one sentence.
struct HttpParseError {
  int status = 400;
  std::string message;
};

/// Parses one request: first the head, then, once the head is accepted, the body. What smuggling
/// attacks are made of is refused: two lengths, bare CR or LF, folded lines, NUL, unknown transfer
/// codings.
class HttpRequestParser {
 public:
  HttpRequestParser(int64_t max_header_bytes, int64_t max_body_bytes);
  ~HttpRequestParser();

  /// Takes the head from the front of `bytes` if it is complete.
  std::optional<HttpParseError> ParseHead(std::string& bytes);
  /// Takes what belongs to the body from the front of `bytes`.
  std::optional<HttpParseError> ParseBody(std::string& bytes);

  bool head_done() const { return head_done_; }
  bool done() const;

  // From head_done() on.
  bool has_body() const;
  /// A declared length above the limit, or, if `needs_body`, none although the method has one.
  std::optional<HttpParseError> CheckLength(bool needs_body) const;
  bool keep_alive() const;
  bool is_http_1_0() const;
  bool expects_continue() const;
  /// Value of a header field, of several the first; empty if it is missing.
  std::string_view Header(std::string_view name) const;

  /// The request; its body is there from done() on, its id always.
  HttpRequest& request() { return request_; }

 private:
  struct Impl;

  std::optional<HttpParseError> SkipEmptyLines(std::string& bytes);
  std::optional<HttpParseError> CheckRawHead(std::string_view head);
  std::optional<HttpParseError> CheckFields() const;
  /// The values of a header field, joined as RFC 9110 section 5.3 has it; none if it is missing.
  std::optional<std::string> JoinedHeader(std::string_view name) const;
  std::optional<HttpParseError> TakeTarget();

  const int64_t max_header_bytes_;
  const int64_t max_body_bytes_;
  std::unique_ptr<Impl> impl_;
  int num_empty_lines_ = 0;     // before the head
  size_t num_checked_ = 0;      // bytes of an incomplete head that CheckRawHead has seen
  int64_t num_body_bytes_ = 0;  // as sent, with the framing of chunks
  bool head_done_ = false;
  HttpRequest request_;
};

}  // namespace shoal
