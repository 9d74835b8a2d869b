#include "server/make_checkpoint_command.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "server/embedded_tokenizer.h"
#include "server/progress_line.h"
#include "tokenizer/tokenizer.h"

namespace shoal {
namespace {

constexpr int64_t kMaxShardBytes = int64_t{5} << 30;

/// The two files of a tokenizer.
struct TokenizerFiles {
  std::string tokenizer_json;
  std::string tokenizer_config_json;
};

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) return absl::NotFoundError(fmt::format("{} cannot be read", path.string()));
  return text;
}

absl::Status WriteFile(const std::filesystem::path& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return absl::InternalError(fmt::format("{} cannot be written", path.string()));
  return absl::OkStatus();
}

absl::StatusOr<TokenizerFiles> ReadTokenizer(const std::string& directory) {
  if (directory.empty()) {
    return TokenizerFiles{std::string(EmbeddedTokenizerJson()),
                          std::string(EmbeddedTokenizerConfigJson())};
  }
  TokenizerFiles files;
  const std::filesystem::path path(directory);
  ASSIGN_OR_RETURN(files.tokenizer_json, ReadFile(path / "tokenizer.json"));
  ASSIGN_OR_RETURN(files.tokenizer_config_json, ReadFile(path / "tokenizer_config.json"));
  return files;
}

absl::Status CheckTokenId(const char* field, int32_t in_config, int32_t in_tokenizer) {
  if (in_config == in_tokenizer) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is {}, but the tokenizer's is {}", field, in_config, in_tokenizer));
}

absl::StatusOr<ModelConfig> ReadConfig(const MakeCheckpointConfig& config,
                                       const Tokenizer& tokenizer) {
  ModelConfig model;
  if (config.config_path.empty()) {
    ASSIGN_OR_RETURN(model, PresetModelConfig(config.preset));
    model.bos_token_id = tokenizer.bos_id();
    model.eos_token_id = tokenizer.eos_id();
  } else {
    ASSIGN_OR_RETURN(const std::string json, ReadFile(config.config_path));
    ASSIGN_OR_RETURN(model, ParseModelConfig(json));
    RETURN_IF_ERROR(CheckTokenId("bos_token_id", model.bos_token_id, tokenizer.bos_id()));
    RETURN_IF_ERROR(CheckTokenId("eos_token_id", model.eos_token_id, tokenizer.eos_id()));
  }
  if (model.vocab_size < tokenizer.vocab_size()) {
    return absl::InvalidArgumentError(fmt::format("vocab_size is {}, but the tokenizer has {} ids",
                                                  model.vocab_size, tokenizer.vocab_size()));
  }
  if (config.dtype == "float32") model.torch_dtype = DType::kFloat32;
  if (config.dtype == "bfloat16") model.torch_dtype = DType::kBFloat16;
  return model;
}

}  // namespace

absl::Status MakeCheckpoint(const MakeCheckpointConfig& config, const LoadProgress& progress) {
  ASSIGN_OR_RETURN(const TokenizerFiles files, ReadTokenizer(config.tokenizer_directory));
  ASSIGN_OR_RETURN(const auto tokenizer,
                   Tokenizer::FromJson(files.tokenizer_json, files.tokenizer_config_json));
  ASSIGN_OR_RETURN(const ModelConfig model, ReadConfig(config, *tokenizer));
  const std::filesystem::path output(config.output);
  if (config.no_weights) {
    std::error_code ignored;  // the write says what is wrong
    std::filesystem::create_directories(output, ignored);
    RETURN_IF_ERROR(WriteFile(output / "config.json", FormatModelConfig(model)));
  } else {
    RETURN_IF_ERROR(
        WriteRandomCheckpoint(model, config.seed, kMaxShardBytes, config.output, progress));
  }
  RETURN_IF_ERROR(WriteFile(output / "tokenizer.json", files.tokenizer_json));
  return WriteFile(output / "tokenizer_config.json", files.tokenizer_config_json);
}

absl::Status RunMakeCheckpoint(const MakeCheckpointConfig& config) {
  {
    ProgressLine line;
    RETURN_IF_ERROR(MakeCheckpoint(config, [&](int64_t done, int64_t total) {
      line.Update("writing weights",
                  static_cast<double>(done) / static_cast<double>(std::max<int64_t>(total, 1)));
    }));
  }
  ASSIGN_OR_RETURN(const ModelConfig model, ReadModelConfig(config.output));
  fmt::print(
      "{}: {} parameters, {}\n", config.output, model.num_parameters(),
      config.no_weights ? "no weights" : fmt::format("random weights of seed {}", config.seed));
  return absl::OkStatus();
}

}  // namespace shoal
