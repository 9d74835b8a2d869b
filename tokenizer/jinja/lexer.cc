#include "tokenizer/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <optional>

#include "tokenizer/jinja/string_literal.h"
#include "tokenizer/jinja/unicode.h"

namespace shoal::jinja {
namespace {

constexpr size_t kMaxSourceBytes = 1 << 20;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool IsNamePart(char c) { return IsNameStart(c) || IsDigit(c); }

/// Every line end as "\n", without the last one.
std::string NormalizeNewlines(std::string_view source) {
  std::string normalized;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      normalized += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      normalized += source[i];
    }
  }
  if (normalized.ends_with('\n')) normalized.pop_back();
  return normalized;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (position_ < source_.size()) {
      const size_t tag = FindTag();
      if (tag == source_.size()) {
        Emit(TokenKind::kData, source_.substr(position_));
        break;
      }
      const char kind = source_[tag + 1];
      EmitData(tag, kind != '{');
      position_ = AfterSign(tag + 2);
      RETURN_IF_ERROR(kind == '#' ? SkipComment() : kind == '{' ? LexVariable() : LexBlock());
    }
    position_ = source_.size();
    Emit(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  char At(size_t position) const { return position < source_.size() ? source_[position] : '\0'; }
  bool LooksAt(std::string_view text) const { return source_.substr(position_).starts_with(text); }

  int Line() {
    for (; counted_ < position_; ++counted_) line_ += static_cast<int>(source_[counted_] == '\n');
    return line_;
  }

  absl::Status Fail(std::string_view message) { return ErrorAt(Line(), message); }

  void Emit(TokenKind kind, std::string_view text) {
    tokens_.push_back({kind, std::string(text), Line()});
  }

  size_t FindTag() const {
    size_t tag = position_;
    while ((tag = source_.find('{', tag)) != std::string_view::npos) {
      const char next = At(tag + 1);
      if (next == '{' || next == '%' || next == '#') return tag;
      ++tag;
    }
    return source_.size();
  }

  size_t AfterSign(size_t position) const {
    return position + static_cast<size_t>(At(position) == '-' || At(position) == '+');
  }

  /// Emits the text up to `tag` without the white space that the tag swallows.
  void EmitData(size_t tag, bool is_block) {
    std::string_view data = source_.substr(position_, tag - position_);
    const char sign = At(tag + 2);
    if (sign == '-') {
      data = TrimRight(data);
    } else if (is_block && sign != '+') {
      const size_t newline = data.rfind('\n');
      const bool has_line = newline != std::string_view::npos;
      const std::string_view indent = has_line ? data.substr(newline + 1) : data;
      const bool at_line_start = has_line || position_ == 0 || source_[position_ - 1] == '\n';
      if (at_line_start && TrimRight(indent).empty()) data.remove_suffix(indent.size());
    }
    if (!data.empty()) Emit(TokenKind::kData, data);
  }

  void SkipSpaces() {
    while (position_ < source_.size()) {
      const Character character = CharacterAt(source_, position_);
      if (!IsSpace(character.code)) break;
      position_ += character.size;
    }
  }

  /// Steps over the end of a tag and the white space it swallows.
  void EndTag(char sign, bool is_block) {
    position_ += 2;
    if (sign == '-') {
      SkipSpaces();
    } else if (is_block && sign != '+' && At(position_) == '\n') {
      ++position_;
    }
  }

  absl::Status SkipComment() {
    const size_t end = source_.find("#}", position_);
    if (end == std::string_view::npos) return Fail("the comment has no end '#}'");
    const char sign = end > position_ ? source_[end - 1] : '\0';
    position_ = end;
    EndTag(sign, true);
    return absl::OkStatus();
  }

  absl::Status LexVariable() {
    Emit(TokenKind::kVariableBegin, "{{");
    return LexExpression("}}", TokenKind::kVariableEnd);
  }

  absl::Status LexBlock() {
    const size_t after_sign = position_;
    SkipSpaces();
    if (LooksAt("raw") && !IsNamePart(At(position_ + 3))) {
      position_ += 3;
      SkipSpaces();
      return LexRaw();
    }
    position_ = after_sign;
    Emit(TokenKind::kBlockBegin, "{%");
    return LexExpression("%}", TokenKind::kBlockEnd);
  }

  /// Everything up to {% endraw %} is text.
  absl::Status LexRaw() {
    const bool trim = LooksAt("-%}");
    if (!trim && !LooksAt("%}")) return Fail("expected '%}' after 'raw'");
    position_ += trim ? 3 : 2;
    if (trim) SkipSpaces();
    const size_t begin = position_;
    for (size_t tag = begin; (tag = source_.find("{%", tag)) != std::string_view::npos; tag += 2) {
      position_ = AfterSign(tag + 2);
      SkipSpaces();
      if (!LooksAt("endraw")) continue;
      position_ += 6;
      SkipSpaces();
      const char sign = AfterSign(position_) == position_ ? '\0' : At(position_);
      const size_t end = AfterSign(position_);
      if (!source_.substr(end).starts_with("%}")) continue;
      position_ = begin;
      EmitData(tag, true);
      position_ = end;
      EndTag(sign, true);
      return absl::OkStatus();
    }
    position_ = begin;
    return Fail("'raw' has no 'endraw'");
  }

  absl::Status LexExpression(std::string_view end, TokenKind end_kind) {
    brackets_.clear();
    while (true) {
      SkipSpaces();
      if (position_ == source_.size()) return Fail(fmt::format("the tag has no end '{}'", end));
      const bool block = end_kind == TokenKind::kBlockEnd;
      const bool sign = At(position_) == '-' || (block && At(position_) == '+');
      if (brackets_.empty() && source_.substr(position_ + (sign ? 1 : 0)).starts_with(end)) {
        Emit(end_kind, end);
        const char sign_character = sign ? At(position_) : '\0';
        if (sign) ++position_;
        EndTag(sign_character, block);
        return absl::OkStatus();
      }
      RETURN_IF_ERROR(LexToken());
    }
  }

  absl::Status LexToken() {
    const char c = At(position_);
    if (IsNameStart(c)) {
      size_t end = position_;
      while (IsNamePart(At(end))) ++end;
      Emit(TokenKind::kName, source_.substr(position_, end - position_));
      position_ = end;
      return absl::OkStatus();
    }
    if (IsDigit(c)) return LexNumber();
    if (c == '"' || c == '\'') return LexString(c);
    return LexOperator();
  }

  /// Digits and single underscores between them, copied without the underscores.
  void Digits(std::string& number) {
    while (IsDigit(At(position_)) || (At(position_) == '_' && IsDigit(At(position_ + 1)))) {
      if (source_[position_] != '_') number += source_[position_];
      ++position_;
    }
  }

  absl::Status LexNumber() {
    const bool after_dot = !tokens_.empty() && tokens_.back().text == "." &&
                           tokens_.back().kind == TokenKind::kOperator;
    std::string number;
    TokenKind kind = TokenKind::kInteger;
    Digits(number);
    if (!after_dot && At(position_) == '.' && IsDigit(At(position_ + 1))) {
      kind = TokenKind::kFloat;
      number += source_[position_++];
      Digits(number);
    }
    const size_t exponent = AfterSign(position_ + 1);
    if (!after_dot && (At(position_) == 'e' || At(position_) == 'E') && IsDigit(At(exponent))) {
      kind = TokenKind::kFloat;
      number += 'e';
      if (At(position_ + 1) == '-') number += '-';
      position_ = exponent;
      Digits(number);
    }
    if (IsNamePart(At(position_))) return Fail("a number ends in a letter");
    Emit(kind, number);
    return absl::OkStatus();
  }

  absl::Status LexString(char quote) {
    size_t end = position_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) return Fail("the string has no end");
    auto text = ResolveEscapes(source_.substr(position_ + 1, end - position_ - 1));
    if (!text.ok()) return Fail(std::string(text.status().message()));
    Emit(TokenKind::kString, *text);
    position_ = end + 1;
    return absl::OkStatus();
  }

  absl::Status LexOperator() {
    static constexpr std::array<std::string_view, 26> kOperators = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    const auto* const found =
        std::ranges::find_if(kOperators, [&](std::string_view op) { return LooksAt(op); });
    if (found == kOperators.end()) {
      const size_t size = CharacterAt(source_, position_).size;
      return Fail(fmt::format("unexpected character '{}'", source_.substr(position_, size)));
    }
    const char c = (*found)[0];
    if (c == '(') brackets_ += ')';
    if (c == '[') brackets_ += ']';
    if (c == '{') brackets_ += '}';
    if (c == ')' || c == ']' || c == '}') {
      if (!brackets_.ends_with(c)) return Fail(fmt::format("unexpected '{}'", c));
      brackets_.pop_back();
    }
    Emit(TokenKind::kOperator, *found);
    position_ += found->size();
    return absl::OkStatus();
  }

  const std::string_view source_;
  size_t position_ = 0;
  size_t counted_ = 0;  // newlines before it are in line_
  int line_ = 1;
  std::string brackets_;  // that close the open ones
  std::vector<Token> tokens_;
};

}  // namespace

absl::Status ErrorAt(int line, std::string_view message) {
  return absl::InvalidArgumentError(fmt::format("line {}: {}", line, message));
}

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    return absl::InvalidArgumentError(fmt::format("the template has {} bytes, at most {} are read",
                                                  source.size(), kMaxSourceBytes));
  }
  const std::string normalized = NormalizeNewlines(source);
  return Lexer(normalized).Run();
}

}  // namespace shoal::jinja
