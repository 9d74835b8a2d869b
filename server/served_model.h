// ServedModel: a checkpoint made ready to generate: tokenizer, chat template, engine, service.
#pragma once

#include <memory>
#include <string>

#include "engine/engine.h"
#include "server/service/generation_service.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace shoal {

/// Each member needs those above it.
struct ServedModel {
  /// Loads config.model_directory; token ids that the tokenizer lacks are never generated.
  /// `observer` may be null and outlives the model. Errors name file, expected and actual.
  static absl::StatusOr<std::unique_ptr<ServedModel>> Load(
      EngineConfig config, const GenerationService::Options& options, GenerationObserver* observer,
      std::function<void(const LoadStatus&)> on_progress);

  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;  // null: the checkpoint has none
  std::unique_ptr<Engine> engine;
  std::unique_ptr<GenerationService> service;
};

/// A directory of our own that goes when this goes.
class TemporaryDirectory {
 public:
  /// UNAVAILABLE with the path if it cannot be made.
  static absl::StatusOr<std::unique_ptr<TemporaryDirectory>> Create();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }

 private:
  explicit TemporaryDirectory(std::string path) : path_(std::move(path)) {}

  const std::string path_;
};

/// Writes the model that is served when none is named: 16B's structure, tiny, with random weights.
absl::Status WriteDefaultModel(const std::string& directory);

/// Names the default model in `config` if it names none, and says so on stderr. The directory must
/// stay until the model is loaded; null: a model was named.
absl::StatusOr<std::unique_ptr<TemporaryDirectory>> ProvideDefaultModel(EngineConfig& config);

}  // namespace shoal
