// Watchlist: requests under test, and what is known of them from outside the scheduler.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/scheduler/lone_run.h"
#include "tests/engine/scheduler/scheduler_fixture.h"

namespace shoal {

struct Watched {
  enum class Place : uint8_t {
    kWaits,
    kFollows,  // a fork whose leader still reads their prompt
    kRuns,
    kEnded,
  };

  std::shared_ptr<Request> request;
  LoneRun alone;
  int32_t number = 0;  // in the order of arrival
  int32_t call = 0;    // the same for choices that fork from one another
  size_t tenant = 0;   // their names are numbers
  int32_t domain = 0;
  Place place = Place::kWaits;
  Place place_before = Place::kWaits;  // the last Schedule()
  bool begun = false;                  // has run

  // Of its stream.
  size_t num_woken = 0;  // NumChanges() when its reader was woken last
  size_t num_prompt_checked = 0;
  size_t num_checked = 0;

  // When it came.
  int64_t steps_before = 0;
  int64_t begun_before = 0;
  std::vector<int64_t> service_before;  // by tenant
  // Steps in a row that ran without it although it had begun and could run.
  int64_t num_passed_over = 0;

  TokenStream& stream() const { return request->stream(); }
  bool ended() const { return stream().finish() != nullptr; }
  bool waits() const { return place == Place::kWaits || place == Place::kFollows; }
  size_t NumChanges() const {
    return stream().prompt().size() + stream().tokens().size() + (ended() ? 1 : 0);
  }
};

/// Requests are known by their seeds.
class Watchlist {
 public:
  uint64_t next_seed() const { return all_.size(); }

  /// Puts the choices of one call on the list.
  void Add(const ContextModel& model, std::span<const std::shared_ptr<Request>> choices) {
    for (const auto& request : choices) {
      auto watched = std::make_unique<Watched>();
      // With prompt logprobs each choice reads the prompt itself.
      if (&request == choices.data() || request->sampling().prompt_logprobs >= 0) ++num_calls_;
      watched->request = request;
      watched->alone = RunAlone(model, *request);
      watched->number = static_cast<int32_t>(all_.size());
      watched->call = num_calls_;
      watched->tenant = std::stoul(request->scheduling().tenant);
      watched->domain = std::stoi(request->scheduling().cache_domain);
      request->stream().SetWake([w = watched.get()] { w->num_woken = w->NumChanges(); });
      live_.push_back(watched.get());
      all_.push_back(std::move(watched));
    }
  }

  /// Where everybody is, by those who run.
  void Locate(std::span<const Sequence* const> running) {
    for (Watched* const watched : live_) {
      watched->place = watched->ended() ? Watched::Place::kEnded : Watched::Place::kWaits;
    }
    for (const Sequence* const sequence : running) {
      if (sequence->ended) continue;
      Of(*sequence).place = Watched::Place::kRuns;
      for (const auto& fork : sequence->forks) Of(*fork).place = Watched::Place::kFollows;
    }
  }

  void DropEnded() {
    std::erase_if(live_, [](const Watched* watched) { return watched->ended(); });
  }

  Watched& Of(const Sequence& sequence) const {
    return *all_.at(static_cast<size_t>(sequence.request->sampling().seed));
  }
  /// Who had not ended when DropEnded() was called last, in the order of arrival.
  const std::vector<Watched*>& live() const { return live_; }

 private:
  std::vector<std::unique_ptr<Watched>> all_;  // by seed
  std::vector<Watched*> live_;
  int32_t num_calls_ = 0;
};

}  // namespace shoal
