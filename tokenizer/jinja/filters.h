// The two tables of filters.
#pragma once

#include <vector>

#include "tokenizer/jinja/builtins.h"

namespace shoal::jinja {

const std::vector<Builtin>& TextFilters();      // of strings and numbers
const std::vector<Builtin>& SequenceFilters();  // of lists and dicts

}  // namespace shoal::jinja
