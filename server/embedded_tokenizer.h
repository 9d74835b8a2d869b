// The project's own tokenizer, part of the program.
#pragma once

#include <string_view>

namespace shoal {

std::string_view EmbeddedTokenizerJson();
std::string_view EmbeddedTokenizerConfigJson();

}  // namespace shoal
