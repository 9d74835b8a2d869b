// The syntax tree of a template.
#pragma once

#include <deque>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tokenizer/jinja/builtins.h"
#include "tokenizer/jinja/operators.h"
#include "tokenizer/jinja/value.h"

namespace shoal::jinja {

// The nodes point to one another; the Ast owns them all, so that a deep tree is freed flat.
struct Expression;
struct Statement;
using Expr = const Expression*;
using Body = std::vector<const Statement*>;

struct Arguments {
  std::vector<Expr> positional;
  std::vector<std::pair<std::string, Expr>> keyword;
};

struct Literal {
  Value value;
};
struct Name {
  std::string name;
};
struct ListDisplay {
  std::vector<Expr> items;
  bool is_tuple;
};
struct DictDisplay {
  std::vector<std::pair<Expr, Expr>> entries;
};
struct Not {
  Expr operand;
};
struct Minus {
  Expr operand;
};
struct Binary {
  BinaryOp op;
  Expr left, right;
};
struct Comparison {
  Expr first;
  std::vector<std::pair<CompareOp, Expr>> rest;  // a < b < c: each with the one before
};
struct Conditional {
  Expr test, then, otherwise;  // otherwise may be null
};
struct Attribute {
  Expr object;
  std::string name;
};
struct Subscript {
  Expr object, key;
};
struct Slice {
  Expr object, start, stop, step;  // all but object may be null
};
struct CallExpression {
  Expr callee;
  Arguments arguments;
};
struct BuiltinCall {  // of a filter or test
  Expr self;
  const Builtin* builtin;
  Arguments arguments;
};
struct Captured {};  // the text of the enclosing set or filter block

struct Expression {
  std::variant<Literal, Name, ListDisplay, DictDisplay, Not, Minus, Binary, Comparison, Conditional,
               Attribute, Subscript, Slice, CallExpression, BuiltinCall, Captured>
      node;
};

/// What `set` and `for` assign to: one name, names to unpack into, or name.attribute.
struct Target {
  std::vector<std::string> names;
  bool unpacks = false;
  std::string attribute;  // of the namespace names[0]; empty: none
};

struct Data {
  Text text;
};
struct Print {
  Expr value;
};
struct If {
  std::vector<std::pair<Expr, Body>> branches;
  Body otherwise;
};
struct For {
  Target target;
  Expr iterable;
  Expr condition;  // may be null
  Body body, otherwise;
};
struct Set {
  Target target;
  Expr value;
};
struct CaptureBlock {  // set or filter block
  Target target;       // no names: the value is printed
  Expr value;          // of Captured
  Body body;
};
struct Macro {
  std::string name;
  std::vector<std::pair<std::string, Expr>> parameters;  // the default may be null
  Body body;
};
struct CallBlock {
  Macro caller;
  Expr call;  // a CallExpression
};
struct With {
  std::vector<std::pair<std::string, Expr>> bindings;
  Body body;
};
struct LoopControl {
  bool breaks;  // else continues
};

struct Statement {
  int line;
  std::variant<Data, Print, If, For, Set, CaptureBlock, Macro, CallBlock, With, LoopControl> node;
};

struct Ast {
  std::deque<Expression> expressions;
  std::deque<Statement> statements;
  Body body;
};

}  // namespace shoal::jinja
