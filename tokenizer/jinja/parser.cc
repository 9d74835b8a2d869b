#include "tokenizer/jinja/parser.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <string>

#include "tokenizer/jinja/expression_parser.h"
#include "tokenizer/jinja/lexer.h"
#include "tokenizer/jinja/token_stream.h"

namespace shoal::jinja {
namespace {

using Parsed = absl::StatusOr<const Statement*>;

class Parser {
 public:
  Parser(TokenStream& tokens, Ast& ast) : tokens_(tokens), ast_(ast), expressions_(tokens, ast) {}

  absl::Status Run() {
    ASSIGN_OR_RETURN(ast_.body, ParseBody({}));
    return absl::OkStatus();
  }

 private:
  template <typename Node>
  const Statement* Make(int line, Node node) {
    return &ast_.statements.emplace_back(Statement{line, std::move(node)});
  }

  absl::Status EndTag() { return tokens_.Expect(TokenKind::kBlockEnd, "'%}'"); }

  /// Statements up to a tag with one of `ends`, whose name is the next token then; the whole
  /// template if there are none.
  absl::StatusOr<Body> ParseBody(std::initializer_list<std::string_view> ends) {
    TokenStream::Level level(tokens_);
    RETURN_IF_ERROR(level.Enter());
    Body body;
    while (!tokens_.At(TokenKind::kEnd)) {
      const int line = tokens_.Peek().line;
      if (tokens_.At(TokenKind::kData)) {
        body.push_back(Make(line, Data{Text(tokens_.Next().text)}));
      } else if (tokens_.At(TokenKind::kVariableBegin)) {
        tokens_.Next();
        ASSIGN_OR_RETURN(const Expr value, expressions_.ParseTuple());
        RETURN_IF_ERROR(tokens_.Expect(TokenKind::kVariableEnd, "'}}'"));
        body.push_back(Make(line, Print{value}));
      } else {
        RETURN_IF_ERROR(tokens_.Expect(TokenKind::kBlockBegin, "a tag"));
        const bool at_end =
            std::ranges::any_of(ends, [&](std::string_view end) { return tokens_.AtName(end); });
        if (at_end) return body;
        ASSIGN_OR_RETURN(body.emplace_back(), ParseStatement());
      }
    }
    if (ends.size() == 0) return body;
    return tokens_.Unexpected(fmt::format("'{}'", *(ends.end() - 1)));
  }

  /// A body and its end tag.
  absl::StatusOr<Body> ParseBodyUntil(std::string_view end) {
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(Body body, ParseBody({end}));
    tokens_.Next();
    RETURN_IF_ERROR(EndTag());
    return body;
  }

  Parsed ParseStatement() {
    struct Keyword {
      std::string_view name;
      Parsed (Parser::*parse)(int line);
    };
    static constexpr std::array<Keyword, 10> kKeywords = {{
        {"if", &Parser::ParseIf},
        {"for", &Parser::ParseFor},
        {"set", &Parser::ParseSet},
        {"macro", &Parser::ParseMacro},
        {"call", &Parser::ParseCall},
        {"filter", &Parser::ParseFilterBlock},
        {"with", &Parser::ParseWith},
        {"generation", &Parser::ParseGeneration},
        {"break", &Parser::ParseBreak},
        {"continue", &Parser::ParseContinue},
    }};
    const int line = tokens_.Peek().line;
    ASSIGN_OR_RETURN(const std::string name, tokens_.ExpectName());
    const auto* const keyword = std::ranges::find(kKeywords, name, &Keyword::name);
    if (keyword != kKeywords.end()) return (this->*keyword->parse)(line);
    if (name.starts_with("end") || name == "else" || name == "elif") {
      return ErrorAt(line, fmt::format("'{}' ends nothing that is open", name));
    }
    return ErrorAt(line, fmt::format("the statement '{}' is not supported", name));
  }

  Parsed ParseIf(int line) {
    If node;
    while (true) {
      ASSIGN_OR_RETURN(const Expr test, expressions_.ParseTuple(false));
      RETURN_IF_ERROR(EndTag());
      ASSIGN_OR_RETURN(Body body, ParseBody({"elif", "else", "endif"}));
      node.branches.emplace_back(test, std::move(body));
      const std::string tag = tokens_.Next().text;
      if (tag == "elif") continue;
      if (tag == "else") {
        ASSIGN_OR_RETURN(node.otherwise, ParseBodyUntil("endif"));
      } else {
        RETURN_IF_ERROR(EndTag());
      }
      return Make(line, std::move(node));
    }
  }

  Parsed ParseFor(int line) {
    For node{};
    ASSIGN_OR_RETURN(node.target, ParseTarget());
    if (!tokens_.TakeName("in")) return tokens_.Unexpected("'in'");
    ASSIGN_OR_RETURN(node.iterable, expressions_.ParseTuple(false));
    if (tokens_.TakeName("if")) {
      ASSIGN_OR_RETURN(node.condition, expressions_.Parse());
    }
    if (tokens_.AtName("recursive")) return ErrorAt(line, "'recursive' loops are not supported");
    RETURN_IF_ERROR(EndTag());
    ++loops_;
    ASSIGN_OR_RETURN(node.body, ParseBody({"else", "endfor"}));
    --loops_;
    if (tokens_.Next().text == "else") {
      ASSIGN_OR_RETURN(node.otherwise, ParseBodyUntil("endfor"));
    } else {
      RETURN_IF_ERROR(EndTag());
    }
    return Make(line, std::move(node));
  }

  /// name, name.attribute, or names with commas between, in parentheses or not.
  absl::StatusOr<Target> ParseTarget() {
    Target target;
    const bool parenthesized = tokens_.TakeOperator("(");
    do {
      ASSIGN_OR_RETURN(target.names.emplace_back(), tokens_.ExpectName());
      if (!tokens_.TakeOperator(",")) break;
      target.unpacks = true;
    } while (tokens_.At(TokenKind::kName) && !tokens_.AtName("in"));
    if (parenthesized) RETURN_IF_ERROR(tokens_.ExpectOperator(")"));
    if (!target.unpacks && tokens_.TakeOperator(".")) {
      ASSIGN_OR_RETURN(target.attribute, tokens_.ExpectName());
    }
    return target;
  }

  Parsed ParseSet(int line) {
    ASSIGN_OR_RETURN(Target target, ParseTarget());
    if (tokens_.TakeOperator("=")) {
      ASSIGN_OR_RETURN(const Expr value, expressions_.ParseTuple());
      RETURN_IF_ERROR(EndTag());
      return Make(line, Set{std::move(target), value});
    }
    ASSIGN_OR_RETURN(const Expr value, expressions_.ParseFilters(expressions_.Captured(), false));
    if (!tokens_.At(TokenKind::kBlockEnd)) return tokens_.Unexpected("'=' or '%}'");
    ASSIGN_OR_RETURN(Body body, ParseBodyUntil("endset"));
    return Make(line, CaptureBlock{std::move(target), value, std::move(body)});
  }

  Parsed ParseFilterBlock(int line) {
    ASSIGN_OR_RETURN(const Expr value, expressions_.ParseFilters(expressions_.Captured(), true));
    ASSIGN_OR_RETURN(Body body, ParseBodyUntil("endfilter"));
    return Make(line, CaptureBlock{{}, value, std::move(body)});
  }

  /// (a, b=1)
  absl::Status ParseParameters(Macro& macro) {
    RETURN_IF_ERROR(tokens_.ExpectOperator("("));
    while (!tokens_.TakeOperator(")")) {
      if (!macro.parameters.empty()) RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      ASSIGN_OR_RETURN(std::string parameter, tokens_.ExpectName());
      Expr fallback = nullptr;
      if (tokens_.TakeOperator("=")) {
        ASSIGN_OR_RETURN(fallback, expressions_.Parse());
      } else if (!macro.parameters.empty() && macro.parameters.back().second != nullptr) {
        return tokens_.Unexpected("a default value");
      }
      macro.parameters.emplace_back(std::move(parameter), fallback);
    }
    return absl::OkStatus();
  }

  /// `break` inside does not reach a loop outside.
  absl::StatusOr<Body> ParseMacroBody(std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    ASSIGN_OR_RETURN(Body body, ParseBodyUntil(end));
    loops_ = loops;
    return body;
  }

  Parsed ParseMacro(int line) {
    Macro macro;
    ASSIGN_OR_RETURN(macro.name, tokens_.ExpectName());
    RETURN_IF_ERROR(ParseParameters(macro));
    ASSIGN_OR_RETURN(macro.body, ParseMacroBody("endmacro"));
    return Make(line, std::move(macro));
  }

  Parsed ParseCall(int line) {
    CallBlock node{{"caller", {}, {}}, nullptr};
    if (tokens_.AtOperator("(")) RETURN_IF_ERROR(ParseParameters(node.caller));
    ASSIGN_OR_RETURN(node.call, expressions_.ParsePrimaryWithPostfix());
    if (!std::holds_alternative<CallExpression>(node.call->node)) {
      return ErrorAt(line, "'call' needs the call of a macro");
    }
    ASSIGN_OR_RETURN(node.caller.body, ParseMacroBody("endcall"));
    return Make(line, std::move(node));
  }

  Parsed ParseWith(int line) {
    With node;
    while (!tokens_.At(TokenKind::kBlockEnd)) {
      if (!node.bindings.empty()) RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      auto& [name, value] = node.bindings.emplace_back();
      ASSIGN_OR_RETURN(name, tokens_.ExpectName());
      RETURN_IF_ERROR(tokens_.ExpectOperator("="));
      ASSIGN_OR_RETURN(value, expressions_.Parse());
    }
    ASSIGN_OR_RETURN(node.body, ParseBodyUntil("endwith"));
    return Make(line, std::move(node));
  }

  /// Marks what the assistant says, for training: to us a plain scope.
  Parsed ParseGeneration(int line) {
    With node;
    ASSIGN_OR_RETURN(node.body, ParseBodyUntil("endgeneration"));
    return Make(line, std::move(node));
  }

  Parsed ParseBreak(int line) { return ParseLoopControl(line, true); }
  Parsed ParseContinue(int line) { return ParseLoopControl(line, false); }

  Parsed ParseLoopControl(int line, bool breaks) {
    if (loops_ == 0) return ErrorAt(line, "'break' or 'continue' outside a loop");
    RETURN_IF_ERROR(EndTag());
    return Make(line, LoopControl{breaks});
  }

  TokenStream& tokens_;
  Ast& ast_;
  ExpressionParser expressions_;
  int loops_ = 0;  // open around the current statement
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Ast>> ParseTemplate(std::string_view source) {
  ASSIGN_OR_RETURN(auto token_list, Tokenize(source));
  TokenStream tokens(std::move(token_list));
  auto ast = std::make_unique<Ast>();
  RETURN_IF_ERROR(Parser(tokens, *ast).Run());
  return ast;
}

}  // namespace shoal::jinja
