#include "server/admin/readiness.h"

#include <algorithm>

namespace shoal {

std::string_view Readiness::Snapshot::status() const {
  switch (state) {
    case State::kStarting:
      return "starting";
    case State::kReady:
      return "ready";
    case State::kDraining:
      return "draining";
  }
  return "";
}

void Readiness::SetProgress(std::string_view phase, double fraction) {
  std::lock_guard lock(mutex_);
  if (now_.started()) return;
  now_.phase = phase;
  now_.percent = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * 100);
}

void Readiness::SetReady() {
  std::lock_guard lock(mutex_);
  if (!now_.started()) now_ = {.state = State::kReady, .phase = "ready", .percent = 100};
}

void Readiness::SetDraining() {
  std::lock_guard lock(mutex_);
  now_ = {.state = State::kDraining, .phase = "draining", .percent = 100};
}

Readiness::Snapshot Readiness::snapshot() const {
  std::lock_guard lock(mutex_);
  return now_;
}

}  // namespace shoal
