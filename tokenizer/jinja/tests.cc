// Tests: what may follow `is`.
#include <algorithm>
#include <string>

#include "tokenizer/jinja/builtins.h"
#include "tokenizer/jinja/operators.h"
#include "tokenizer/jinja/print.h"
#include "tokenizer/jinja/strings.h"

namespace shoal::jinja {
namespace {

using Result = absl::StatusOr<Value>;

template <Kind kind>
Result IsKind(Heap&, const Value& self, const Args&) {
  return Value::Boolean(self.is(kind));
}

Result IsDefined(Heap&, const Value& self, const Args&) {
  return Value::Boolean(!self.is(Kind::kUndefined));
}

Result IsNumber(Heap&, const Value& self, const Args&) { return Value::Boolean(self.is_number()); }

template <bool wanted>
Result IsTruth(Heap&, const Value& self, const Args&) {
  return Value::Boolean(self.is(Kind::kBoolean) && self.boolean() == wanted);
}

Result IsMapping(Heap&, const Value& self, const Args&) {
  return Value::Boolean(self.is(Kind::kDict) && !self.dict().is_namespace);
}

/// Also of `sequence`: both hold for all that has elements, and as in Jinja for undefined values.
Result IsIterable(Heap&, const Value& self, const Args&) {
  const bool elements = self.is(Kind::kString) || self.is(Kind::kList) || self.is(Kind::kUndefined);
  return Value::Boolean(elements || (self.is(Kind::kDict) && !self.dict().is_namespace));
}

Result IsSame(Heap& heap, const Value& self, const Args& args) {
  const Value& other = args.positional[0];
  if (self.kind() != other.kind()) return Value::Boolean(false);
  if (self.is(Kind::kList)) return Value::Boolean(&self.list() == &other.list());
  if (self.is(Kind::kDict)) return Value::Boolean(&self.dict() == &other.dict());
  ASSIGN_OR_RETURN(const bool equal, Equal(heap, self, other));
  return Value::Boolean(equal);
}

template <CompareOp op>
Result IsCompared(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const bool result, Compare(heap, op, self, args.positional[0]));
  return Value::Boolean(result);
}

Result IsDivisible(Heap& heap, const Value& self, const Args& args) {
  ASSIGN_OR_RETURN(const Value rest, Apply(heap, BinaryOp::kModulo, self, args.positional[0]));
  return Value::Boolean(rest.is_number() && rest.number() == 0);
}

template <int64_t remainder>
Result IsParity(Heap& heap, const Value& self, const Args&) {
  ASSIGN_OR_RETURN(const Value rest, Apply(heap, BinaryOp::kModulo, self, Value::Integer(2)));
  return Value::Boolean(rest.is_number() && rest.number() == remainder);
}

template <Case target>
Result IsCase(Heap& heap, const Value& self, const Args&) {
  ASSIGN_OR_RETURN(const Text text, ToText(heap, self));
  return Value::Boolean(HasCase(text.view(), target));
}

const std::vector<Builtin>& Tests() {
  static const auto* const kTests = new std::vector<Builtin>{
      {"defined", IsDefined, {}},
      {"undefined", IsKind<Kind::kUndefined>, {}},
      {"none", IsKind<Kind::kNone>, {}},
      {"string", IsKind<Kind::kString>, {}},
      {"integer", IsKind<Kind::kInteger>, {}},
      {"float", IsKind<Kind::kFloat>, {}},
      {"boolean", IsKind<Kind::kBoolean>, {}},
      {"callable", IsKind<Kind::kCallable>, {}},
      {"number", IsNumber, {}},
      {"mapping", IsMapping, {}},
      {"iterable", IsIterable, {}},
      {"sequence", IsIterable, {}},
      {"true", IsTruth<true>, {}},
      {"false", IsTruth<false>, {}},
      {"lower", IsCase<Case::kLower>, {}},
      {"upper", IsCase<Case::kUpper>, {}},
      {"odd", IsParity<1>, {}},
      {"even", IsParity<0>, {}},
      {"divisibleby", IsDivisible, {"num"}, 1},
      {"sameas", IsSame, {"other"}, 1},
      {"in", IsCompared<CompareOp::kIn>, {"seq"}, 1},
      {"==", IsCompared<CompareOp::kEqual>, {"other"}, 1},
      {"eq", IsCompared<CompareOp::kEqual>, {"other"}, 1},
      {"equalto", IsCompared<CompareOp::kEqual>, {"other"}, 1},
      {"!=", IsCompared<CompareOp::kNotEqual>, {"other"}, 1},
      {"ne", IsCompared<CompareOp::kNotEqual>, {"other"}, 1},
      {"<", IsCompared<CompareOp::kLess>, {"other"}, 1},
      {"lt", IsCompared<CompareOp::kLess>, {"other"}, 1},
      {"lessthan", IsCompared<CompareOp::kLess>, {"other"}, 1},
      {"<=", IsCompared<CompareOp::kLessEqual>, {"other"}, 1},
      {"le", IsCompared<CompareOp::kLessEqual>, {"other"}, 1},
      {">", IsCompared<CompareOp::kGreater>, {"other"}, 1},
      {"gt", IsCompared<CompareOp::kGreater>, {"other"}, 1},
      {"greaterthan", IsCompared<CompareOp::kGreater>, {"other"}, 1},
      {">=", IsCompared<CompareOp::kGreaterEqual>, {"other"}, 1},
      {"ge", IsCompared<CompareOp::kGreaterEqual>, {"other"}, 1},
  };
  return *kTests;
}

}  // namespace

const Builtin* FindTest(std::string_view name) {
  const auto test = std::ranges::find(Tests(), name, &Builtin::name);
  return test == Tests().end() ? nullptr : &*test;
}

}  // namespace shoal::jinja
