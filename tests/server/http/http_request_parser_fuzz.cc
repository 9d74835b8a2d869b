// Any bytes, in any pieces: the parser ends in the same request or error, and never reads past
// them.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "server/http/http_request_parser.h"

namespace {

/// The request that came of `bytes`, given in pieces of `step` bytes; empty: none, or none yet.
std::string Outcome(const std::string& bytes, size_t step) {
  shoal::HttpRequestParser parser(1024, 4096);
  std::string inbox;
  for (size_t i = 0; i < bytes.size(); i += step) {
    inbox += bytes.substr(i, step);
    std::optional<shoal::HttpParseError> error;
    if (!parser.head_done()) error = parser.ParseHead(inbox);
    if (!error && parser.head_done()) {
      if (parser.CheckLength(/*needs_body=*/true)) return "";
      error = parser.ParseBody(inbox);
    }
    if (error) return "";
    if (parser.done()) return parser.request().path + "\n" + parser.request().body;
  }
  return "";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const std::string whole = Outcome(bytes, bytes.size() + 1);
  const std::string in_pieces = Outcome(bytes, 1);
  if (whole != in_pieces) std::abort();
  return 0;
}
