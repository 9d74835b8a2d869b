// Execution of statements.
#include <algorithm>
#include <array>
#include <string>

#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/print.h"

namespace shoal::jinja {
namespace {

/// What `loop` holds while item `index` of `items` is at work.
void UpdateLoop(Dict& loop, const std::vector<Value>& items, size_t index) {
  const auto number = [](size_t n) { return Value::Integer(static_cast<int64_t>(n)); };
  const size_t left = items.size() - index;
  const std::array<std::pair<std::string_view, Value>, 11> entries = {{
      {"index", number(index + 1)},
      {"index0", number(index)},
      {"revindex", number(left)},
      {"revindex0", number(left - 1)},
      {"first", Value::Boolean(index == 0)},
      {"last", Value::Boolean(left == 1)},
      {"length", number(items.size())},
      {"previtem", index == 0 ? Value() : items[index - 1]},
      {"nextitem", left == 1 ? Value() : items[index + 1]},
      {"depth", Value::Integer(1)},
      {"depth0", Value::Integer(0)},
  }};
  for (const auto& [name, value] : entries) loop.Set(name, value);
}

/// loop.cycle(a, b): its arguments in turn.
absl::StatusOr<Value> Cycle(const Dict& loop, const Args& args) {
  if (args.positional.empty()) return Error("cycle needs arguments");
  const Value* index = loop.Find("index0");
  return args.positional[static_cast<size_t>(index->integer()) % args.positional.size()];
}

}  // namespace

const Value* Scope::Find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent) {
    for (const auto& [variable, value] : scope->variables) {
      if (variable == name) return &value;
    }
  }
  return nullptr;
}

void Scope::Set(std::string_view name, Value value) {
  for (auto& [variable, current] : variables) {
    if (variable == name) {
      current = std::move(value);
      return;
    }
  }
  variables.emplace_back(name, std::move(value));
}

absl::Status Interpreter::Run(const Body& body) {
  for (const Statement* statement : body) {
    RETURN_IF_ERROR(Execute(*statement));
    if (flow_ != Flow::kNormal) break;
  }
  return absl::OkStatus();
}

absl::Status Interpreter::Execute(const Statement& statement) {
  Heap::Level level(heap_);
  absl::Status status = level.Enter();
  if (status.ok()) {
    status = std::visit([this](const auto& node) { return Do(node); }, statement.node);
  }
  if (status.ok() || located_) return status;
  located_ = true;
  return absl::Status(status.code(),
                      fmt::format("line {}: {}", statement.line, std::string(status.message())));
}

absl::Status Interpreter::Do(const Data& node) {
  output_->Append(node.text);
  RETURN_IF_ERROR(heap_.Spend(node.text.cost()));
  return heap_.CheckBytes(static_cast<int64_t>(output_->size()));
}

absl::Status Interpreter::Do(const Print& node) {
  ASSIGN_OR_RETURN(const Value value, Evaluate(node.value));
  return Write(value);
}

absl::Status Interpreter::Write(const Value& value) {
  if (value.is(Kind::kString)) {
    RETURN_IF_ERROR(heap_.Spend(value.text().cost()));
    output_->Append(value.text());
  } else {
    ASSIGN_OR_RETURN(const Text text, ToText(heap_, value));
    output_->Append(text);
  }
  return heap_.CheckBytes(static_cast<int64_t>(output_->size()));
}

absl::Status Interpreter::Do(const If& node) {
  for (const auto& [test, body] : node.branches) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(test));
    if (value.Truthy()) return Run(body);
  }
  return Run(node.otherwise);
}

absl::StatusOr<std::vector<Value>> Interpreter::LoopItems(const For& node) {
  ASSIGN_OR_RETURN(const Value iterable, Evaluate(node.iterable));
  ASSIGN_OR_RETURN(auto items, Iterate(heap_, iterable));
  if (node.condition == nullptr) return items;
  Scope* const outer = scope_;
  std::vector<Value> kept;
  for (Value& item : items) {
    scope_ = &scopes_.emplace_back(Scope{outer, {}});
    RETURN_IF_ERROR(Assign(node.target, item));
    ASSIGN_OR_RETURN(const Value keep, Evaluate(node.condition));
    if (keep.Truthy()) kept.push_back(std::move(item));
  }
  scope_ = outer;
  return kept;
}

absl::Status Interpreter::Iteration(const For& node, const Value& item, const Value& loop) {
  Scope* const outer = scope_;
  scope_ = &scopes_.emplace_back(Scope{outer, {}});
  scope_->Set("loop", loop);
  RETURN_IF_ERROR(heap_.Spend(1));
  RETURN_IF_ERROR(Assign(node.target, item));
  RETURN_IF_ERROR(Run(node.body));
  scope_ = outer;
  return absl::OkStatus();
}

absl::Status Interpreter::Do(const For& node) {
  ASSIGN_OR_RETURN(const auto items, LoopItems(node));
  if (items.empty()) return Run(node.otherwise);
  Dict* loop = heap_.NewDict();
  loop->is_namespace = true;
  loop->Set("cycle",
            heap_.NewCallable("cycle", [loop](const Args& args) { return Cycle(*loop, args); }));
  for (size_t i = 0; i < items.size(); ++i) {
    UpdateLoop(*loop, items, i);
    RETURN_IF_ERROR(Iteration(node, items[i], Value::Of(loop)));
    const Flow flow = std::exchange(flow_, Flow::kNormal);
    if (flow == Flow::kBreak) break;
  }
  return absl::OkStatus();
}

absl::Status Interpreter::Assign(const Target& target, const Value& value) {
  if (!target.attribute.empty()) {
    const Value* object = scope_->Find(target.names[0]);
    if (object == nullptr || !object->is(Kind::kDict) || !object->dict().is_namespace) {
      return Error("'{}' is not a namespace, so '{}' cannot be set", target.names[0],
                   target.attribute);
    }
    object->dict().Set(target.attribute, value);
    return absl::OkStatus();
  }
  if (!target.unpacks) {
    scope_->Set(target.names[0], value);
    return absl::OkStatus();
  }
  if (value.is(Kind::kUndefined)) return value.UndefinedError();
  ASSIGN_OR_RETURN(const auto items, Iterate(heap_, value));
  if (items.size() != target.names.size()) {
    return Error("{} values cannot be unpacked into {} names", items.size(), target.names.size());
  }
  for (size_t i = 0; i < items.size(); ++i) scope_->Set(target.names[i], items[i]);
  return absl::OkStatus();
}

absl::Status Interpreter::Do(const Set& node) {
  ASSIGN_OR_RETURN(const Value value, Evaluate(node.value));
  return Assign(node.target, value);
}

absl::StatusOr<Value> Interpreter::Capture(const Body& body, Scope* scope) {
  Text text;
  Text* const outer_output = std::exchange(output_, &text);
  Scope* const outer_scope = std::exchange(scope_, scope);
  const absl::Status status = Run(body);
  output_ = outer_output;
  scope_ = outer_scope;
  RETURN_IF_ERROR(status);
  return heap_.NewString(std::move(text));
}

absl::Status Interpreter::Do(const CaptureBlock& node) {
  ASSIGN_OR_RETURN(captured_, Capture(node.body, &scopes_.emplace_back(Scope{scope_, {}})));
  ASSIGN_OR_RETURN(const Value value, Evaluate(node.value));
  return node.target.names.empty() ? Write(value) : Assign(node.target, value);
}

Value Interpreter::MakeMacro(const Macro& macro) {
  return heap_.NewCallable(macro.name, [this, &macro, closure = scope_](Args args) {
    return CallMacro(macro, closure, std::move(args));
  });
}

absl::Status Interpreter::Do(const Macro& node) {
  scope_->Set(node.name, MakeMacro(node));
  return absl::OkStatus();
}

absl::StatusOr<Value> Interpreter::CallMacro(const Macro& macro, Scope* closure, Args args) {
  if (args.positional.size() > macro.parameters.size()) {
    return Error("macro {} takes at most {} arguments, not {}", macro.name, macro.parameters.size(),
                 args.positional.size());
  }
  Scope* const scope = &scopes_.emplace_back(Scope{closure, {}});
  Scope* const outer = std::exchange(scope_, scope);
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const auto& [name, fallback] = macro.parameters[i];
    const auto keyword =
        std::ranges::find(args.keyword, name, &std::pair<std::string, Value>::first);
    if (i < args.positional.size()) {
      scope->Set(name, args.positional[i]);
    } else if (keyword != args.keyword.end()) {
      scope->Set(name, keyword->second);
      args.keyword.erase(keyword);
    } else {
      ASSIGN_OR_RETURN(const Value value, EvaluateOptional(fallback));
      scope->Set(name, value);
    }
  }
  for (const auto& [name, value] : args.keyword) {
    if (name != "caller") return Error("macro {} has no parameter '{}' left", macro.name, name);
    scope->Set("caller", value);
  }
  scope_ = outer;
  return Capture(macro.body, scope);
}

absl::Status Interpreter::Do(const CallBlock& node) {
  const auto& call = std::get<CallExpression>(node.call->node);
  ASSIGN_OR_RETURN(const Value callee, Evaluate(call.callee));
  ASSIGN_OR_RETURN(Args args, EvaluateArguments(call.arguments));
  args.keyword.emplace_back("caller", MakeMacro(node.caller));
  ASSIGN_OR_RETURN(const Value value, CallValue(callee, std::move(args)));
  return Write(value);
}

absl::Status Interpreter::Do(const With& node) {
  Scope* const outer = scope_;
  Scope* const inner = &scopes_.emplace_back(Scope{outer, {}});
  for (const auto& [name, expression] : node.bindings) {
    ASSIGN_OR_RETURN(Value value, Evaluate(expression));
    inner->Set(name, std::move(value));
  }
  scope_ = inner;
  RETURN_IF_ERROR(Run(node.body));
  scope_ = outer;
  return absl::OkStatus();
}

absl::Status Interpreter::Do(const LoopControl& node) {
  flow_ = node.breaks ? Flow::kBreak : Flow::kContinue;
  return absl::OkStatus();
}

}  // namespace shoal::jinja
