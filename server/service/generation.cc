#include "server/service/generation.h"

#include <algorithm>
#include <iterator>
#include <mutex>
#include <span>
#include <utility>

#include "server/service/text_assembler.h"

namespace shoal {
namespace {

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

void GenerationDelta::Append(GenerationDelta next) {
  text += next.text;
  std::move(next.tokens.begin(), next.tokens.end(), std::back_inserter(tokens));
  finish_reason = next.finish_reason;
  stop_reason = std::move(next.stop_reason);
  status = std::move(next.status);
}

/// Stands between the engine thread and a caller who may be gone.
class Generation::WakeGate {
 public:
  explicit WakeGate(std::function<void()> wake) : wake_(std::move(wake)) {}

  void Wake() {
    const std::lock_guard lock(mutex_);
    if (wake_) wake_();
  }
  void Close() {
    const std::lock_guard lock(mutex_);
    wake_ = nullptr;
  }

 private:
  std::mutex mutex_;
  std::function<void()> wake_;
};

struct Generation::Choice {
  Choice(const Options& options, int index, std::shared_ptr<Request> request)
      : index(index),
        request(std::move(request)),
        text(options.tokenizer, options.skip_special_tokens, options.strip_leading_space,
             options.stop),
        needs_prompt(options.echo) {}

  const int index;
  const std::shared_ptr<Request> request;
  TextAssembler text;
  bool needs_prompt;      // the echoed prompt is still to come
  size_t num_tokens = 0;  // generated tokens taken from the stream
  bool done = false;
  Clock::time_point last_token;  // when the engine appended it
  GenerationDelta whole;         // all of it so far, if the best choices are to be found
};

Generation::Generation(Options options, std::vector<std::shared_ptr<Request>> requests,
                       std::function<void()> wake)
    : options_(std::move(options)),
      wake_(std::make_shared<WakeGate>(std::move(wake))),
      requests_(std::move(requests)) {
  for (const auto& request : requests_) {
    request->stream().SetWake([gate = wake_] { gate->Wake(); });
  }
}

Generation::~Generation() {
  wake_->Close();
  for (const auto& choice : choices_) {
    if (choice->done) continue;
    choice->request->Cancel();
    Report(*choice, FinishReason::kCancel, choice->request->stream().finish());
  }
}

absl::Status Generation::Submit(Engine& engine, QueueSlot slot,
                                std::span<const std::unique_ptr<Generation>> generations) {
  std::vector<std::vector<std::shared_ptr<Request>>> calls;
  calls.reserve(generations.size());
  for (const auto& generation : generations) calls.push_back(generation->requests_);
  RETURN_IF_ERROR(engine.Submit(std::move(slot), std::move(calls)));
  for (const auto& generation : generations) {
    for (std::shared_ptr<Request>& request : std::exchange(generation->requests_, {})) {
      const int index = static_cast<int>(generation->choices_.size());
      generation->choices_.push_back(
          std::make_unique<Choice>(generation->options_, index, std::move(request)));
    }
  }
  return absl::OkStatus();
}

std::vector<GenerationDelta> Generation::Poll() {
  std::vector<GenerationDelta> deltas;
  for (const auto& choice : choices_) {
    if (!choice->done) Advance(*choice, &deltas);
  }
  const bool is_all = choices_.size() <= static_cast<size_t>(options_.num_best);
  return is_all ? deltas : TakeBest(std::move(deltas));
}

bool Generation::done() const {
  return std::all_of(choices_.begin(), choices_.end(), [](const auto& c) { return c->done; });
}

Usage Generation::usage() const {
  Usage usage;
  for (const auto& choice : choices_) {
    usage.completion_tokens += static_cast<int64_t>(choice->num_tokens);
  }
  if (!choices_.empty()) {
    Request& first = *choices_[0]->request;
    usage.prompt_tokens = static_cast<int64_t>(first.prompt_token_ids().size());
    if (const FinishInfo* finish = first.stream().finish()) {
      usage.cached_tokens = finish->num_cached_tokens;
    }
  }
  return usage;
}

void Generation::Advance(Choice& choice, std::vector<GenerationDelta>* deltas) {
  TokenStream& stream = choice.request->stream();
  const FinishInfo* finish = stream.finish();  // before tokens(): if set, they are complete
  const std::span<const TokenOutput> tokens = stream.tokens();
  if (choice.needs_prompt && (finish != nullptr || !tokens.empty())) PushPrompt(choice);
  PushOutput(choice, tokens);
  if (finish != nullptr) choice.text.Finish();
  if (choice.text.stop() != nullptr) choice.request->Complete();

  GenerationDelta delta;
  delta.index = choice.index;
  choice.text.Take(&delta);
  if (finish != nullptr) End(choice, *finish, &delta);
  if (!delta.text.empty() || !delta.tokens.empty() || delta.finish_reason) {
    deltas->push_back(std::move(delta));
  }
}

void Generation::PushPrompt(Choice& choice) {
  choice.needs_prompt = false;
  const std::span<const TokenOutput> outputs = choice.request->stream().prompt();
  const std::vector<int32_t>& ids = choice.request->prompt_token_ids();
  for (size_t i = 0; i < ids.size(); ++i) {
    GenerationDelta::Token token;
    token.token_id = ids[i];
    token.bytes = options_.tokenizer->TokenBytes(ids[i]);
    const bool has_logprob = i > 0 && i < outputs.size();  // nothing predicts the first token
    if (has_logprob && options_.logprobs) {
      token.logprob = outputs[i].logprob;
      token.top_logprobs = outputs[i].top_logprobs;
    }
    choice.text.Push(std::move(token), TextAssembler::Part::kPrompt);
  }
}

void Generation::PushOutput(Choice& choice, std::span<const TokenOutput> tokens) {
  const SamplingParams& sampling = choice.request->sampling();
  while (choice.num_tokens < tokens.size() && choice.text.stop() == nullptr) {
    const TokenOutput& output = tokens[choice.num_tokens];
    ReportToken(choice, output);
    ++choice.num_tokens;
    GenerationDelta::Token token;
    token.token_id = output.token_id;
    token.bytes = options_.tokenizer->TokenBytes(output.token_id);
    if (options_.logprobs) {
      token.logprob = output.logprob;
      token.top_logprobs = output.top_logprobs;
    }
    auto part = TextAssembler::Part::kOutput;
    if (Contains(sampling.stop_token_ids, output.token_id)) {
      part = TextAssembler::Part::kStopToken;
    } else if (choice.num_tokens <= static_cast<size_t>(sampling.min_tokens)) {
      part = TextAssembler::Part::kEarlyOutput;
    }
    choice.text.Push(std::move(token), part);
  }
}

/// Holds back `deltas` until all choices have ended. An error is the end of the call at once.
std::vector<GenerationDelta> Generation::TakeBest(std::vector<GenerationDelta> deltas) {
  if (deltas.empty()) return {};
  for (GenerationDelta& delta : deltas) {
    const bool is_error = !delta.status.ok();
    GenerationDelta& whole = choices_[static_cast<size_t>(delta.index)]->whole;
    whole.Append(std::move(delta));
    if (is_error) return {std::move(whole)};
  }
  if (!done()) return {};
  std::vector<std::pair<double, size_t>> ranking;  // the lowest is the best
  ranking.reserve(choices_.size());
  for (size_t i = 0; i < choices_.size(); ++i) ranking.emplace_back(-MeanLogprob(*choices_[i]), i);
  std::sort(ranking.begin(), ranking.end());
  std::vector<GenerationDelta> best;
  for (int i = 0; i < options_.num_best; ++i) {
    best.push_back(std::move(choices_[ranking[static_cast<size_t>(i)].second]->whole));
    best.back().index = i;
  }
  return best;
}

/// Of the tokens that count as generated: what a request does beyond a stop string changes nothing.
double Generation::MeanLogprob(const Choice& choice) {
  const auto tokens = choice.request->stream().tokens().first(choice.num_tokens);
  double sum = 0;
  for (const TokenOutput& token : tokens) sum += token.logprob;
  return tokens.empty() ? 0 : sum / static_cast<double>(tokens.size());
}

/// `token` is a new one; its time is that of the engine, not of the client who reads late.
void Generation::ReportToken(Choice& choice, const TokenOutput& token) {
  if (options_.observer == nullptr) return;
  if (choice.num_tokens == 0) {
    options_.observer->OnFirstToken(Seconds(token.time - choice.request->arrival()));
  } else {
    options_.observer->OnNextToken(Seconds(token.time - choice.last_token));
  }
  choice.last_token = token.time;
}

void Generation::End(Choice& choice, const FinishInfo& finish, GenerationDelta* delta) {
  choice.done = true;
  delta->finish_reason = finish.reason;
  delta->status = finish.status;
  const std::span<const TokenOutput> tokens = choice.request->stream().tokens();
  if (choice.text.stop() != nullptr) {
    delta->finish_reason = FinishReason::kStop;
    delta->stop_reason = *choice.text.stop();
    delta->status = absl::OkStatus();
  } else if (finish.reason == FinishReason::kStop && !tokens.empty() &&
             Contains(options_.stop_token_ids, tokens.back().token_id)) {
    delta->stop_reason = tokens.back().token_id;
  }
  Report(choice, *delta->finish_reason, &finish);
}

void Generation::Report(const Choice& choice, FinishReason reason, const FinishInfo* finish) {
  if (options_.observer == nullptr) return;
  const Clock::time_point arrival = choice.request->arrival();
  Usage usage;
  usage.prompt_tokens = static_cast<int64_t>(choice.request->prompt_token_ids().size());
  usage.completion_tokens = static_cast<int64_t>(choice.num_tokens);
  auto error = absl::StatusCode::kOk;
  std::optional<double> queue_seconds;
  if (finish != nullptr) {
    if (reason == FinishReason::kError) error = finish->status.code();
    usage.cached_tokens = finish->num_cached_tokens;
    const bool was_scheduled = finish->first_scheduled != Clock::time_point();
    if (was_scheduled) queue_seconds = Seconds(finish->first_scheduled - arrival);
  }
  options_.observer->OnFinished(reason, error, Seconds(Clock::now() - arrival), queue_seconds,
                                usage);
}

}  // namespace shoal
