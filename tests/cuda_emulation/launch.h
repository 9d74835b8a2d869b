// Kernels on their way from the host to the emulator.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "tests/cuda_emulation/include/cuda_runtime_api.h"

namespace cuda_emulation {

/// An address among a kernel's arguments.
struct ArgumentAddress {
  const void* address = nullptr;
  const char* name = "";  // of the field that holds it; empty: it is an argument by itself
};

/// Collects the addresses in an argument, which is plain data.
class AddressCollector {
 public:
  explicit AddressCollector(std::vector<ArgumentAddress>* addresses) : addresses_(addresses) {}

  template <typename T>
  void Collect(const T& argument) const {
    if constexpr (std::is_pointer_v<T>) {
      addresses_->push_back({reinterpret_cast<const void*>(argument), ""});
    } else if constexpr (std::is_class_v<T>) {
      __builtin_dump_struct(&argument, *this);
    }
  }

  /// The builtin's print function: called with a format and what it wants for each field, which
  /// for one that holds an address is the indentation, the type, the name and the address.
  template <typename... Values>
  void operator()(const char* format, const Values&... values) const {
    if constexpr (sizeof...(Values) == 4) Field(format, values...);
  }

 private:
  template <typename T>
  void Field(const char* format, const char* indentation, const char* type, const char* name,
             const T& value) const {
    // "*%p" stands for a field that is no address but lies there.
    if constexpr (std::is_pointer_v<T>) {
      if (std::strstr(format, "*%p") == nullptr) {
        addresses_->push_back({reinterpret_cast<const void*>(value), name});
      }
    }
  }

  std::vector<ArgumentAddress>* addresses_;
};

/// A kernel with its arguments.
class KernelCall {
 public:
  virtual ~KernelCall() = default;

  /// Calls the kernel as the current thread.
  virtual void Run() const = 0;
  virtual const void* function() const = 0;
  virtual std::span<const ArgumentAddress> addresses() const = 0;
};

/// cudaLaunchKernelEx().
cudaError_t EnqueueKernel(const cudaLaunchConfig_t& config, std::shared_ptr<const KernelCall> call);

}  // namespace cuda_emulation
