#include "tokenizer/jinja/builtins.h"

#include <algorithm>
#include <string>

#include "tokenizer/jinja/filters.h"
#include "tokenizer/jinja/operators.h"

namespace shoal::jinja {
namespace {

bool AnyFromInput(const Value& self, const Args& args) {
  const auto from_input = [](const Value& value) { return value.FromInput(); };
  return self.FromInput() || std::ranges::any_of(args.positional, from_input) ||
         std::ranges::any_of(args.keyword,
                             [](const auto& entry) { return entry.second.FromInput(); });
}

absl::Status Bind(const Builtin& builtin, Args& args) {
  const auto& parameters = builtin.parameters;
  if (args.positional.size() > parameters.size()) {
    return Error("{} takes at most {} arguments, not {}", builtin.name, parameters.size(),
                 args.positional.size());
  }
  std::vector<bool> given(parameters.size(), false);
  std::fill_n(given.begin(), args.positional.size(), true);
  args.positional.resize(parameters.size());
  for (auto& [name, value] : args.keyword) {
    const auto index =
        static_cast<size_t>(std::ranges::find(parameters, name) - parameters.begin());
    if (index == parameters.size() || given[index]) {
      return Error("{} has no parameter '{}' left", builtin.name, name);
    }
    args.positional[index] = std::move(value);
    given[index] = true;
  }
  args.keyword.clear();
  for (size_t i = 0; i < builtin.required; ++i) {
    if (!given[i]) return Error("{} needs the argument '{}'", builtin.name, parameters[i]);
  }
  return absl::OkStatus();
}

}  // namespace

const Builtin* FindFilter(std::string_view name) {
  for (const auto* filters : {&TextFilters(), &SequenceFilters()}) {
    const auto filter = std::ranges::find(*filters, name, &Builtin::name);
    if (filter != filters->end()) return &*filter;
  }
  return nullptr;
}

absl::StatusOr<Value> Call(Heap& heap, const Builtin& builtin, const Value& self, Args args) {
  int64_t cost = 1 + Cost(self);
  for (const Value& argument : args.positional) cost += Cost(argument);
  RETURN_IF_ERROR(heap.Spend(cost));
  const bool from_input = AnyFromInput(self, args);
  if (!builtin.variadic) RETURN_IF_ERROR(Bind(builtin, args));
  ASSIGN_OR_RETURN(Value result, builtin.function(heap, self, args));
  if (from_input) result.MarkFromInput();
  return result;
}

}  // namespace shoal::jinja
