// The command line of `shoal`: flags > environment (SHOAL_<FLAG>) > --config file > defaults.
#pragma once

namespace shoal {

/// Runs the command that `argv` names; the process's exit status. Errors are one sentence on
/// stderr, with status 1.
int RunCommandLine(int argc, const char* const* argv);

}  // namespace shoal
