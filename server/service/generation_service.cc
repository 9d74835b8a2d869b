#include "server/service/generation_service.h"

#include <algorithm>
#include <random>
#include <utility>

#include "server/service/field_error.h"

namespace shoal {
namespace {

constexpr int kMaxChoices = 16;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;

/// `low_excluded`: `low` itself is out of range.
template <typename T>
absl::Status CheckRange(const char* field, T value, T low, T high, bool low_excluded = false) {
  // Written so that NaN fails.
  if ((low_excluded ? value > low : value >= low) && value <= high) return absl::OkStatus();
  return FieldError(field, fmt::format("{} must be {} {} and at most {}, but is {}", field,
                                       low_excluded ? "above" : "at least", low, high, value));
}

absl::Status CheckCount(const char* field, size_t count, size_t limit) {
  if (count <= limit) return absl::OkStatus();
  return FieldError(
      field, fmt::format("{} must have at most {} entries, but has {}", field, limit, count));
}

absl::Status CheckSampling(const GenerateCall& call) {
  RETURN_IF_ERROR(CheckRange("n", call.n, 1, kMaxChoices));
  RETURN_IF_ERROR(CheckRange("temperature", call.temperature, 0.0f, 2.0f));
  RETURN_IF_ERROR(CheckRange("top_p", call.top_p, 0.0f, 1.0f, /*low_excluded=*/true));
  RETURN_IF_ERROR(CheckRange("min_p", call.min_p, 0.0f, 1.0f));
  if (call.top_k < -1) {
    return FieldError("top_k", fmt::format("top_k must be at least -1, but is {}", call.top_k));
  }
  if (call.logprobs) RETURN_IF_ERROR(CheckRange("logprobs", *call.logprobs, 0, kMaxTopLogprobs));
  RETURN_IF_ERROR(CheckCount("stop", call.stop.size(), kMaxStops));
  for (const std::string& stop : call.stop) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return FieldError("stop", fmt::format("stop strings must have 1 to {} bytes, but one has {}",
                                            kMaxStopBytes, stop.size()));
    }
  }
  return CheckCount("stop_token_ids", call.stop_token_ids.size(), kMaxStops);
}

uint64_t RandomSeed() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

/// The `index`-th of the seeds that come of `seed`. The first is `seed` itself, so choice 0 gets
/// the tokens that a call for one choice gets; those of neighbouring seeds have nothing in common
/// (finaliser of SplitMix64).
uint64_t DeriveSeed(uint64_t seed, uint64_t index) {
  if (index == 0) return seed;
  uint64_t mixed = seed + index * 0x9E3779B97F4A7C15;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB;
  return mixed ^ (mixed >> 31);
}

}  // namespace

GenerationService::GenerationService(Engine* engine, const Tokenizer* tokenizer,
                                     const ChatTemplate* chat_template,
                                     GenerationObserver* observer, std::optional<uint64_t> seed)
    : engine_(engine),
      tokenizer_(tokenizer),
      chat_template_(chat_template),
      observer_(observer),
      seed_(seed) {}

absl::StatusOr<std::vector<int32_t>> GenerationService::Encode(const GenerateCall::Prompt& prompt,
                                                               bool add_special_tokens,
                                                               bool add_generation_prompt) const {
  if (const auto* token_ids = std::get_if<GenerateCall::TokenIds>(&prompt)) {
    RETURN_IF_ERROR(CheckTokenIds("prompt", *token_ids));
    return *token_ids;
  }
  if (const auto* text = std::get_if<std::string>(&prompt)) {
    std::vector<int32_t> ids = tokenizer_->Encode(*text, Tokenizer::SpecialText::kAsToken);
    if (add_special_tokens && tokenizer_->add_bos()) ids.insert(ids.begin(), tokenizer_->bos_id());
    return ids;
  }
  if (chat_template_ == nullptr) {
    return FieldError("messages", "this model has no chat template, send a prompt instead");
  }
  absl::StatusOr<std::vector<int32_t>> ids = chat_template_->Encode(
      std::get<GenerateCall::Conversation>(prompt), add_generation_prompt, *tokenizer_);
  // Also when a limit was reached: another try would not help.
  if (!ids.ok()) return FieldError("messages", std::string(ids.status().message()));
  return ids;
}

absl::StatusOr<std::unique_ptr<Generation>> GenerationService::Start(const GenerateCall& call,
                                                                     std::function<void()> wake) {
  RETURN_IF_ERROR(CheckSampling(call));
  RETURN_IF_ERROR(CheckTokenIds("stop_token_ids", call.stop_token_ids));
  ASSIGN_OR_RETURN(const std::vector<int32_t> prompt,
                   Encode(call.prompt, /*add_special_tokens=*/true, call.add_generation_prompt));
  SamplingParams sampling;
  ASSIGN_OR_RETURN(sampling.max_tokens, MaxTokens(call, static_cast<int64_t>(prompt.size())));
  sampling.temperature = call.temperature;
  sampling.top_k = std::max(call.top_k, 0);
  sampling.top_p = call.top_p;
  sampling.min_p = call.min_p;
  sampling.stop_token_ids = StopTokenIds(call);
  sampling.logprobs = call.logprobs.value_or(-1);
  sampling.prompt_logprobs = call.echo ? sampling.logprobs : -1;
  // Without a token to generate, all that the engine can do is to score the prompt.
  if (sampling.max_tokens == 0) sampling.prompt_logprobs = std::max(sampling.prompt_logprobs, 0);

  const bool is_reply =
      std::holds_alternative<GenerateCall::Conversation>(call.prompt) && call.add_generation_prompt;
  auto generation = std::make_unique<Generation>(
      Generation::Options{.tokenizer = tokenizer_,
                          .observer = observer_,
                          .stop = call.stop,
                          .stop_token_ids = call.stop_token_ids,
                          .echo = call.echo,
                          .skip_special_tokens = call.skip_special_tokens,
                          .strip_leading_space = is_reply},
      std::move(wake));
  const uint64_t seed = call.seed ? *call.seed : NextSeed();
  for (int i = 0; i < call.n; ++i) {
    sampling.seed = DeriveSeed(seed, static_cast<uint64_t>(i));
    std::string id = call.n == 1 ? call.request_id : fmt::format("{}-{}", call.request_id, i);
    // On failure the choices submitted so far are cancelled as `generation` goes.
    RETURN_IF_ERROR(
        generation->Submit(engine_, std::make_shared<Request>(std::move(id), prompt, sampling)));
  }
  return generation;
}

uint64_t GenerationService::NextSeed() {
  return seed_ ? DeriveSeed(*seed_, num_seeds_.fetch_add(1)) : RandomSeed();
}

absl::Status GenerationService::CheckTokenIds(const char* field,
                                              std::span<const int32_t> token_ids) const {
  const int64_t vocab_size =
      std::min<int64_t>(tokenizer_->vocab_size(), engine_->model_config().vocab_size);
  for (const int32_t id : token_ids) {
    if (id < 0 || id >= vocab_size) {
      return FieldError(field, fmt::format("{} has the token id {}, but this model's are 0 to {}",
                                           field, id, vocab_size - 1));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> GenerationService::MaxTokens(const GenerateCall& call,
                                                     int64_t num_prompt_tokens) const {
  const bool is_chat = std::holds_alternative<GenerateCall::Conversation>(call.prompt);
  const char* field = is_chat ? "messages" : "prompt";
  if (num_prompt_tokens == 0) return FieldError(field, fmt::format("{} has no tokens", field));
  if (call.max_tokens.value_or(0) < 0) {
    return FieldError("max_tokens",
                      fmt::format("max_tokens must be at least 0, but is {}", *call.max_tokens));
  }
  const int64_t limit = engine_->max_model_len();
  const int64_t room = limit - num_prompt_tokens;
  const std::string lengths =
      fmt::format("this model's maximum context length is {} tokens, but the {} {}", limit,
                  is_chat ? "messages have" : "prompt has", num_prompt_tokens);
  if (room < std::min<int64_t>(call.max_tokens.value_or(1), 1)) {
    return FieldError(field, room < 0 ? lengths : lengths + ", which leaves none for the output");
  }
  const int64_t max_tokens = call.max_tokens.value_or(room);
  if (max_tokens > room) {
    return FieldError("max_tokens", fmt::format("{} and max_tokens is {}", lengths, max_tokens));
  }
  return static_cast<int32_t>(max_tokens);
}

std::vector<int32_t> GenerationService::StopTokenIds(const GenerateCall& call) const {
  std::vector<int32_t> ids = call.stop_token_ids;
  if (call.ignore_eos) return ids;
  for (const int32_t eos : {tokenizer_->eos_id(), engine_->model_config().eos_token_id}) {
    if (eos >= 0 && std::find(ids.begin(), ids.end(), eos) == ids.end()) ids.push_back(eos);
  }
  return ids;
}

}  // namespace shoal
