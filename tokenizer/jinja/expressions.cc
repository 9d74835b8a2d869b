// Evaluation of expressions.
#include <string>

#include "tokenizer/jinja/interpreter.h"

namespace shoal::jinja {

using Result = absl::StatusOr<Value>;

Result Interpreter::Evaluate(Expr expression) {
  Heap::Level level(heap_);
  RETURN_IF_ERROR(level.Enter());
  return std::visit([this](const auto& node) { return Eval(node); }, expression->node);
}

Result Interpreter::EvaluateOptional(Expr expression) {
  return expression == nullptr ? Value() : Evaluate(expression);
}

Result Interpreter::Eval(const Literal& node) { return node.value; }

Result Interpreter::Eval(const Name& node) {
  if (const Value* found = scope_->Find(node.name)) return *found;
  if (auto global = FindGlobal(heap_, node.name)) return *std::move(global);
  return Value::Undefined(fmt::format("'{}' is undefined", node.name));
}

Result Interpreter::Eval(const ListDisplay& node) {
  std::vector<Value> items;
  for (const Expr item : node.items) {
    ASSIGN_OR_RETURN(items.emplace_back(), Evaluate(item));
  }
  return heap_.NewList(std::move(items), node.is_tuple);
}

Result Interpreter::Eval(const DictDisplay& node) {
  Dict* dict = heap_.NewDict();
  for (const auto& [key_node, value_node] : node.entries) {
    ASSIGN_OR_RETURN(const Value key, Evaluate(key_node));
    RETURN_IF_ERROR(CheckKey(key));
    ASSIGN_OR_RETURN(Value value, Evaluate(value_node));
    RETURN_IF_ERROR(heap_.Spend(Cost(Value::Of(dict))));
    dict->Set(key, std::move(value));
  }
  return Value::Of(dict);
}

Result Interpreter::Eval(const Not& node) {
  ASSIGN_OR_RETURN(const Value value, Evaluate(node.operand));
  return Value::Boolean(!value.Truthy(), value.FromInput());
}

Result Interpreter::Eval(const Minus& node) {
  ASSIGN_OR_RETURN(const Value value, Evaluate(node.operand));
  return Negate(value);
}

Result Interpreter::Eval(const Binary& node) {
  ASSIGN_OR_RETURN(const Value left, Evaluate(node.left));
  if (node.op == BinaryOp::kOr) return left.Truthy() ? Result(left) : Evaluate(node.right);
  if (node.op == BinaryOp::kAnd) return left.Truthy() ? Evaluate(node.right) : Result(left);
  ASSIGN_OR_RETURN(const Value right, Evaluate(node.right));
  return Apply(heap_, node.op, left, right);
}

Result Interpreter::Eval(const Comparison& node) {
  ASSIGN_OR_RETURN(Value left, Evaluate(node.first));
  bool from_input = left.FromInput();
  for (const auto& [op, right_node] : node.rest) {
    ASSIGN_OR_RETURN(Value right, Evaluate(right_node));
    from_input = from_input || right.FromInput();
    ASSIGN_OR_RETURN(const bool holds, Compare(heap_, op, left, right));
    if (!holds) return Value::Boolean(false, from_input);
    left = std::move(right);
  }
  return Value::Boolean(true, from_input);
}

Result Interpreter::Eval(const Conditional& node) {
  ASSIGN_OR_RETURN(const Value test, Evaluate(node.test));
  return test.Truthy() ? Evaluate(node.then) : EvaluateOptional(node.otherwise);
}

Result Interpreter::Eval(const Attribute& node) {
  ASSIGN_OR_RETURN(const Value object, Evaluate(node.object));
  return GetAttribute(heap_, object, node.name);
}

Result Interpreter::Eval(const Subscript& node) {
  ASSIGN_OR_RETURN(const Value object, Evaluate(node.object));
  ASSIGN_OR_RETURN(const Value key, Evaluate(node.key));
  return GetItem(heap_, object, key);
}

Result Interpreter::Eval(const Slice& node) {
  ASSIGN_OR_RETURN(const Value object, Evaluate(node.object));
  SliceBounds bounds;
  ASSIGN_OR_RETURN(bounds.start, EvaluateOptional(node.start));
  ASSIGN_OR_RETURN(bounds.stop, EvaluateOptional(node.stop));
  ASSIGN_OR_RETURN(bounds.step, EvaluateOptional(node.step));
  return GetSlice(heap_, object, bounds);
}

Result Interpreter::Eval(const CallExpression& node) {
  ASSIGN_OR_RETURN(const Value callee, Evaluate(node.callee));
  ASSIGN_OR_RETURN(Args args, EvaluateArguments(node.arguments));
  return CallValue(callee, std::move(args));
}

Result Interpreter::Eval(const BuiltinCall& node) {
  ASSIGN_OR_RETURN(const Value self, Evaluate(node.self));
  ASSIGN_OR_RETURN(Args args, EvaluateArguments(node.arguments));
  return Call(heap_, *node.builtin, self, std::move(args));
}

Result Interpreter::Eval(const Captured&) { return captured_; }

absl::StatusOr<Args> Interpreter::EvaluateArguments(const Arguments& arguments) {
  Args args;
  for (const Expr argument : arguments.positional) {
    ASSIGN_OR_RETURN(args.positional.emplace_back(), Evaluate(argument));
  }
  for (const auto& [name, argument] : arguments.keyword) {
    ASSIGN_OR_RETURN(Value value, Evaluate(argument));
    args.keyword.emplace_back(name, std::move(value));
  }
  return args;
}

Result Interpreter::CallValue(const Value& callee, Args args) {
  if (callee.is(Kind::kUndefined)) return callee.UndefinedError();
  if (!callee.is(Kind::kCallable)) return Error("a '{}' cannot be called", callee.TypeName());
  return callee.callable().call(std::move(args));
}

}  // namespace shoal::jinja
