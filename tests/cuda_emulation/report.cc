#include "tests/cuda_emulation/report.h"

#include <cuda_runtime.h>
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <string_view>
#include <vector>

#include "tests/cuda_emulation/block.h"
#include "tests/cuda_emulation/memory.h"

namespace cuda_emulation {
namespace {

/// The mangled name of the function at `offset` of an ELF file, from its table of symbols: kernels
/// are local symbols, which the dynamic linker does not know.
std::string SymbolAt(const char* path, uint64_t offset) {
  std::ifstream file(path, std::ios::binary);
  const auto read = [&file](uint64_t position, void* target, size_t size) {
    file.seekg(static_cast<std::streamoff>(position));
    return static_cast<bool>(
        file.read(static_cast<char*>(target), static_cast<std::streamsize>(size)));
  };
  ElfW(Ehdr) header;
  if (!read(0, &header, sizeof(header))) return "";
  std::vector<ElfW(Shdr)> sections(header.e_shnum);
  if (!read(header.e_shoff, sections.data(), sections.size() * sizeof(sections[0]))) return "";
  for (const auto& section : sections) {
    if (section.sh_type != SHT_SYMTAB) continue;
    std::vector<ElfW(Sym)> symbols(section.sh_size / sizeof(ElfW(Sym)));
    const auto& strings = sections[section.sh_link];
    std::string names(strings.sh_size, '\0');
    if (!read(section.sh_offset, symbols.data(), section.sh_size) ||
        !read(strings.sh_offset, names.data(), names.size())) {
      return "";
    }
    for (const auto& symbol : symbols) {
      if ((symbol.st_info & 0xf) == STT_FUNC && symbol.st_value == offset) {
        return &names[symbol.st_name];
      }
    }
  }
  return "";
}

struct sigaction previous_actions[NSIG];

void HandleSignal(int signal, siginfo_t* info, void* context) {
  // Kernels have small stacks, but the handler has one of its own.
  const void* address = info->si_addr;
  std::string where = Memory::Get().Describe(address);
  if (current_thread != nullptr) {
    const Thread& thread = *current_thread;
    if (where.empty() && thread.runner->shared_memory().IsGuard(address)) {
      where = "beside the " + std::to_string(thread.runner->shared_memory().size()) +
              " bytes of dynamic shared memory";
    } else if (where.empty() && thread.fiber.IsGuard(address)) {
      where = "stack overflow of a kernel's thread";
    }
    Violation("%s at %p: %s", strsignal(signal), address,
              where.empty() ? "no memory of a device, or not aligned" : where.c_str());
  }
  if (!where.empty())
    Violation("host code, %s at %p: %s", strsignal(signal), address, where.c_str());
  // Not ours: as if we had never been here.
  const struct sigaction& previous = previous_actions[signal];
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(signal, info, context);
  } else {
    sigaction(signal, &previous, nullptr);
  }
}

/// Gives the calling thread a stack for its signal handlers, unless it has one.
void GiveSignalStack() {
  struct SignalStack {
    SignalStack() {
      stack_t old;
      if (sigaltstack(nullptr, &old) != 0 || (old.ss_flags & SS_DISABLE) == 0) return;
      memory.resize(64 << 10);
      const stack_t ours = {.ss_sp = memory.data(), .ss_flags = 0, .ss_size = memory.size()};
      sigaltstack(&ours, nullptr);
    }
    ~SignalStack() {
      if (memory.empty()) return;
      const stack_t none = {.ss_sp = nullptr, .ss_flags = SS_DISABLE, .ss_size = 0};
      sigaltstack(&none, nullptr);
    }
    std::vector<char> memory;
  };
  thread_local SignalStack stack;
}

}  // namespace

void Violation(const char* format, ...) {
  std::string message(1024, '\0');
  va_list arguments;
  va_start(arguments, format);
  const int length = std::vsnprintf(message.data(), message.size(), format, arguments);
  va_end(arguments);
  message.resize(std::min(message.size() - 1, static_cast<size_t>(std::max(length, 0))));
  message = "CUDA emulation: " + message;
  if (current_kernel != nullptr) message += "; kernel " + FunctionName(current_kernel);
  if (current_thread != nullptr) {
    char position[128];
    std::snprintf(position, sizeof(position), ", block (%u, %u, %u), thread (%u, %u, %u)",
                  blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    message += position;
  }
  message += '\n';
  std::fflush(stdout);
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, message.data(), message.size());
  std::abort();
}

std::string FunctionName(const void* function) {
  char address[32];
  std::snprintf(address, sizeof(address), "%p", function);
  Dl_info info;
  if (dladdr(function, &info) == 0) return address;
  const auto offset = static_cast<uint64_t>(static_cast<const char*>(function) -
                                            static_cast<const char*>(info.dli_fbase));
  std::string symbol = SymbolAt(info.dli_fname, offset);
  if (symbol.empty() && info.dli_sname != nullptr) symbol = info.dli_sname;
  if (symbol.empty()) return address;
  int status = 0;
  char* demangled = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
  if (status == 0) symbol = demangled;
  std::free(demangled);
  // Without the parameters, the parentheses that close last, and without the result.
  size_t end = symbol.size();
  for (int depth = 0; end > 0; --end) {
    depth += symbol[end - 1] == ')' ? 1 : symbol[end - 1] == '(' ? -1 : 0;
    if (depth == 0) break;
  }
  constexpr std::string_view kResult = "void ";
  const size_t begin = symbol.starts_with(kResult) ? kResult.size() : 0;
  return symbol.substr(begin, end > begin ? end - 1 - begin : std::string::npos);
}

void InstallSignalHandler() {
  GiveSignalStack();
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = HandleSignal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (const int signal : {SIGSEGV, SIGBUS, SIGILL}) {
      sigaction(signal, &action, &previous_actions[signal]);
    }
  });
}

}  // namespace cuda_emulation
