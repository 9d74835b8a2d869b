// Fibers: flows of control with stacks of their own that one thread of the host switches between.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#include <sanitizer/common_interface_defs.h>
#define CUDA_EMULATION_ADDRESS_SANITIZER 1
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#include <sanitizer/tsan_interface.h>
#define CUDA_EMULATION_THREAD_SANITIZER 1
#endif

extern "C" void cuda_emulation_switch(void** save, void* resume);

namespace cuda_emulation {

/// A flow of control that is not running, or a place to keep one: the thread's own while it runs
/// fibers. Not to be moved, nor used by two threads.
class Fiber {
 public:
  /// The flow of control of the calling thread.
  Fiber();
  /// A new one that calls `body(argument)`, which never returns, when first switched to. `colour`
  /// spreads the stacks of fibers that run in turn over the sets of the cache.
  Fiber(void (*body)(void*), void* argument, size_t colour);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Goes on with `next`, which is not running; returns when another fiber switches to this one,
  /// the running one.
  void SwitchTo(Fiber& next);

  /// True for the page below the stack.
  bool IsGuard(const void* address) const {
    const auto* at = static_cast<const char*>(address);
    return mapping_ != nullptr && at >= mapping_ && at < bottom_;
  }

  bool IsStack(const void* address) const {
    const auto* at = static_cast<const char*>(address);
    return at >= bottom_ && at < bottom_ + size_;
  }

  /// The body calls this first.
  static void Begin();

 private:
  void* stack_pointer_ = nullptr;
  char* mapping_ = nullptr;       // a guard page and the stack above it; null for the thread's own
  const char* bottom_ = nullptr;  // the stack, for the sanitizers
  size_t size_ = 0;
  [[maybe_unused]] void* fake_stack_ = nullptr;       // the address sanitizer's
  [[maybe_unused]] void* sanitizer_fiber_ = nullptr;  // the thread sanitizer's
};

inline void Fiber::SwitchTo(Fiber& next) {
#if CUDA_EMULATION_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&fake_stack_, next.bottom_, next.size_);
#endif
#if CUDA_EMULATION_THREAD_SANITIZER
  __tsan_switch_to_fiber(next.sanitizer_fiber_, 0);
#endif
  cuda_emulation_switch(&stack_pointer_, next.stack_pointer_);
#if CUDA_EMULATION_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace cuda_emulation
