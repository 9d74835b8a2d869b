// Parses expressions; the precedence is Jinja's.
#pragma once

#include <string>

#include "kernels/status.h"
#include "tokenizer/jinja/ast.h"
#include "tokenizer/jinja/token_stream.h"

namespace shoal::jinja {

/// Errors: INVALID_ARGUMENT with line and what was expected. Thread: one.
class ExpressionParser {
 public:
  ExpressionParser(TokenStream& tokens, Ast& ast) : tokens_(tokens), ast_(ast) {}

  /// One expression. The ternary `a if b else c` is left out where `if` means something else.
  absl::StatusOr<Expr> Parse(bool ternary = true);
  /// One expression, or several with commas between: a tuple.
  absl::StatusOr<Expr> ParseTuple(bool ternary = true);
  /// `input` followed by `| filter` as often as it comes; the first bar may have been taken.
  absl::StatusOr<Expr> ParseFilters(Expr input, bool bar_taken);
  /// name.attribute(arguments)
  absl::StatusOr<Expr> ParsePrimaryWithPostfix();

  Expr Captured() { return Make(jinja::Captured{}); }

 private:
  template <typename Node>
  Expr Make(Node node) {
    return &ast_.expressions.emplace_back(Expression{std::move(node)});
  }

  absl::StatusOr<Expr> ParseBinary(size_t level);
  absl::StatusOr<Expr> ParseNot();
  absl::StatusOr<Expr> ParseComparison();
  absl::StatusOr<Expr> ParseUnary(bool filters);
  absl::StatusOr<Expr> ParsePrimary();
  absl::StatusOr<Expr> ParseName();
  absl::StatusOr<Expr> ParseNumber();
  absl::StatusOr<Expr> ParseParentheses();
  absl::StatusOr<Expr> ParseList();
  absl::StatusOr<Expr> ParseDict();
  absl::StatusOr<Expr> ParsePostfix(Expr operand);
  absl::StatusOr<Expr> ParseDot(Expr object);
  absl::StatusOr<Expr> ParseSubscript(Expr object);
  absl::StatusOr<Expr> ParseSuffixes(Expr operand);
  absl::StatusOr<Expr> ParseFilter(Expr input);
  absl::StatusOr<Expr> ParseTest(Expr operand);
  absl::StatusOr<Arguments> ParseArguments();
  bool TakeCompareOp(CompareOp& op);
  bool AtTupleEnd() const;

  TokenStream& tokens_;
  Ast& ast_;
};

}  // namespace shoal::jinja
