// Values a template computes with, and the Heap that owns the containers and counts the cost.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "kernels/status.h"
#include "tokenizer/jinja/jinja.h"
#include "tokenizer/jinja/text.h"

namespace shoal::jinja {

struct List;
struct Dict;
struct Callable;

enum class Kind { kUndefined, kNone, kBoolean, kInteger, kFloat, kString, kList, kDict, kCallable };

/// A Python value: cheap to copy; lists and dicts are shared by reference and owned by the Heap.
class Value {
 public:
  Value() = default;  // undefined
  static Value Undefined(std::string reason);
  static Value None(bool from_input = false) { return Value(NoneType{}, from_input); }
  static Value Boolean(bool value, bool from_input = false) { return Value(value, from_input); }
  static Value Integer(int64_t value, bool from_input = false) { return Value(value, from_input); }
  static Value Float(double value, bool from_input = false) { return Value(value, from_input); }
  /// Of template literals; text made while rendering goes through Heap::NewString.
  static Value String(Text text);
  static Value Of(List* list) { return Value(list, false); }
  static Value Of(Dict* dict) { return Value(dict, false); }
  static Value Of(Callable* callable) { return Value(callable, false); }

  Kind kind() const { return static_cast<Kind>(data_.index()); }
  bool is(Kind kind) const { return this->kind() == kind; }
  bool is_integer() const { return is(Kind::kInteger) || is(Kind::kBoolean); }  // as in Python
  bool is_number() const { return is_integer() || is(Kind::kFloat); }
  bool is_container() const { return is(Kind::kList) || is(Kind::kDict); }

  // Each needs the kind it names; integer() takes booleans and number() integers too.
  bool boolean() const { return std::get<bool>(data_); }
  int64_t integer() const;
  double number() const;
  const Text& text() const { return *std::get<std::shared_ptr<const Text>>(data_); }
  List& list() const { return *std::get<List*>(data_); }
  Dict& dict() const { return *std::get<Dict*>(data_); }
  const Callable& callable() const { return *std::get<Callable*>(data_); }

  /// Python's truth value.
  bool Truthy() const;
  /// Whether it, or any part of a string, stems from input. Of a container: the container itself.
  bool FromInput() const;
  /// Marks a number, boolean or none as computed from input; no effect on other kinds.
  void MarkFromInput();

  /// As Python calls it: "str", "dict", ...
  std::string_view TypeName() const;
  /// INVALID_ARGUMENT that says why this undefined value cannot be used.
  absl::Status UndefinedError() const;

 private:
  struct NoneType {};
  using UndefinedReason = std::shared_ptr<const std::string>;
  template <typename T>
  Value(T data, bool from_input) : data_(std::move(data)), from_input_(from_input) {}

  std::variant<UndefinedReason, NoneType, bool, int64_t, double, std::shared_ptr<const Text>, List*,
               Dict*, Callable*>
      data_;  // in the order of Kind
  bool from_input_ = false;
};

struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  bool from_input = false;
};

/// In the order of insertion. Keys are strings, numbers or none.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  bool is_namespace = false;  // namespace() and loop: attributes only
  bool from_input = false;

  const Value* Find(const Value& key) const;  // nullptr: absent
  const Value* Find(std::string_view key) const;
  void Set(const Value& key, Value value);
  void Set(std::string_view key, Value value);
};

/// Evaluated arguments of a call.
struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keyword;
};

/// A macro, function or bound method.
struct Callable {
  std::string name;
  std::function<absl::StatusOr<Value>(Args)> call;
};

/// Everything one rendering makes, freed together (so cyclic and deeply nested values are
/// harmless), and the budget it is made from. Thread: one.
class Heap {
 public:
  explicit Heap(const Limits& limits) : limits_(limits) {}
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  /// RESOURCE_EXHAUSTED once the steps of the limit are used up.
  absl::Status Spend(int64_t steps);
  /// RESOURCE_EXHAUSTED if a string of that size would be over the limit.
  absl::Status CheckBytes(int64_t bytes) const;

  /// These count against the budget by their size.
  absl::StatusOr<Value> NewString(Text text);
  absl::StatusOr<Value> NewList(std::vector<Value> items, bool is_tuple = false);
  absl::StatusOr<Value> FromJson(const nlohmann::ordered_json& json, bool from_input);

  Dict* NewDict() { return &dicts_.emplace_back(); }
  Value NewCallable(std::string name, std::function<absl::StatusOr<Value>(Args)> call);

  /// One level of recursion over nested values or nodes, while it lives.
  class Level {
   public:
    explicit Level(Heap& heap) : heap_(heap) { ++heap_.depth_; }
    ~Level() { --heap_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;
    /// Spends a step; RESOURCE_EXHAUSTED if the nesting is too deep.
    absl::Status Enter();

   private:
    Heap& heap_;
  };

 private:
  const Limits limits_;
  int64_t steps_ = 0;
  int depth_ = 0;
  std::deque<List> lists_;
  std::deque<Dict> dicts_;
  std::deque<Callable> callables_;
};

/// INVALID_ARGUMENT in fmt's syntax.
template <typename... T>
absl::Status Error(fmt::format_string<T...> format, T&&... args) {
  return absl::InvalidArgumentError(fmt::format(format, std::forward<T>(args)...));
}

}  // namespace shoal::jinja
