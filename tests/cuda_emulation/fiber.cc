#include "tests/cuda_emulation/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__)
#error "The emulator switches stacks on x86-64 only"
#endif

// Saves what a callee must keep on the stack, keeps the stack's pointer in *save, and goes on with
// the flow whose pointer was kept in `resume`. An indirect jump instead of a return: the processor
// predicts it, whereas its stack of return addresses knows nothing of ours.
asm(R"(
.text
.p2align 4
.globl cuda_emulation_switch
.type cuda_emulation_switch, @function
cuda_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
.size cuda_emulation_switch, .-cuda_emulation_switch

.p2align 4
.type cuda_emulation_start, @function
cuda_emulation_start:
  movq %r12, %rdi
  jmpq *%r13
.size cuda_emulation_start, .-cuda_emulation_start
.section .note.GNU-stack, "", @progbits
.text
)");
extern "C" void cuda_emulation_start() asm("cuda_emulation_start");

namespace cuda_emulation {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kColours = 32;
constexpr size_t kColourBytes = 832;

}  // namespace

Fiber::Fiber() {
  pthread_attr_t attributes;
  void* bottom = nullptr;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    pthread_attr_getstack(&attributes, &bottom, &size_);
    pthread_attr_destroy(&attributes);
  }
  bottom_ = static_cast<char*>(bottom);
#if CUDA_EMULATION_THREAD_SANITIZER
  sanitizer_fiber_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(void (*body)(void*), void* argument, size_t colour) {
  void* mapping = mmap(nullptr, kPageBytes + kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (mapping == MAP_FAILED || mprotect(mapping, kPageBytes, PROT_NONE) != 0) {
    std::perror("CUDA emulation: no memory for the stack of a thread");
    std::abort();
  }
  mapping_ = static_cast<char*>(mapping);
  bottom_ = mapping_ + kPageBytes;
  size_ = kStackBytes;
  auto* top = reinterpret_cast<uintptr_t*>(mapping_ + kPageBytes + kStackBytes -
                                           (colour % kColours) * kColourBytes);
  *--top = 0;                                                   // no return address
  *--top = reinterpret_cast<uintptr_t>(&cuda_emulation_start);  // where to go on
  *--top = 0;                                                   // rbp
  *--top = 0;                                                   // rbx
  *--top = reinterpret_cast<uintptr_t>(argument);               // r12
  *--top = reinterpret_cast<uintptr_t>(body);                   // r13
  *--top = 0;                                                   // r14
  *--top = 0;                                                   // r15
  stack_pointer_ = top;
#if CUDA_EMULATION_THREAD_SANITIZER
  sanitizer_fiber_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  if (mapping_ == nullptr) return;
#if CUDA_EMULATION_THREAD_SANITIZER
  __tsan_destroy_fiber(sanitizer_fiber_);
#endif
  munmap(mapping_, kPageBytes + kStackBytes);
}

void Fiber::Begin() {
#if CUDA_EMULATION_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace cuda_emulation
