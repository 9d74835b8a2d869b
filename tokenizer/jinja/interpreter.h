// Runs a syntax tree: evaluates expressions and writes the text of statements.
#pragma once

#include <deque>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/status.h"
#include "tokenizer/jinja/ast.h"
#include "tokenizer/jinja/value.h"

namespace shoal::jinja {

/// Variables of a template, loop body, macro or with block. Names outlive it.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string_view, Value>> variables;

  /// In this scope or one around it; nullptr: nowhere.
  const Value* Find(std::string_view name) const;
  void Set(std::string_view name, Value value);
};

/// One rendering of one tree. After an error it is of no further use. Thread: one.
class Interpreter {
 public:
  explicit Interpreter(Heap& heap) : heap_(heap) {}
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  Scope& globals() { return globals_; }

  /// INVALID_ARGUMENT or RESOURCE_EXHAUSTED, naming the line.
  absl::Status Run(const Body& body);
  const Text& output() const { return *output_; }

 private:
  absl::Status Execute(const Statement& statement);
  absl::Status Do(const Data& node);
  absl::Status Do(const Print& node);
  absl::Status Do(const If& node);
  absl::Status Do(const For& node);
  absl::Status Do(const Set& node);
  absl::Status Do(const CaptureBlock& node);
  absl::Status Do(const Macro& node);
  absl::Status Do(const CallBlock& node);
  absl::Status Do(const With& node);
  absl::Status Do(const LoopControl& node);

  absl::StatusOr<std::vector<Value>> LoopItems(const For& node);
  absl::Status Iteration(const For& node, const Value& item, const Value& loop);
  absl::Status Assign(const Target& target, const Value& value);
  absl::Status Write(const Value& value);
  /// Text that `body` writes in a scope of its own.
  absl::StatusOr<Value> Capture(const Body& body, Scope* scope);
  Value MakeMacro(const Macro& macro);
  absl::StatusOr<Value> CallMacro(const Macro& macro, Scope* closure, Args args);

  absl::StatusOr<Value> Evaluate(Expr expression);
  absl::StatusOr<Value> EvaluateOptional(Expr expression);  // undefined for null
  absl::StatusOr<Value> Eval(const Literal& node);
  absl::StatusOr<Value> Eval(const Name& node);
  absl::StatusOr<Value> Eval(const ListDisplay& node);
  absl::StatusOr<Value> Eval(const DictDisplay& node);
  absl::StatusOr<Value> Eval(const Not& node);
  absl::StatusOr<Value> Eval(const Minus& node);
  absl::StatusOr<Value> Eval(const Binary& node);
  absl::StatusOr<Value> Eval(const Comparison& node);
  absl::StatusOr<Value> Eval(const Conditional& node);
  absl::StatusOr<Value> Eval(const Attribute& node);
  absl::StatusOr<Value> Eval(const Subscript& node);
  absl::StatusOr<Value> Eval(const Slice& node);
  absl::StatusOr<Value> Eval(const CallExpression& node);
  absl::StatusOr<Value> Eval(const BuiltinCall& node);
  absl::StatusOr<Value> Eval(const Captured& node);
  absl::StatusOr<Args> EvaluateArguments(const Arguments& arguments);
  absl::StatusOr<Value> CallValue(const Value& callee, Args args);

  enum class Flow { kNormal, kBreak, kContinue };

  Heap& heap_;
  std::deque<Scope> scopes_;  // macros may refer to any until the end
  Scope globals_;
  Scope* scope_ = &globals_;
  Text text_;
  Text* output_ = &text_;
  Value captured_;
  Flow flow_ = Flow::kNormal;
  bool located_ = false;  // the error names its line
};

}  // namespace shoal::jinja
