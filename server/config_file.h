// Options from places other than the command line.
#pragma once

#include <string>

#include "kernels/status.h"

namespace CLI {
class App;
}  // namespace CLI

namespace shoal {

/// Lets every option of `command` also be set by SHOAL_<FLAG>: --max-model-len by
/// SHOAL_MAX_MODEL_LEN.
void ReadOptionsFromEnvironment(CLI::App& command);

/// Sets the options of the parsed `command` that neither flags nor environment have set, from a
/// JSON object with the flags' names as keys. INVALID_ARGUMENT names file and key.
absl::Status ApplyConfigFile(CLI::App& command, const std::string& path);

}  // namespace shoal
