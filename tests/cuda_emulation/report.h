// Violations: what the emulator saw and a device would not forgive.
#pragma once

#include <string>

namespace cuda_emulation {

/// Prints "CUDA emulation: ", the message, and where it is - kernel, block and thread, if the
/// calling thread is carrying out one - and aborts.
[[noreturn]] void Violation(const char* format, ...) __attribute__((format(printf, 1, 2)));

/// The kernel whose blocks the calling thread is carrying out, or null.
extern constinit thread_local const void* current_kernel;

/// The name of a function of this program, or its address.
std::string FunctionName(const void* function);

/// From now on a signal for an access to memory ends in a Violation(), if it stands in a kernel or
/// concerns memory of a device.
void InstallSignalHandler();

}  // namespace cuda_emulation
