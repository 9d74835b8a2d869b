#include "engine/request/token_stream.h"

#include <utility>

#include "kernels/status.h"

namespace shoal {
namespace {

/// Writes the next element, then lets the reader see it.
void Push(std::vector<TokenOutput>& buffer, std::atomic<size_t>& count, TokenOutput output) {
  const size_t next = count.load(std::memory_order_relaxed);
  SHOAL_CHECK(next < buffer.size(), "a stream for {} tokens is full", buffer.size());
  buffer[next] = std::move(output);
  count.store(next + 1, std::memory_order_release);
}

}  // namespace

void TokenStream::Reserve(size_t num_prompt_logprobs, size_t max_tokens) {
  prompt_.resize(num_prompt_logprobs);
  tokens_.resize(max_tokens);
}

std::span<const TokenOutput> TokenStream::prompt() const {
  return std::span(prompt_).first(num_prompt_.load(std::memory_order_acquire));
}

std::span<const TokenOutput> TokenStream::tokens() const {
  return std::span(tokens_).first(num_tokens_.load(std::memory_order_acquire));
}

const FinishInfo* TokenStream::finish() const {
  return finished_.load(std::memory_order_acquire) ? &finish_ : nullptr;
}

void TokenStream::AppendPrompt(TokenOutput output) {
  Push(prompt_, num_prompt_, std::move(output));
  changed_ = true;
}

void TokenStream::Append(TokenOutput output) {
  Push(tokens_, num_tokens_, std::move(output));
  changed_ = true;
}

void TokenStream::Finish(FinishInfo info) {
  SHOAL_CHECK(finish() == nullptr, "a stream ends once");
  finish_ = std::move(info);
  finished_.store(true, std::memory_order_release);
  changed_ = true;
}

void TokenStream::Notify() {
  if (std::exchange(changed_, false) && wake_) wake_();
}

}  // namespace shoal
