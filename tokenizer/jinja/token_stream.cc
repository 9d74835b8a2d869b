#include "tokenizer/jinja/token_stream.h"

namespace shoal::jinja {
namespace {

constexpr int kMaxDepth = 200;

}  // namespace

Token TokenStream::Next() {
  Token token = Peek();
  if (token.kind != TokenKind::kEnd) ++position_;
  return token;
}

bool TokenStream::TakeOperator(std::string_view text) {
  const bool found = AtOperator(text);
  if (found) ++position_;
  return found;
}

bool TokenStream::TakeName(std::string_view text) {
  const bool found = AtName(text);
  if (found) ++position_;
  return found;
}

absl::Status TokenStream::ExpectOperator(std::string_view text) {
  if (TakeOperator(text)) return absl::OkStatus();
  return Unexpected(fmt::format("'{}'", text));
}

absl::Status TokenStream::Expect(TokenKind kind, std::string_view description) {
  if (!At(kind)) return Unexpected(description);
  Next();
  return absl::OkStatus();
}

absl::StatusOr<std::string> TokenStream::ExpectName() {
  if (!At(TokenKind::kName)) return Unexpected("a name");
  return Next().text;
}

absl::Status TokenStream::Unexpected(std::string_view expected) const {
  const bool at_end = At(TokenKind::kEnd);
  const std::string found = at_end ? "the end of the template" : fmt::format("'{}'", Peek().text);
  return ErrorAt(Peek().line, fmt::format("expected {}, found {}", expected, found));
}

absl::Status TokenStream::Level::Enter() const {
  if (tokens_.depth_ <= kMaxDepth) return absl::OkStatus();
  return ErrorAt(tokens_.Peek().line, fmt::format("nested more than {} deep", kMaxDepth));
}

}  // namespace shoal::jinja
