#include "server/service/generation_service.h"

#include <algorithm>
#include <random>
#include <utility>

#include "server/service/allowed_tokens.h"
#include "server/service/field_error.h"

namespace shoal {
namespace {

uint64_t RandomSeed() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

bool IsConversation(const GenerateCall& call) {
  return std::holds_alternative<GenerateCall::Conversation>(call.prompt);
}

/// The field that says how many choices there are.
const char* ChoicesField(const GenerateCall& call, int num_prompts) {
  if (call.best_of) return "best_of";
  return call.n == 1 && num_prompts > 1 ? "prompt" : "n";
}

absl::Status CheckNumChoices(const GenerateCall& call, int num_prompts) {
  constexpr int kMaxChoices = 128;
  if (call.num_generated() * num_prompts <= kMaxChoices) return absl::OkStatus();
  const char* field = ChoicesField(call, num_prompts);
  return FieldError(field, fmt::format("{} is {} for each of {} prompts, but a request may have at "
                                       "most {} choices in all",
                                       field, call.num_generated(), num_prompts, kMaxChoices));
}

}  // namespace

// The finaliser of SplitMix64.
uint64_t DeriveSeed(uint64_t seed, uint64_t index) {
  if (index == 0) return seed;
  uint64_t mixed = seed + index * 0x9E3779B97F4A7C15;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB;
  return mixed ^ (mixed >> 31);
}

std::chrono::milliseconds RetryDelay(double seconds_to_drain) {
  constexpr double kUnknown = 1, kLongest = 120;
  const double seconds = seconds_to_drain > 0 ? std::min(seconds_to_drain, kLongest) : kUnknown;
  return std::chrono::ceil<std::chrono::milliseconds>(std::chrono::duration<double>(seconds));
}

GenerationService::GenerationService(Engine* engine, const Tokenizer* tokenizer,
                                     const ChatTemplate* chat_template,
                                     GenerationObserver* observer, const Options& options)
    : engine_(engine),
      tokenizer_(tokenizer),
      chat_template_(chat_template),
      observer_(observer),
      options_(options) {}

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

absl::StatusOr<QueueSlot> GenerationService::Reserve(const GenerateCall& call, int num_prompts) {
  RETURN_IF_ERROR(CheckRanges(call));
  RETURN_IF_ERROR(CheckNumChoices(call, num_prompts));
  RETURN_IF_ERROR(CheckAllTokenIds(call));
  RETURN_IF_ERROR(CheckFirstToken(call));
  absl::StatusOr<QueueSlot> slot = engine_->Reserve(call.num_generated() * num_prompts);
  if (!absl::IsInvalidArgument(slot.status())) return slot;
  return FieldError(ChoicesField(call, num_prompts), std::string(slot.status().message()));
}

absl::StatusOr<std::unique_ptr<Generation>> GenerationService::Start(const GenerateCall& call,
                                                                     std::function<void()> wake) {
  ASSIGN_OR_RETURN(QueueSlot slot, Reserve(call));
  ASSIGN_OR_RETURN(std::unique_ptr<Generation> generation, Prepare(call, std::move(wake)));
  RETURN_IF_ERROR(Submit(std::move(slot), std::span(&generation, 1)));
  return generation;
}

absl::Status GenerationService::Submit(QueueSlot slot,
                                       std::span<const std::unique_ptr<Generation>> generations) {
  return Generation::Submit(*engine_, std::move(slot), generations);
}

absl::StatusOr<std::unique_ptr<Generation>> GenerationService::Prepare(const GenerateCall& call,
                                                                       std::function<void()> wake) {
  ASSIGN_OR_RETURN(const std::vector<int32_t> prompt,
                   Encode(call.prompt, /*add_special_tokens=*/true, call.add_generation_prompt));
  ASSIGN_OR_RETURN(SamplingParams sampling, Sampling(call, static_cast<int64_t>(prompt.size())));

  const uint64_t seed = call.seed ? *call.seed : NextSeed();
  const SchedulingParams scheduling = Scheduling(call);
  std::vector<std::shared_ptr<Request>> requests;
  for (int i = 0; i < call.num_generated(); ++i) {
    sampling.seed = DeriveSeed(seed, static_cast<uint64_t>(i));
    if (!call.allowed_token_ids.empty()) {
      sampling.mask = std::make_shared<AllowedTokens>(call.allowed_token_ids);
    }
    std::string id =
        call.num_generated() == 1 ? call.request_id : fmt::format("{}-{}", call.request_id, i);
    requests.push_back(std::make_shared<Request>(std::move(id), prompt, sampling, scheduling));
  }
  return std::make_unique<Generation>(
      Generation::Options{
          .tokenizer = tokenizer_,
          .observer = observer_,
          .num_best = call.n,
          .stop = call.stop,
          .stop_token_ids = call.stop_token_ids,
          .logprobs = call.logprobs.has_value(),
          .echo = call.echo,
          .skip_special_tokens = call.skip_special_tokens,
          .strip_leading_space = IsConversation(call) && call.add_generation_prompt},
      std::move(requests), std::move(wake));
}

uint64_t GenerationService::NextSeed() {
  return options_.seed ? DeriveSeed(*options_.seed, num_seeds_.fetch_add(1)) : RandomSeed();
}

absl::StatusOr<SamplingParams> GenerationService::Sampling(const GenerateCall& call,
                                                           int64_t num_prompt_tokens) const {
  SamplingParams sampling;
  ASSIGN_OR_RETURN(sampling.max_tokens, MaxTokens(call, num_prompt_tokens));
  if (call.min_tokens > sampling.max_tokens) {
    return FieldError("min_tokens", fmt::format("min_tokens must be at most max_tokens, which is "
                                                "{}, but is {}",
                                                sampling.max_tokens, call.min_tokens));
  }
  sampling.min_tokens = call.min_tokens;
  sampling.temperature = call.temperature;
  sampling.top_k = std::max(call.top_k, 0);
  sampling.top_p = call.top_p;
  sampling.min_p = call.min_p;
  sampling.typical_p = call.typical_p;
  sampling.presence_penalty = call.presence_penalty;
  sampling.frequency_penalty = call.frequency_penalty;
  sampling.repetition_penalty = call.repetition_penalty;
  for (const auto& [token_id, bias] : call.logit_bias) {
    sampling.logit_bias.push_back({token_id, bias});
  }
  sampling.stop_token_ids = StopTokenIds(call);
  sampling.logprobs = call.logprobs.value_or(-1);
  sampling.prompt_logprobs = call.echo ? sampling.logprobs : -1;
  if (call.num_generated() > call.n) sampling.logprobs = std::max(sampling.logprobs, 0);  // to rank
  // Without a token to generate, all that the engine can do is to score the prompt.
  if (sampling.max_tokens == 0) sampling.prompt_logprobs = std::max(sampling.prompt_logprobs, 0);
  return sampling;
}

SchedulingParams GenerationService::Scheduling(const GenerateCall& call) const {
  SchedulingParams scheduling;
  scheduling.priority = call.priority;
  scheduling.deadline = call.deadline;
  // A number and a colon, then the client's own text: no two callers make the same of it.
  scheduling.cache_domain = fmt::format("{}:{}", call.api_key, call.cache_salt);
  if (options_.fair_share == FairShare::kKey) scheduling.tenant = fmt::format("{}", call.api_key);
  if (options_.fair_share == FairShare::kUser) {
    scheduling.tenant = fmt::format("{}:{}", call.api_key, call.user);
  }
  return scheduling;
}

absl::Status GenerationService::CheckAllTokenIds(const GenerateCall& call) const {
  RETURN_IF_ERROR(CheckTokenIds("stop_token_ids", call.stop_token_ids));
  RETURN_IF_ERROR(CheckTokenIds("allowed_token_ids", call.allowed_token_ids));
  GenerateCall::TokenIds biased;
  for (const auto& [token_id, bias] : call.logit_bias) biased.push_back(token_id);
  return CheckTokenIds("logit_bias", biased);
}

absl::Status GenerationService::CheckFirstToken(const GenerateCall& call) const {
  if (call.min_tokens == 0 || call.allowed_token_ids.empty()) return absl::OkStatus();
  const std::vector<int32_t> stops = StopTokenIds(call);
  for (const int32_t id : call.allowed_token_ids) {
    if (std::find(stops.begin(), stops.end(), id) == stops.end()) return absl::OkStatus();
  }
  return FieldError("min_tokens", fmt::format("min_tokens must be 0 if all of allowed_token_ids "
                                              "are stop tokens, but is {}",
                                              call.min_tokens));
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
  const bool is_chat = IsConversation(call);
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
