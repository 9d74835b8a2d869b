#include "server/progress_line.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace shoal {

ProgressLine::ProgressLine(Report report)
    : report_(std::move(report)), is_terminal_(isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
  if (is_terminal_ && percent_ >= 0) fmt::print(stderr, "\n");
}

void ProgressLine::Update(std::string_view phase, double fraction) {
  const int percent = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * 100);
  const int shown = is_terminal_ ? percent : percent / 10 * 10;
  std::lock_guard lock(mutex_);
  if (phase == phase_ && shown == percent_) return;
  if (is_terminal_ && phase != phase_ && percent_ >= 0) fmt::print(stderr, "\n");
  phase_ = phase;
  percent_ = shown;
  if (is_terminal_) {
    constexpr int kWidth = 40;
    fmt::print(stderr, "\r{} [{:<{}}] {:3} %", phase, std::string(percent * kWidth / 100, '#'),
               kWidth, percent);
    std::fflush(stderr);
  } else if (report_) {
    report_(phase, shown);
  } else {
    fmt::print(stderr, "{} {} %\n", phase, shown);
  }
}

}  // namespace shoal
