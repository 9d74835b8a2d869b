// JSON text of strings and numbers; the rest of a JSON text is written out with fmt::format.
#pragma once

#include <string>
#include <string_view>

namespace shoal {

/// `text` as a JSON string, with quotes. Bytes that are not UTF-8 become U+FFFD.
std::string JsonString(std::string_view text);

/// The shortest decimal that reads back as `logprob`, so equal numbers have equal texts. What JSON
/// cannot say (minus infinity, NaN) becomes -9999.
std::string JsonLogprob(float logprob);

bool IsUtf8(std::string_view text);

}  // namespace shoal
