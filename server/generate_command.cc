#include "server/generate_command.h"

#include <condition_variable>
#include <cstdio>
#include <mutex>

#include "server/progress_line.h"
#include "server/served_model.h"

namespace shoal {
namespace {

/// Lets one thread sleep until another has news.
class Bell {
 public:
  void Ring() {
    std::lock_guard lock(mutex_);
    rung_ = true;
    rang_.notify_one();
  }
  void Wait() {
    std::unique_lock lock(mutex_);
    rang_.wait(lock, [this] { return rung_; });
    rung_ = false;
  }

 private:
  std::mutex mutex_;
  std::condition_variable rang_;
  bool rung_ = false;
};

absl::StatusOr<std::unique_ptr<ServedModel>> LoadWithProgress(EngineConfig config) {
  ASSIGN_OR_RETURN(const auto default_model, ProvideDefaultModel(config));
  ProgressLine line;
  return ServedModel::Load(config, {}, nullptr, [&](const LoadStatus& status) {
    line.Update(status.phase, status.fraction);
  });
}

}  // namespace

absl::Status RunGenerate(const GenerateConfig& config) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ServedModel> model, LoadWithProgress(config.engine));
  GenerateCall call = config.call;
  call.request_id = "generate";
  call.prompt = config.prompt;
  if (config.chat) call.prompt = GenerateCall::Conversation{{"user", config.prompt}};

  Bell bell;
  const Clock::time_point begin = Clock::now();
  ASSIGN_OR_RETURN(const std::unique_ptr<Generation> generation,
                   model->service->Start(call, [&bell] { bell.Ring(); }));
  Clock::time_point first_token = begin;
  while (!generation->done()) {
    for (const GenerationDelta& delta : generation->Poll()) {
      if (first_token == begin) first_token = Clock::now();
      std::fwrite(delta.text.data(), 1, delta.text.size(), stdout);
      std::fflush(stdout);
      if (delta.finish_reason == FinishReason::kError) return delta.status;
    }
    if (!generation->done()) bell.Wait();
  }
  const double decode_seconds = std::chrono::duration<double>(Clock::now() - first_token).count();
  const Usage usage = generation->usage();
  fmt::print("\n");
  fmt::print(stderr, "{} prompt tokens, first token after {:.3f} s, {} tokens, {:.1f} tokens/s\n",
             usage.prompt_tokens, std::chrono::duration<double>(first_token - begin).count(),
             usage.completion_tokens,
             static_cast<double>(std::max<int64_t>(usage.completion_tokens - 1, 0)) /
                 std::max(decode_seconds, 1e-9));
  return absl::OkStatus();
}

}  // namespace shoal
