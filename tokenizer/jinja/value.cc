#include "tokenizer/jinja/value.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

namespace shoal::jinja {
namespace {

constexpr int kMaxDepth = 400;  // under 2 MiB of stack, even with sanitizers

bool SameKey(const Value& a, const Value& b) {
  if (a.is(Kind::kString) && b.is(Kind::kString)) return a.text().view() == b.text().view();
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  return a.is(Kind::kNone) && b.is(Kind::kNone);
}

}  // namespace

Value Value::Undefined(std::string reason) {
  return Value(std::make_shared<const std::string>(std::move(reason)), false);
}

Value Value::String(Text text) {
  return Value(std::make_shared<const Text>(std::move(text)), false);
}

int64_t Value::integer() const {
  return is(Kind::kBoolean) ? static_cast<int64_t>(boolean()) : std::get<int64_t>(data_);
}

double Value::number() const {
  return is(Kind::kFloat) ? std::get<double>(data_) : static_cast<double>(integer());
}

bool Value::Truthy() const {
  switch (kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBoolean:
    case Kind::kInteger:
    case Kind::kFloat:
      return number() != 0;
    case Kind::kString:
      return !text().empty();
    case Kind::kList:
      return !list().items.empty();
    case Kind::kDict:
      return dict().is_namespace || !dict().entries.empty();
    case Kind::kCallable:
      return true;
  }
  return false;
}

bool Value::FromInput() const {
  switch (kind()) {
    case Kind::kString:
      return text().FromInput();
    case Kind::kList:
      return list().from_input;
    case Kind::kDict:
      return dict().from_input;
    default:
      return from_input_;
  }
}

void Value::MarkFromInput() { from_input_ = true; }

std::string_view Value::TypeName() const {
  static constexpr std::array<std::string_view, 9> kNames = {
      "Undefined", "NoneType", "bool", "int", "float", "str", "list", "dict", "function"};
  if (is(Kind::kList) && list().is_tuple) return "tuple";
  if (is(Kind::kDict) && dict().is_namespace) return "namespace";
  return kNames[data_.index()];
}

absl::Status Value::UndefinedError() const {
  const auto& reason = std::get<UndefinedReason>(data_);
  return absl::InvalidArgumentError(reason ? *reason : "the value is undefined");
}

const Value* Dict::Find(const Value& key) const {
  const auto entry =
      std::ranges::find_if(entries, [&](const auto& e) { return SameKey(e.first, key); });
  return entry == entries.end() ? nullptr : &entry->second;
}

const Value* Dict::Find(std::string_view key) const {
  const auto entry = std::ranges::find_if(entries, [&](const auto& e) {
    return e.first.is(Kind::kString) && e.first.text().view() == key;
  });
  return entry == entries.end() ? nullptr : &entry->second;
}

void Dict::Set(const Value& key, Value value) {
  for (auto& [name, current] : entries) {
    if (SameKey(name, key)) {
      current = std::move(value);
      return;
    }
  }
  entries.emplace_back(key, std::move(value));
}

void Dict::Set(std::string_view key, Value value) {
  Set(Value::String(Text(std::string(key))), std::move(value));
}

absl::Status Heap::Spend(int64_t steps) {
  if (steps > limits_.max_steps - steps_) {
    steps_ = limits_.max_steps;
    return absl::ResourceExhaustedError(
        fmt::format("rendering needs more than {} steps", limits_.max_steps));
  }
  steps_ += steps;
  return absl::OkStatus();
}

absl::Status Heap::CheckBytes(int64_t bytes) const {
  if (bytes <= limits_.max_output_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      fmt::format("rendering makes more than {} bytes of text", limits_.max_output_bytes));
}

absl::StatusOr<Value> Heap::NewString(Text text) {
  RETURN_IF_ERROR(CheckBytes(static_cast<int64_t>(text.size())));
  RETURN_IF_ERROR(Spend(text.cost()));
  return Value::String(std::move(text));
}

absl::StatusOr<Value> Heap::NewList(std::vector<Value> items, bool is_tuple) {
  RETURN_IF_ERROR(Spend(static_cast<int64_t>(items.size())));
  return Value::Of(&lists_.emplace_back(List{std::move(items), is_tuple}));
}

Value Heap::NewCallable(std::string name, std::function<absl::StatusOr<Value>(Args)> call) {
  return Value::Of(&callables_.emplace_back(Callable{std::move(name), std::move(call)}));
}

absl::StatusOr<Value> Heap::FromJson(const nlohmann::ordered_json& json, bool from_input) {
  Level level(*this);
  RETURN_IF_ERROR(level.Enter());
  if (json.is_null()) return Value::None(from_input);
  if (json.is_boolean()) return Value::Boolean(json.get<bool>(), from_input);
  if (json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX) {
    return Error("the number {} is beyond 64 bits", json.get<uint64_t>());
  }
  if (json.is_number_integer()) return Value::Integer(json.get<int64_t>(), from_input);
  if (json.is_number_float()) return Value::Float(json.get<double>(), from_input);
  if (json.is_string()) return NewString(Text(json.get<std::string>(), from_input));
  if (json.is_array()) {
    std::vector<Value> items;
    for (const auto& element : json) {
      ASSIGN_OR_RETURN(items.emplace_back(), FromJson(element, from_input));
    }
    ASSIGN_OR_RETURN(Value list, NewList(std::move(items)));
    list.list().from_input = from_input;
    return list;
  }
  if (!json.is_object()) return Error("a variable has the type {}", json.type_name());
  Dict* dict = NewDict();
  dict->from_input = from_input;
  for (const auto& [name, element] : json.items()) {
    ASSIGN_OR_RETURN(Value key, NewString(Text(name, from_input)));
    ASSIGN_OR_RETURN(Value value, FromJson(element, from_input));
    dict->entries.emplace_back(std::move(key), std::move(value));
  }
  return Value::Of(dict);
}

absl::Status Heap::Level::Enter() {
  if (heap_.depth_ > kMaxDepth) {
    return absl::ResourceExhaustedError(
        fmt::format("expressions, macros or values are nested more than {} deep", kMaxDepth));
  }
  return heap_.Spend(1);
}

}  // namespace shoal::jinja
