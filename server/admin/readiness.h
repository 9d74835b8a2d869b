// Readiness: how far the server is between its start and its end.
#pragma once

#include <mutex>
#include <string>
#include <string_view>

namespace shoal {

/// Starting, then ready, then draining; never back. Thread: any.
class Readiness {
 public:
  enum class State { kStarting, kReady, kDraining };

  struct Snapshot {
    State state = State::kStarting;
    std::string phase;  // what the start-up is at
    int percent = 0;    // of that phase, 0 to 100

    bool started() const { return state != State::kStarting; }
    bool ready() const { return state == State::kReady; }
    /// "starting", "ready" or "draining".
    std::string_view status() const;
  };

  /// `fraction` in [0, 1] of `phase`. Without effect once started.
  void SetProgress(std::string_view phase, double fraction);
  void SetReady();
  void SetDraining();

  Snapshot snapshot() const;

 private:
  mutable std::mutex mutex_;
  Snapshot now_{.state = State::kStarting, .phase = "starting", .percent = 0};
};

}  // namespace shoal
