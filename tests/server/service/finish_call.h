// Runs a call to its end, as a front end does.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>

#include "server/service/generation_service.h"

namespace shoal {

using TokenIds = GenerateCall::TokenIds;

/// All that a choice gave.
struct Choice {
  std::string text;
  std::vector<GenerationDelta::Token> tokens;
  GenerationDelta last;

  TokenIds ids() const {
    TokenIds ids;
    for (const auto& token : tokens) ids.push_back(token.token_id);
    return ids;
  }
};

struct Result {
  std::vector<Choice> choices;
  Usage usage;
};

/// Polls whenever woken. Errors end in Choice::last.
inline Result Finish(GenerationService& service, const GenerateCall& call) {
  std::mutex mutex;
  std::condition_variable woken;
  bool has_news = false;
  auto generation = service.Start(call, [&] {
    const std::lock_guard lock(mutex);
    has_news = true;
    woken.notify_one();
  });
  Result result;
  EXPECT_TRUE(generation.ok()) << generation.status();
  if (!generation.ok()) return result;
  result.choices.resize(static_cast<size_t>(call.n));
  while (!(*generation)->done()) {
    {
      std::unique_lock lock(mutex);
      EXPECT_TRUE(woken.wait_for(lock, std::chrono::seconds(60), [&] { return has_news; }))
          << "no wake";
      has_news = false;
    }
    for (GenerationDelta& delta : (*generation)->Poll()) {
      Choice& choice = result.choices[static_cast<size_t>(delta.index)];
      EXPECT_FALSE(choice.last.finish_reason) << "news after the end";
      choice.text += delta.text;
      std::move(delta.tokens.begin(), delta.tokens.end(), std::back_inserter(choice.tokens));
      choice.last = std::move(delta);
    }
  }
  result.usage = (*generation)->usage();
  return result;
}

/// A call whose answer has just `max_tokens` tokens.
inline GenerateCall Greedy(GenerateCall::Prompt prompt, int64_t max_tokens) {
  GenerateCall call;
  call.request_id = "test";
  call.prompt = std::move(prompt);
  call.max_tokens = max_tokens;
  call.temperature = 0;
  call.ignore_eos = true;
  return call;
}

}  // namespace shoal
