#include "tokenizer/tokenizer.h"

#include <filesystem>
#include <fstream>
#include <optional>
#include <utility>

#include "tokenizer/tokenizer_definition.h"
#include "tokenizer/utf8.h"

namespace shoal {
namespace {

constexpr uintmax_t kMaxFileBytes = 64 << 20;

// NOT_FOUND only if there is no such file.
absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path) {
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error == std::errc::no_such_file_or_directory) {
    return absl::NotFoundError(fmt::format("{}: no such file", path.string()));
  }
  if (error) {
    return absl::InvalidArgumentError(fmt::format("{}: {}", path.string(), error.message()));
  }
  if (size > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        fmt::format("{} has {} bytes, the limit is {}", path.string(), size, kMaxFileBytes));
  }
  std::string content(size, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(content.data(), static_cast<std::streamsize>(size))) {
    return absl::InvalidArgumentError(fmt::format("{}: cannot be read", path.string()));
  }
  return content;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& directory) {
  const std::filesystem::path root(directory);
  ASSIGN_OR_RETURN(const std::string tokenizer_json, ReadFile(root / "tokenizer.json"));
  absl::StatusOr<std::string> config_json = ReadFile(root / "tokenizer_config.json");
  if (absl::IsNotFound(config_json.status())) config_json = "";
  if (!config_json.ok()) return std::move(config_json).status();
  auto tokenizer = FromJson(tokenizer_json, *config_json);
  if (!tokenizer.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}", directory, std::string(tokenizer.status().message())));
  }
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(
    std::string_view tokenizer_json, std::string_view tokenizer_config_json) {
  ASSIGN_OR_RETURN(auto definition,
                   ParseTokenizerDefinition(tokenizer_json, tokenizer_config_json));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(definition)));
}

Tokenizer::Tokenizer(std::unique_ptr<const TokenizerDefinition> definition)
    : definition_(std::move(definition)) {}
Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::Encode(std::string_view text, SpecialText special_text) const {
  const std::string valid = ReplaceInvalidUtf8(text);
  text = valid;
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  PreTokenizer::Workspace pieces_workspace;
  Bpe::Workspace bpe_workspace;
  size_t offset = 0;
  while (offset < text.size()) {
    const std::optional<AddedTokens::Match> added =
        definition_->added_tokens->Find(text, offset, special_text == SpecialText::kAsToken);
    const size_t end = added.has_value() ? added->begin : text.size();
    for (const std::string_view piece :
         definition_->pre_tokenizer->Split(text.substr(offset, end - offset), &pieces_workspace)) {
      definition_->bpe->Encode(piece, &bpe_workspace, &ids);
    }
    if (added.has_value()) ids.push_back(added->id);
    offset = added.has_value() ? added->end : text.size();
  }
  return ids;
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return definition_->tokens[id].bytes;
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && definition_->tokens[id].special;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  // An added token is whole code points, so half a code point before it ends there as U+FFFD.
  std::string bytes;
  for (const int32_t id : ids) {
    if (!skip_special_tokens || !IsSpecial(id)) bytes += TokenBytes(id);
  }
  return ReplaceInvalidUtf8(bytes);
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(definition_->tokens.size()); }
int32_t Tokenizer::bos_id() const { return definition_->bos_id; }
int32_t Tokenizer::eos_id() const { return definition_->eos_id; }
bool Tokenizer::add_bos() const { return definition_->add_bos; }
const std::string& Tokenizer::chat_template() const { return definition_->chat_template; }

}  // namespace shoal
