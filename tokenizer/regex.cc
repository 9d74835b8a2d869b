#include "tokenizer/regex.h"

#include <array>
#include <cctype>
#include <cstdint>
#include <utility>

namespace shoal {
namespace {

constexpr uint32_t kMaxSteps = 10'000'000;    // of backtracking, per call
constexpr uint32_t kMaxHeapKib = 256 * 1024;  // of backtracking state, per call

absl::Status Refused(std::string_view construct, size_t offset) {
  return absl::InvalidArgumentError(
      fmt::format("{} at byte {} is not supported in a regular expression", construct, offset));
}

// Rewrites Oniguruma's (Ruby) syntax into PCRE2's, construct by construct.
class Rewriter {
 public:
  explicit Rewriter(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        RETURN_IF_ERROR(Escape());
        continue;
      }
      if (in_class_) {
        RETURN_IF_ERROR(InClass(c));
      } else {
        RETURN_IF_ERROR(OutsideClass(c));
      }
      rewritten_ += c;
      ++at_;
    }
    return std::move(rewritten_);
  }

 private:
  // PCRE2's own \s also takes U+180E, which is not white space since Unicode 6.3.
  absl::Status Escape() {
    const char c = at_ + 1 < pattern_.size() ? pattern_[at_ + 1] : '\0';
    const bool punctuation = c > ' ' && c < 0x7F && !std::isalnum(static_cast<unsigned char>(c));
    if (c == 's' || c == 'S') {
      rewritten_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      at_ += 2;
    } else if (c == 'p' || c == 'P') {
      const size_t close = pattern_.find('}', at_);
      if (!pattern_.substr(at_ + 2).starts_with('{') || close == pattern_.npos) {
        return Refused("\\p without {}", at_);
      }
      rewritten_ += pattern_.substr(at_, close + 1 - at_);
      at_ = close + 1;
    } else if (punctuation || c == 'd' || c == 'D' || c == 'n' || c == 'r' || c == 't' ||
               c == 'f') {
      rewritten_ += pattern_.substr(at_, 2);
      at_ += 2;
    } else {
      return Refused(fmt::format("\\{}", c), at_);
    }
    return absl::OkStatus();
  }

  absl::Status InClass(char c) {
    if (c == '[') return Refused("[ inside []", at_);
    if (pattern_.substr(at_).starts_with("&&")) return Refused("&& inside []", at_);
    if (c == ']') in_class_ = false;
    return absl::OkStatus();
  }

  absl::Status OutsideClass(char c) {
    constexpr std::array<std::string_view, 7> kGroups = {
        "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    const std::string_view rest = pattern_.substr(at_);
    if (c == '[') {
      in_class_ = true;
      if (rest.starts_with("[]") || rest.starts_with("[^]")) return Refused("[]", at_);
    } else if (rest.starts_with("(*")) {
      return Refused("(*", at_);
    } else if (rest.starts_with("(?")) {
      for (const std::string_view group : kGroups) {
        if (rest.starts_with(group)) return absl::OkStatus();
      }
      return Refused(rest.substr(0, 3), at_);
    } else if (rest.starts_with("}+")) {
      return Refused("+ after {}", at_);  // possessive in PCRE2, a repetition in Oniguruma
    }
    return absl::OkStatus();
  }

  const std::string_view pattern_;
  size_t at_ = 0;
  bool in_class_ = false;
  std::string rewritten_;
};

}  // namespace

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  ASSIGN_OR_RETURN(const std::string rewritten, Rewriter(pattern).Run());
  // In Oniguruma's syntax ^ and $ always match at line feeds too.
  return CompilePcre2(rewritten, PCRE2_UCP | PCRE2_MULTILINE);
}

absl::StatusOr<Regex> Regex::CompileLiteral(std::string_view text) {
  return CompilePcre2(std::string(text), PCRE2_LITERAL);
}

absl::StatusOr<Regex> Regex::CompilePcre2(const std::string& pattern, uint32_t options) {
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  size_t offset = 0;
  Regex regex;
  regex.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                  PCRE2_UTF | options, &error, &offset, context.get()));
  if (regex.code_ == nullptr) {
    std::array<PCRE2_UCHAR, 128> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    return absl::InvalidArgumentError(
        fmt::format("the regular expression is not valid at byte {}: {}", offset,
                    reinterpret_cast<const char*>(message.data())));
  }
  // Compiled code remembers where a run of characters failed, so that `\s+$` is linear. Without
  // executable memory PCRE2 interprets: the same matches, slower, and quadratic there.
  pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE);
  regex.limits_.reset(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(regex.limits_.get(), kMaxSteps);
  pcre2_set_heap_limit(regex.limits_.get(), kMaxHeapKib);
  return regex;
}

std::optional<Regex::Match> Regex::Find(std::string_view text, size_t offset,
                                        Workspace* workspace) const {
  const auto match = [&](uint32_t options) {
    return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), offset,
                       PCRE2_NO_UTF_CHECK | options, workspace->match_data.get(), limits_.get());
  };
  int result = match(0);
  // The interpreter keeps its state on the heap, compiled code in a small stack.
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
  if (result < 0) return std::nullopt;
  const size_t* offsets = pcre2_get_ovector_pointer(workspace->match_data.get());
  return Match{offsets[0], offsets[1]};
}

}  // namespace shoal
