// ProgressLine: shows on stderr how far a long task is.
#pragma once

#include <functional>
#include <mutex>
#include <string>
#include <string_view>

namespace shoal {

/// On a terminal one bar that is redrawn, elsewhere a report for every tenth. Thread: any.
class ProgressLine {
 public:
  using Report = std::function<void(std::string_view phase, int percent)>;

  /// `report` replaces the plain line that is printed where there is no terminal.
  explicit ProgressLine(Report report = nullptr);
  /// Ends the bar's line.
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;

  /// `fraction` in [0, 1] of `phase`; a new phase starts again.
  void Update(std::string_view phase, double fraction);

 private:
  const Report report_;
  const bool is_terminal_;
  std::mutex mutex_;
  std::string phase_;
  int percent_ = -1;  // shown last
};

}  // namespace shoal
