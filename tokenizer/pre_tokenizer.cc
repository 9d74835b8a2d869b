#include "tokenizer/pre_tokenizer.h"

#include <cstdint>
#include <optional>
#include <utility>

namespace shoal {
namespace {

// GPT-2's own split, which ByteLevel brings along.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::FromJson(const JsonNode& node) {
  std::vector<JsonNode> nodes = {node};
  if (node["type"].value() == "Sequence") {
    ASSIGN_OR_RETURN(nodes, node["pretokenizers"].Elements());
  }
  PreTokenizer pre_tokenizer;
  for (size_t i = 0; i < nodes.size(); ++i) {
    const JsonNode type = nodes[i]["type"];
    if (type.value() == "Split") {
      RETURN_IF_ERROR(pre_tokenizer.AddSplit(nodes[i]));
    } else if (type.value() == "Digits") {
      RETURN_IF_ERROR(pre_tokenizer.AddDigits(nodes[i]));
    } else if (type.value() == "ByteLevel" && i + 1 == nodes.size()) {
      RETURN_IF_ERROR(pre_tokenizer.AddByteLevel(nodes[i]));
      return pre_tokenizer;
    } else {
      return type.Unsupported("Split and Digits, then one ByteLevel as the last");
    }
  }
  return node.Unsupported("a Sequence that ends with ByteLevel");
}

absl::Status PreTokenizer::AddSplit(const JsonNode& node) {
  const JsonNode regex = node["pattern"]["Regex"];
  const JsonNode literal = node["pattern"]["String"];
  if (regex.IsNull() == literal.IsNull()) {
    return node["pattern"].Unsupported("an object with one field, Regex or String");
  }
  ASSIGN_OR_RETURN(const std::string pattern, (regex.IsNull() ? literal : regex).String());
  if (pattern.empty()) return node["pattern"].Unsupported("a pattern that is not empty");
  ASSIGN_OR_RETURN(const bool invert, node["invert"].Bool(false));

  constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {
      {"Isolated", Behavior::kIsolated},
      {"Removed", Behavior::kRemoved},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
      {"Contiguous", Behavior::kContiguous}};
  ASSIGN_OR_RETURN(const std::string name, node["behavior"].String());
  for (const auto& [known, behavior] : kBehaviors) {
    if (name != known) continue;
    return AddStep(regex.IsNull() ? Regex::CompileLiteral(pattern) : Regex::Compile(pattern),
                   behavior, invert, node["pattern"]);
  }
  return node["behavior"].Unsupported(
      "Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous");
}

absl::Status PreTokenizer::AddDigits(const JsonNode& node) {
  ASSIGN_OR_RETURN(const bool individual, node["individual_digits"].Bool(false));
  return AddStep(Regex::Compile("\\p{N}"), individual ? Behavior::kIsolated : Behavior::kContiguous,
                 false, node);
}

absl::Status PreTokenizer::AddByteLevel(const JsonNode& node) {
  ASSIGN_OR_RETURN(add_prefix_space_, node["add_prefix_space"].Bool(true));
  if (add_prefix_space_ && !steps_.empty()) {
    return node["add_prefix_space"].Unsupported("true only if ByteLevel is the only step");
  }
  ASSIGN_OR_RETURN(const bool use_regex, node["use_regex"].Bool(true));
  if (!use_regex) return absl::OkStatus();
  return AddStep(Regex::Compile(kGpt2Pattern), Behavior::kIsolated, false, node);
}

absl::Status PreTokenizer::AddStep(absl::StatusOr<Regex> regex, Behavior behavior, bool invert,
                                   const JsonNode& node) {
  if (!regex.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}", node.path(), std::string(regex.status().message())));
  }
  steps_.push_back({*std::move(regex), behavior, invert});
  return absl::OkStatus();
}

std::span<const std::string_view> PreTokenizer::Split(std::string_view text,
                                                      Workspace* workspace) const {
  if (add_prefix_space_ && !text.starts_with(' ')) {
    workspace->prefixed.assign(" ").append(text);
    text = workspace->prefixed;
  }
  workspace->pieces.clear();
  if (!text.empty()) workspace->pieces.push_back(text);
  for (const Step& step : steps_) {
    workspace->cut.clear();
    for (const std::string_view piece : workspace->pieces) step.Cut(piece, workspace);
    workspace->pieces.swap(workspace->cut);
  }
  return workspace->pieces;
}

// Appends the parts of `piece` to workspace->cut.
void PreTokenizer::Step::Cut(std::string_view piece, Workspace* workspace) const {
  std::vector<std::string_view>& cut = workspace->cut;
  std::optional<bool> last_matched;  // of this piece's latest part
  const auto add = [&](size_t begin, size_t end, bool matched) {
    if (begin == end) return;
    matched ^= invert;
    const bool merges = last_matched.has_value() &&
                        ((behavior == Behavior::kMergedWithPrevious && matched && !*last_matched) ||
                         (behavior == Behavior::kMergedWithNext && !matched && *last_matched) ||
                         (behavior == Behavior::kContiguous && matched == *last_matched));
    if (merges) {
      cut.back() = {cut.back().data(), cut.back().size() + end - begin};
    } else if (behavior != Behavior::kRemoved || !matched) {
      cut.push_back(piece.substr(begin, end - begin));
    }
    last_matched = matched;
  };

  size_t begin = 0;  // of what no part holds yet
  size_t offset = 0;
  while (offset <= piece.size()) {
    const std::optional<Regex::Match> match = regex.Find(piece, offset, &workspace->regex);
    if (!match.has_value()) break;
    add(begin, match->begin, false);
    add(match->begin, match->end, true);
    begin = match->end;
    offset = match->end;
    // An empty match cuts, too; the search goes on one character later.
    if (match->begin == match->end) {
      do ++offset;
      while (offset < piece.size() && (static_cast<uint8_t>(piece[offset]) & 0xC0) == 0x80);
    }
  }
  add(begin, piece.size(), false);
}

}  // namespace shoal
