#include "tokenizer/jinja/expression_parser.h"

#include <array>
#include <charconv>

namespace shoal::jinja {
namespace {

struct NamedOp {
  std::string_view symbol;
  BinaryOp op;
};

/// Left-associative operators from the loosest to the tightest; `not` and the comparisons stand
/// between the words and the symbols.
constexpr size_t kWordLevels = 2;
const std::array<std::vector<NamedOp>, 6>& BinaryLevels() {
  static const auto* const kLevels = new std::array<std::vector<NamedOp>, 6>{{
      {{"or", BinaryOp::kOr}},
      {{"and", BinaryOp::kAnd}},
      {{"+", BinaryOp::kAdd}, {"-", BinaryOp::kSubtract}},
      {{"~", BinaryOp::kConcat}},
      {{"*", BinaryOp::kMultiply},
       {"/", BinaryOp::kDivide},
       {"//", BinaryOp::kFloorDivide},
       {"%", BinaryOp::kModulo}},
      {{"**", BinaryOp::kPower}},
  }};
  return *kLevels;
}

}  // namespace

absl::StatusOr<Expr> ExpressionParser::Parse(bool ternary) {
  TokenStream::Level level(tokens_);
  RETURN_IF_ERROR(level.Enter());
  ASSIGN_OR_RETURN(Expr expression, ParseBinary(0));
  while (ternary && tokens_.TakeName("if")) {
    ASSIGN_OR_RETURN(const Expr test, ParseBinary(0));
    Expr otherwise = nullptr;
    if (tokens_.TakeName("else")) {
      ASSIGN_OR_RETURN(otherwise, Parse());
    }
    expression = Make(Conditional{test, expression, otherwise});
  }
  return expression;
}

absl::StatusOr<Expr> ExpressionParser::ParseBinary(size_t level) {
  if (level == BinaryLevels().size()) return ParseUnary(true);
  const auto operand = [&] {
    return level + 1 == kWordLevels ? ParseNot() : ParseBinary(level + 1);
  };
  ASSIGN_OR_RETURN(Expr left, operand());
  while (true) {
    const NamedOp* taken = nullptr;
    for (const NamedOp& candidate : BinaryLevels()[level]) {
      const bool found = level < kWordLevels ? tokens_.TakeName(candidate.symbol)
                                             : tokens_.TakeOperator(candidate.symbol);
      if (found) {
        taken = &candidate;
        break;
      }
    }
    if (taken == nullptr) return left;
    ASSIGN_OR_RETURN(const Expr right, operand());
    left = Make(Binary{taken->op, left, right});
  }
}

absl::StatusOr<Expr> ExpressionParser::ParseNot() {
  TokenStream::Level level(tokens_);
  RETURN_IF_ERROR(level.Enter());
  if (!tokens_.TakeName("not")) return ParseComparison();
  ASSIGN_OR_RETURN(const Expr operand, ParseNot());
  return Make(Not{operand});
}

bool ExpressionParser::TakeCompareOp(CompareOp& op) {
  static constexpr std::array<std::pair<std::string_view, CompareOp>, 6> kOps = {{
      {"==", CompareOp::kEqual},
      {"!=", CompareOp::kNotEqual},
      {"<", CompareOp::kLess},
      {"<=", CompareOp::kLessEqual},
      {">", CompareOp::kGreater},
      {">=", CompareOp::kGreaterEqual},
  }};
  for (const auto& [symbol, candidate] : kOps) {
    op = candidate;
    if (tokens_.TakeOperator(symbol)) return true;
  }
  op = CompareOp::kIn;
  if (tokens_.TakeName("in")) return true;
  op = CompareOp::kNotIn;
  return tokens_.TakeName("not");  // `in` has to follow
}

absl::StatusOr<Expr> ExpressionParser::ParseComparison() {
  Comparison comparison;
  ASSIGN_OR_RETURN(comparison.first, ParseBinary(kWordLevels));
  CompareOp op;
  while (TakeCompareOp(op)) {
    if (op == CompareOp::kNotIn && !tokens_.TakeName("in")) return tokens_.Unexpected("'in'");
    ASSIGN_OR_RETURN(const Expr right, ParseBinary(kWordLevels));
    comparison.rest.emplace_back(op, right);
  }
  return comparison.rest.empty() ? comparison.first : Make(std::move(comparison));
}

absl::StatusOr<Expr> ExpressionParser::ParseUnary(bool filters) {
  TokenStream::Level level(tokens_);
  RETURN_IF_ERROR(level.Enter());
  Expr operand = nullptr;
  if (tokens_.TakeOperator("-")) {
    ASSIGN_OR_RETURN(const Expr negated, ParseUnary(false));
    operand = Make(Minus{negated});
  } else if (tokens_.TakeOperator("+")) {
    ASSIGN_OR_RETURN(operand, ParseUnary(false));
  } else {
    ASSIGN_OR_RETURN(operand, ParsePrimary());
  }
  ASSIGN_OR_RETURN(operand, ParsePostfix(operand));
  return filters ? ParseSuffixes(operand) : operand;
}

absl::StatusOr<Expr> ExpressionParser::ParsePrimaryWithPostfix() {
  ASSIGN_OR_RETURN(const Expr operand, ParsePrimary());
  return ParsePostfix(operand);
}

absl::StatusOr<Expr> ExpressionParser::ParsePrimary() {
  switch (tokens_.Peek().kind) {
    case TokenKind::kName:
      return ParseName();
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return ParseNumber();
    case TokenKind::kString: {
      std::string text = tokens_.Next().text;
      while (tokens_.At(TokenKind::kString)) text += tokens_.Next().text;
      return Make(Literal{Value::String(Text(std::move(text)))});
    }
    default:
      if (tokens_.TakeOperator("(")) return ParseParentheses();
      if (tokens_.TakeOperator("[")) return ParseList();
      if (tokens_.TakeOperator("{")) return ParseDict();
      return tokens_.Unexpected("an expression");
  }
}

absl::StatusOr<Expr> ExpressionParser::ParseName() {
  std::string name = tokens_.Next().text;
  if (name == "true" || name == "True") return Make(Literal{Value::Boolean(true)});
  if (name == "false" || name == "False") return Make(Literal{Value::Boolean(false)});
  if (name == "none" || name == "None") return Make(Literal{Value::None()});
  return Make(Name{std::move(name)});
}

absl::StatusOr<Expr> ExpressionParser::ParseNumber() {
  const Token token = tokens_.Next();
  const char* const end = token.text.data() + token.text.size();
  int64_t integer = 0;
  double number = 0;
  const bool is_integer = token.kind == TokenKind::kInteger;
  const auto error = is_integer ? std::from_chars(token.text.data(), end, integer).ec
                                : std::from_chars(token.text.data(), end, number).ec;
  if (error != std::errc()) return ErrorAt(token.line, "the number is beyond 64 bits");
  return Make(Literal{is_integer ? Value::Integer(integer) : Value::Float(number)});
}

bool ExpressionParser::AtTupleEnd() const {
  return tokens_.At(TokenKind::kVariableEnd) || tokens_.At(TokenKind::kBlockEnd) ||
         tokens_.AtOperator(")");
}

absl::StatusOr<Expr> ExpressionParser::ParseTuple(bool ternary) {
  ASSIGN_OR_RETURN(const Expr first, Parse(ternary));
  if (!tokens_.AtOperator(",")) return first;
  ListDisplay tuple{{first}, true};
  while (tokens_.TakeOperator(",") && !AtTupleEnd()) {
    ASSIGN_OR_RETURN(tuple.items.emplace_back(), Parse(ternary));
  }
  return Make(std::move(tuple));
}

absl::StatusOr<Expr> ExpressionParser::ParseParentheses() {
  if (tokens_.TakeOperator(")")) return Make(ListDisplay{{}, true});
  ASSIGN_OR_RETURN(const Expr inner, ParseTuple());
  RETURN_IF_ERROR(tokens_.ExpectOperator(")"));
  return inner;
}

absl::StatusOr<Expr> ExpressionParser::ParseList() {
  ListDisplay list{{}, false};
  while (!tokens_.TakeOperator("]")) {
    if (!list.items.empty()) {
      RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      if (tokens_.TakeOperator("]")) break;
    }
    ASSIGN_OR_RETURN(list.items.emplace_back(), Parse());
  }
  return Make(std::move(list));
}

absl::StatusOr<Expr> ExpressionParser::ParseDict() {
  DictDisplay dict;
  while (!tokens_.TakeOperator("}")) {
    if (!dict.entries.empty()) {
      RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      if (tokens_.TakeOperator("}")) break;
    }
    ASSIGN_OR_RETURN(const Expr key, Parse());
    RETURN_IF_ERROR(tokens_.ExpectOperator(":"));
    ASSIGN_OR_RETURN(const Expr value, Parse());
    dict.entries.emplace_back(key, value);
  }
  return Make(std::move(dict));
}

absl::StatusOr<Expr> ExpressionParser::ParsePostfix(Expr operand) {
  while (true) {
    if (tokens_.TakeOperator(".")) {
      ASSIGN_OR_RETURN(operand, ParseDot(operand));
    } else if (tokens_.TakeOperator("[")) {
      ASSIGN_OR_RETURN(operand, ParseSubscript(operand));
    } else if (tokens_.TakeOperator("(")) {
      ASSIGN_OR_RETURN(Arguments arguments, ParseArguments());
      operand = Make(CallExpression{operand, std::move(arguments)});
    } else {
      return operand;
    }
  }
}

absl::StatusOr<Expr> ExpressionParser::ParseDot(Expr object) {
  if (tokens_.At(TokenKind::kInteger)) {
    ASSIGN_OR_RETURN(const Expr index, ParseNumber());
    return Make(Subscript{object, index});
  }
  ASSIGN_OR_RETURN(std::string name, tokens_.ExpectName());
  return Make(Attribute{object, std::move(name)});
}

absl::StatusOr<Expr> ExpressionParser::ParseSubscript(Expr object) {
  std::array<Expr, 3> bounds{};
  size_t colons = 0;
  while (!tokens_.AtOperator("]")) {
    if (tokens_.AtOperator(":") && colons < 2) {
      tokens_.Next();
      ++colons;
    } else if (bounds[colons] == nullptr) {
      ASSIGN_OR_RETURN(bounds[colons], Parse());
    } else {
      return tokens_.Unexpected("']'");
    }
  }
  if (colons == 0 && bounds[0] == nullptr) return tokens_.Unexpected("an expression");
  tokens_.Next();
  if (colons == 0) return Make(Subscript{object, bounds[0]});
  return Make(Slice{object, bounds[0], bounds[1], bounds[2]});
}

absl::StatusOr<Expr> ExpressionParser::ParseSuffixes(Expr operand) {
  while (true) {
    if (tokens_.TakeOperator("|")) {
      ASSIGN_OR_RETURN(operand, ParseFilter(operand));
    } else if (tokens_.TakeName("is")) {
      ASSIGN_OR_RETURN(operand, ParseTest(operand));
    } else if (tokens_.TakeOperator("(")) {
      ASSIGN_OR_RETURN(Arguments arguments, ParseArguments());
      operand = Make(CallExpression{operand, std::move(arguments)});
    } else {
      return operand;
    }
  }
}

absl::StatusOr<Expr> ExpressionParser::ParseFilters(Expr input, bool bar_taken) {
  while (bar_taken || tokens_.TakeOperator("|")) {
    bar_taken = false;
    ASSIGN_OR_RETURN(input, ParseFilter(input));
  }
  return input;
}

absl::StatusOr<Expr> ExpressionParser::ParseFilter(Expr input) {
  const int line = tokens_.Peek().line;
  ASSIGN_OR_RETURN(const std::string name, tokens_.ExpectName());
  const Builtin* filter = FindFilter(name);
  if (filter == nullptr) return ErrorAt(line, fmt::format("there is no filter '{}'", name));
  Arguments arguments;
  if (tokens_.TakeOperator("(")) {
    ASSIGN_OR_RETURN(arguments, ParseArguments());
  }
  return Make(BuiltinCall{input, filter, std::move(arguments)});
}

absl::StatusOr<Expr> ExpressionParser::ParseTest(Expr operand) {
  const bool negated = tokens_.TakeName("not");
  const int line = tokens_.Peek().line;
  ASSIGN_OR_RETURN(const std::string name, tokens_.ExpectName());
  const Builtin* test = FindTest(name);
  if (test == nullptr) return ErrorAt(line, fmt::format("there is no test '{}'", name));
  Arguments arguments;
  const auto& next = tokens_.Peek();
  const bool keyword =
      next.kind == TokenKind::kName &&
      (next.text == "else" || next.text == "or" || next.text == "and" || next.text == "if" ||
       next.text == "is" || next.text == "not" || next.text == "in");
  const bool operand_follows = next.kind == TokenKind::kName || next.kind == TokenKind::kString ||
                               next.kind == TokenKind::kInteger || next.kind == TokenKind::kFloat ||
                               tokens_.AtOperator("[") || tokens_.AtOperator("{");
  if (tokens_.TakeOperator("(")) {
    ASSIGN_OR_RETURN(arguments, ParseArguments());
  } else if (operand_follows && !keyword) {
    ASSIGN_OR_RETURN(arguments.positional.emplace_back(), ParsePrimaryWithPostfix());
  }
  const Expr result = Make(BuiltinCall{operand, test, std::move(arguments)});
  return negated ? Make(Not{result}) : result;
}

absl::StatusOr<Arguments> ExpressionParser::ParseArguments() {
  Arguments arguments;
  bool first = true;
  while (!tokens_.TakeOperator(")")) {
    if (!first) {
      RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      if (tokens_.TakeOperator(")")) break;
    }
    first = false;
    if (tokens_.AtOperator("*") || tokens_.AtOperator("**")) {
      return ErrorAt(tokens_.Peek().line, "unpacking arguments with * or ** is not supported");
    }
    const int line = tokens_.Peek().line;
    ASSIGN_OR_RETURN(const Expr value, Parse());
    if (tokens_.TakeOperator("=")) {
      const auto* name = std::get_if<Name>(&value->node);
      if (name == nullptr) return ErrorAt(line, "a keyword argument has no name");
      ASSIGN_OR_RETURN(const Expr keyword_value, Parse());
      arguments.keyword.emplace_back(name->name, keyword_value);
    } else if (!arguments.keyword.empty()) {
      return ErrorAt(line, "a positional argument follows a keyword argument");
    } else {
      arguments.positional.push_back(value);
    }
  }
  return arguments;
}

}  // namespace shoal::jinja
