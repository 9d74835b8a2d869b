// Regex: the regular expressions of tokenizer.json, matched by PCRE2.
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/status.h"

namespace shoal {

/// A compiled pattern. tokenizer.json is written for Oniguruma; a construct to which PCRE2 gives
/// another meaning is either rewritten exactly or refused. Immutable. Thread: any, with a Workspace
/// each.
class Regex {
 public:
  struct Match {
    size_t begin, end;  // bytes
  };
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  };
  /// Memory that calls reuse, of any Regex. Thread: one at a time.
  struct Workspace {
    std::unique_ptr<pcre2_match_data, Free> match_data{pcre2_match_data_create(1, nullptr)};
  };

  /// INVALID_ARGUMENT, without the pattern's name: a construct that we do not take, or a syntax
  /// error.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);
  /// Matches `text` itself.
  static absl::StatusOr<Regex> CompileLiteral(std::string_view text);

  /// The leftmost match in `text` (valid UTF-8) at or after `offset`. Where matching would take
  /// more than the limits of steps and memory, there is none.
  std::optional<Match> Find(std::string_view text, size_t offset, Workspace* workspace) const;

 private:
  Regex() = default;
  static absl::StatusOr<Regex> CompilePcre2(const std::string& pattern, uint32_t options);

  std::unique_ptr<pcre2_code, Free> code_;
  std::unique_ptr<pcre2_match_context, Free> limits_;
};

}  // namespace shoal
