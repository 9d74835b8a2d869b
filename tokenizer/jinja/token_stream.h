// A cursor over the tokens of a template, and the nesting of the parser.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/status.h"
#include "tokenizer/jinja/lexer.h"

namespace shoal::jinja {

/// Never moves past kEnd. Thread: one.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& Peek() const { return tokens_[position_]; }
  bool At(TokenKind kind) const { return Peek().kind == kind; }
  bool AtOperator(std::string_view text) const { return Is(TokenKind::kOperator, text); }
  bool AtName(std::string_view text) const { return Is(TokenKind::kName, text); }

  Token Next();
  /// Moves on if the token is that one.
  bool TakeOperator(std::string_view text);
  bool TakeName(std::string_view text);

  absl::Status ExpectOperator(std::string_view text);
  absl::Status Expect(TokenKind kind, std::string_view description);
  absl::StatusOr<std::string> ExpectName();

  /// INVALID_ARGUMENT: line, what was expected and what is there.
  absl::Status Unexpected(std::string_view expected) const;

  /// One level of nested syntax, while it lives.
  class Level {
   public:
    explicit Level(TokenStream& tokens) : tokens_(tokens) { ++tokens_.depth_; }
    ~Level() { --tokens_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;
    /// INVALID_ARGUMENT if the nesting is too deep.
    absl::Status Enter() const;

   private:
    TokenStream& tokens_;
  };

 private:
  bool Is(TokenKind kind, std::string_view text) const {
    return Peek().kind == kind && Peek().text == text;
  }

  std::vector<Token> tokens_;
  size_t position_ = 0;
  int depth_ = 0;
};

}  // namespace shoal::jinja
