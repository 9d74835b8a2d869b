#include "tokenizer/tokenizer_definition.h"

#include <absl/container/flat_hash_map.h>

#include <functional>
#include <utility>

#include "tokenizer/byte_level.h"
#include "tokenizer/json_node.h"

namespace shoal {
namespace {

// One pass over the two files, in the order in which the parts need each other.
class Parser {
 public:
  Parser(const nlohmann::json* tokenizer, const nlohmann::json* config)
      : root_(tokenizer, "tokenizer.json"), config_(config, "tokenizer_config.json") {}

  absl::StatusOr<std::unique_ptr<const TokenizerDefinition>> Run() {
    // truncation and padding shape training batches, not text.
    RETURN_IF_ERROR(CheckFixedParts());
    ASSIGN_OR_RETURN(definition_->pre_tokenizer, PreTokenizer::FromJson(root_["pre_tokenizer"]));
    RETURN_IF_ERROR(ReadVocabulary());
    RETURN_IF_ERROR(ReadAddedTokens());
    RETURN_IF_ERROR(ReadConfig());
    RETURN_IF_ERROR(ReadPostProcessor(root_["post_processor"]));
    RETURN_IF_ERROR(MakeBpe());
    for (const AddedToken& token : added_) {
      definition_->tokens[token.id] = {token.content, token.special};
    }
    definition_->added_tokens.emplace(added_);
    return std::move(definition_);
  }

 private:
  absl::Status CheckFixedParts() const {
    const JsonNode normalizer = root_["normalizer"];
    const bool empty_sequence = normalizer["type"].value() == "Sequence" &&
                                normalizer["normalizers"].value() == nlohmann::json::array();
    if (!normalizer.IsNull() && !empty_sequence) {
      return normalizer.Unsupported("null or a Sequence of nothing");
    }
    const JsonNode decoder = root_["decoder"]["type"];
    if (decoder.value() != "ByteLevel") return decoder.Unsupported("ByteLevel");

    const JsonNode model = root_["model"];
    if (model["type"].value() != "BPE") return model["type"].Unsupported("BPE");
    if (!model["dropout"].IsNull() && model["dropout"].value() != 0.0) {
      return model["dropout"].Unsupported("null, 0");
    }
    for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!model[name].IsNull() && model[name].value() != nlohmann::json("")) {
        return model[name].Unsupported("null, \"\"");
      }
    }
    ASSIGN_OR_RETURN(const bool byte_fallback, model["byte_fallback"].Bool(false));
    if (byte_fallback) return model["byte_fallback"].Unsupported("false");
    return absl::OkStatus();
  }

  absl::Status ReadVocabulary() {
    const JsonNode vocab = root_["model"]["vocab"];
    if (!vocab.value().is_object() || vocab.value().empty()) {
      return vocab.Unsupported("an object from tokens to ids");
    }
    ids_.reserve(vocab.value().size());
    for (const auto& [letters, id_value] : vocab.value().items()) {
      const JsonNode node(&id_value, fmt::format("{}.{}", vocab.path(), letters));
      ASSIGN_OR_RETURN(const int32_t id, node.Id());
      Reserve(id);
      if (!letters_[id].empty() || letters.empty()) {
        return node.Unsupported("one text for each id, not empty");
      }
      letters_[id] = letters;
      ids_.emplace(letters, id);
      // A token with a letter outside the byte alphabet stands for its own text.
      definition_->tokens[id].bytes = BytesOfLetters(letters).value_or(letters);
    }
    return absl::OkStatus();
  }

  void Reserve(int32_t id) {
    if (static_cast<size_t>(id) < letters_.size()) return;
    letters_.resize(id + 1);
    definition_->tokens.resize(id + 1);
  }

  // The entry of model.vocab written `letters`, or -1.
  int32_t FindVocab(std::string_view letters) const {
    const auto found = ids_.find(letters);
    return found == ids_.end() ? -1 : found->second;
  }

  absl::Status ReadAddedTokens() {
    ASSIGN_OR_RETURN(const std::vector<JsonNode> nodes, root_["added_tokens"].Elements());
    for (const JsonNode& node : nodes) {
      AddedToken token;
      ASSIGN_OR_RETURN(token.id, node["id"].Id());
      ASSIGN_OR_RETURN(token.content, node["content"].String());
      ASSIGN_OR_RETURN(token.special, node["special"].Bool(false));
      for (const char* name : {"lstrip", "rstrip", "single_word"}) {
        ASSIGN_OR_RETURN(const bool value, node[name].Bool(false));
        if (value) return node[name].Unsupported("false");
      }
      if (token.content.empty()) return node["content"].Unsupported("a text that is not empty");
      const int32_t same_text = FindVocab(token.content);
      Reserve(token.id);
      const bool taken = same_text < 0 ? !letters_[token.id].empty() : same_text != token.id;
      if (taken) return node["id"].Unsupported("the id of that text in model.vocab, or a free one");
      letters_[token.id] = token.content;
      added_.push_back(std::move(token));
    }
    return absl::OkStatus();
  }

  absl::Status ReadConfig() {
    ASSIGN_OR_RETURN(definition_->bos_id, ReadSpecialToken(config_["bos_token"]));
    ASSIGN_OR_RETURN(definition_->eos_id, ReadSpecialToken(config_["eos_token"]));
    ASSIGN_OR_RETURN(definition_->add_bos, config_["add_bos_token"].Bool(false));
    if (definition_->add_bos && definition_->bos_id < 0) {
      return config_["add_bos_token"].Unsupported("false, as there is no bos_token");
    }
    return ReadChatTemplate(config_["chat_template"]);
  }

  absl::Status ReadChatTemplate(const JsonNode& node) {
    if (node.IsNull()) return absl::OkStatus();
    if (!node.value().is_array()) {
      ASSIGN_OR_RETURN(definition_->chat_template, node.String());
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const std::vector<JsonNode> named, node.Elements());
    for (const JsonNode& entry : named) {
      if (entry["name"].value() != "default") continue;
      ASSIGN_OR_RETURN(definition_->chat_template, entry["template"].String());
      return absl::OkStatus();
    }
    return node.Unsupported("a string, or a list with an entry named default");
  }

  // The id of a token given as a string or as an object with its content; -1 for null. It becomes a
  // special added token if it is not yet one.
  absl::StatusOr<int32_t> ReadSpecialToken(const JsonNode& node) {
    if (node.IsNull()) return -1;
    ASSIGN_OR_RETURN(const std::string content,
                     (node.value().is_object() ? node["content"] : node).String());
    for (AddedToken& token : added_) {
      if (token.content != content) continue;
      token.special = true;
      return token.id;
    }
    const int32_t id = FindVocab(content);
    if (id < 0) return node.Unsupported("a token of tokenizer.json");
    added_.push_back({id, content, true});
    return id;
  }

  // What tokenizer_config.json says of BOS goes before what the post-processor says.
  absl::Status ReadPostProcessor(const JsonNode& node) {
    const JsonNode type = node["type"];
    if (node.IsNull() || type.value() == "ByteLevel") return absl::OkStatus();
    if (type.value() == "Sequence") {
      ASSIGN_OR_RETURN(const std::vector<JsonNode> processors, node["processors"].Elements());
      for (const JsonNode& processor : processors) {
        if (processor["type"].value() == "Sequence") {
          return processor["type"].Unsupported("ByteLevel, TemplateProcessing");
        }
        RETURN_IF_ERROR(ReadPostProcessor(processor));
      }
      return absl::OkStatus();
    }
    if (type.value() != "TemplateProcessing") {
      return type.Unsupported("ByteLevel, TemplateProcessing, a Sequence of these");
    }
    return ReadTemplateProcessing(node["single"]);
  }

  absl::Status ReadTemplateProcessing(const JsonNode& single) {
    ASSIGN_OR_RETURN(const std::vector<JsonNode> parts, single.Elements());
    if (parts.empty() || parts.size() > 2 || parts.back()["Sequence"]["id"].value() != "A") {
      return single.Unsupported("[BOS, A], [A]");
    }
    if (parts.size() == 1) return absl::OkStatus();
    ASSIGN_OR_RETURN(const int32_t id, ReadSpecialToken(parts[0]["SpecialToken"]["id"]));
    if (id < 0 || (definition_->bos_id >= 0 && definition_->bos_id != id)) {
      return parts[0].Unsupported("the bos_token of tokenizer_config.json");
    }
    definition_->bos_id = id;
    if (config_["add_bos_token"].IsNull()) definition_->add_bos = true;
    return absl::OkStatus();
  }

  absl::Status MakeBpe() {
    std::array<int32_t, 256> byte_ids;
    for (int byte = 0; byte < 256; ++byte) {
      byte_ids[byte] = FindVocab(LetterOfByte(static_cast<uint8_t>(byte)));
      const bool in_utf8 = byte != 0xC0 && byte != 0xC1 && byte < 0xF5;
      if (byte_ids[byte] < 0 && in_utf8) {
        return absl::InvalidArgumentError(
            fmt::format("tokenizer.json.model.vocab has no token for byte {:#04x} (letter {}); "
                        "every byte of UTF-8 needs one",
                        byte, LetterOfByte(static_cast<uint8_t>(byte))));
      }
    }
    ASSIGN_OR_RETURN(std::vector<Bpe::Merge> merges, ReadMerges());
    RETURN_IF_ERROR(CheckSpecialTokensAreOnlyAdded(byte_ids, merges));
    ASSIGN_OR_RETURN(const bool ignore_merges, root_["model"]["ignore_merges"].Bool(false));
    definition_->bpe.emplace(definition_->tokens, byte_ids, std::move(merges), ignore_merges);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<Bpe::Merge>> ReadMerges() const {
    const JsonNode node = root_["model"]["merges"];
    if (!node.value().is_array()) return node.Unsupported("an array");
    std::vector<Bpe::Merge> merges;
    merges.reserve(node.value().size());
    for (const nlohmann::json& pair : node.value()) {
      const auto [left, right] = LettersOfPair(pair);
      const Bpe::Merge merge = {FindVocab(left), FindVocab(right), FindVocab(left + right)};
      if (merge.left < 0 || merge.right < 0 || merge.result < 0) {
        return JsonNode(&pair, fmt::format("{}[{}]", node.path(), merges.size()))
            .Unsupported("\"a b\" or [\"a\", \"b\"], where a, b and ab are in model.vocab");
      }
      merges.push_back(merge);
    }
    return merges;
  }

  // Empty if it is not a pair.
  static std::pair<std::string, std::string> LettersOfPair(const nlohmann::json& pair) {
    if (pair.is_string()) {
      const auto& text = pair.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space == text.npos) return {};
      return {text.substr(0, space), text.substr(space + 1)};
    }
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string()) {
      return {};
    }
    return {pair[0].get<std::string>(), pair[1].get<std::string>()};
  }

  // Otherwise plain text could become a special token.
  absl::Status CheckSpecialTokensAreOnlyAdded(const std::array<int32_t, 256>& byte_ids,
                                              const std::vector<Bpe::Merge>& merges) {
    std::vector<Token>& tokens = definition_->tokens;
    for (const AddedToken& token : added_) tokens[token.id].special |= token.special;
    const auto refuse = [&](int32_t id, std::string_view maker) {
      return absl::InvalidArgumentError(fmt::format(
          "tokenizer.json.added_tokens: id {} is special, but {} makes it of plain text", id,
          maker));
    };
    for (const int32_t id : byte_ids) {
      if (id >= 0 && tokens[id].special) return refuse(id, "the byte alphabet");
    }
    for (const Bpe::Merge& merge : merges) {
      if (tokens[merge.result].special) return refuse(merge.result, "model.merges");
    }
    return absl::OkStatus();
  }

  const JsonNode root_;
  const JsonNode config_;
  std::vector<std::string> letters_;  // by id, as the file writes them
  // Ids of model.vocab, by letters; the keys lie in root_.
  absl::flat_hash_map<std::string_view, int32_t, std::hash<std::string_view>> ids_;
  std::vector<AddedToken> added_;
  std::unique_ptr<TokenizerDefinition> definition_ = std::make_unique<TokenizerDefinition>();
};

}  // namespace

absl::StatusOr<std::unique_ptr<const TokenizerDefinition>> ParseTokenizerDefinition(
    std::string_view tokenizer_json, std::string_view tokenizer_config_json) {
  ASSIGN_OR_RETURN(const nlohmann::json tokenizer, ParseJson(tokenizer_json, "tokenizer.json"));
  if (tokenizer_config_json.empty()) tokenizer_config_json = "{}";
  ASSIGN_OR_RETURN(const nlohmann::json config,
                   ParseJson(tokenizer_config_json, "tokenizer_config.json"));
  return Parser(&tokenizer, &config).Run();
}

}  // namespace shoal
