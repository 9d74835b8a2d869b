#include "tokenizer/jinja/jinja.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/parser.h"

namespace shoal::jinja {
namespace {

absl::Status Define(Heap& heap, Scope& scope, const nlohmann::ordered_json& variables,
                    bool from_input) {
  for (auto variable = variables.begin(); variable != variables.end(); ++variable) {
    ASSIGN_OR_RETURN(Value value, heap.FromJson(*variable, from_input));
    scope.Set(variable.key(), std::move(value));
  }
  return absl::OkStatus();
}

}  // namespace

Template::Template(std::unique_ptr<const Ast> ast) : ast_(std::move(ast)) {}
Template::~Template() = default;

absl::StatusOr<std::unique_ptr<Template>> Template::Parse(std::string_view source) {
  ASSIGN_OR_RETURN(auto ast, ParseTemplate(source));
  return std::unique_ptr<Template>(new Template(std::move(ast)));
}

absl::StatusOr<std::vector<Segment>> Template::Render(const nlohmann::ordered_json& trusted,
                                                      const nlohmann::ordered_json& input,
                                                      const Limits& limits) const {
  SHOAL_CHECK(trusted.is_object() && input.is_object(), "the variables are not JSON objects");
  Heap heap(limits);
  Interpreter interpreter(heap);
  RETURN_IF_ERROR(Define(heap, interpreter.globals(), input, true));
  RETURN_IF_ERROR(Define(heap, interpreter.globals(), trusted, false));
  RETURN_IF_ERROR(interpreter.Run(ast_->body));
  return interpreter.output().Segments();
}

}  // namespace shoal::jinja
