#include "server/served_model.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "server/make_checkpoint_command.h"

namespace shoal {

absl::StatusOr<std::unique_ptr<ServedModel>> ServedModel::Load(
    EngineConfig config, const GenerationService::Options& options, GenerationObserver* observer,
    std::function<void(const LoadStatus&)> on_progress) {
  auto model = std::make_unique<ServedModel>();
  ASSIGN_OR_RETURN(const ModelConfig model_config, ReadModelConfig(config.model_directory));
  ASSIGN_OR_RETURN(model->tokenizer, Tokenizer::Load(config.model_directory));
  if (const std::string& source = model->tokenizer->chat_template(); !source.empty()) {
    ASSIGN_OR_RETURN(model->chat_template, ChatTemplate::Parse(source));
  }
  config.vocab_limit = std::min<int64_t>(model->tokenizer->vocab_size(), model_config.vocab_size);
  ASSIGN_OR_RETURN(model->engine, Engine::Create(config, std::move(on_progress)));
  model->service = std::make_unique<GenerationService>(
      model->engine.get(), model->tokenizer.get(), model->chat_template.get(), observer, options);
  return model;
}

absl::StatusOr<std::unique_ptr<TemporaryDirectory>> TemporaryDirectory::Create() {
  std::error_code ignored;
  std::string path = (std::filesystem::temp_directory_path(ignored) / "shoal-XXXXXX").string();
  if (mkdtemp(path.data()) == nullptr) {
    return absl::UnavailableError(
        fmt::format("cannot make the directory {}: {}", path, std::strerror(errno)));
  }
  return std::unique_ptr<TemporaryDirectory>(new TemporaryDirectory(std::move(path)));
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

absl::Status WriteDefaultModel(const std::string& directory) {
  MakeCheckpointConfig config;
  config.preset = "tiny";
  config.output = directory;
  return MakeCheckpoint(config, [](int64_t, int64_t) {});
}

absl::StatusOr<std::unique_ptr<TemporaryDirectory>> ProvideDefaultModel(EngineConfig& config) {
  if (!config.model_directory.empty()) return nullptr;
  ASSIGN_OR_RETURN(std::unique_ptr<TemporaryDirectory> directory, TemporaryDirectory::Create());
  RETURN_IF_ERROR(WriteDefaultModel(directory->path()));
  config.model_directory = directory->path();
  fmt::print(stderr, "no --model: a tiny model with random weights, its output is noise\n");
  return directory;
}

}  // namespace shoal
