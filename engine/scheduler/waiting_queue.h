// WaitingQueue: whose turn is next. Fair between tenants, by priority and age within one.
#pragma once

#include <absl/container/flat_hash_map.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/request/sequence.h"

namespace shoal {

/// Sequences that wait, and the tenants of all that wait or run. Those that were preempted go
/// first, in the order of their turns. Of the others it is the turn of the tenant that has been
/// served least (virtual token counter, arXiv 2401.00588: who comes back after a pause starts level
/// with those who are served least, so no tenant saves up service and none starves), and of its
/// sequences that which came first, where each step of priority counts as `priority_step` of
/// waiting (so low priority waits longer, but not for ever). A tenant cannot get ahead of another
/// by its priorities. Thread: engine.
class WaitingQueue {
 public:
  /// Beyond so many tenants that neither wait nor run, those served least are forgotten.
  static constexpr size_t kMaxIdleTenants = 1024;

  explicit WaitingQueue(Clock::duration priority_step) : priority_step_(priority_step) {}

  /// Takes a sequence, with its forks, that has not run yet, and sets its tenant and theirs; which
  /// stays where it is as long as it has a sequence here or counts one that runs.
  void Push(std::unique_ptr<Sequence> sequence);
  /// Takes one back that ran, or a fork whose turn came with another's; none of its tokens are in
  /// flight.
  void PushPreempted(std::unique_ptr<Sequence> sequence);

  /// Whose turn it is, or null.
  Sequence* Front();
  /// Takes it out. There is one.
  std::unique_ptr<Sequence> PopFront();

  /// Takes out every sequence for which `end` is true. `end` may also take sequences out of the
  /// forks, or put one of them in place of the sequence itself.
  void EraseIf(const std::function<bool(std::unique_ptr<Sequence>&)>& end);

  /// True if `a`'s turn comes before `b`'s, if they are of one tenant, or were both preempted.
  bool ComesBefore(const Sequence& a, const Sequence& b) const;

  bool empty() const { return num_sequences_ == 0; }
  int32_t num_sequences() const { return num_sequences_; }  // forks included
  int64_t num_tokens() const { return num_tokens_; }        // of them, prompt and generated

  /// Every tenant with a sequence here or running, and maybe some without.
  std::vector<Tenant> Tenants() const;

 private:
  using Sequences = std::vector<std::unique_ptr<Sequence>>;  // a heap, see IsAfter()

  struct Line {
    Tenant tenant;
    Sequences waiting;
  };

  /// For the standard library, which keeps the greatest element at the front of a heap.
  auto IsAfter() const {
    return [this](const auto& a, const auto& b) { return ComesBefore(*b, *a); };
  }
  static bool IsInUse(const Tenant& tenant) {
    return tenant.num_waiting > 0 || tenant.num_running > 0;
  }

  Line& Activate(const std::string& tenant);
  void ForgetIdle();
  Line* Next();
  void Insert(Sequences& heap, std::unique_ptr<Sequence> sequence);
  void Count(const Sequence& sequence, int sign);

  const Clock::duration priority_step_;
  absl::flat_hash_map<std::string, std::unique_ptr<Line>> lines_;  // by tenant
  std::vector<Line*> active_;  // those in use, and some that were until lately
  Sequences preempted_;
  int32_t num_sequences_ = 0;
  int64_t num_tokens_ = 0;
};

}  // namespace shoal
