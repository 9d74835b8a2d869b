// WaitingQueue: whose turn is next. Fair between tenants, by priority and age within one.
#pragma once

#include <absl/container/flat_hash_map.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/request/sequence.h"

namespace shoal {

/// Sequences that wait. Those that were preempted go first, in the order of their turns. Of the
/// others it is the turn of the tenant that has been served least (virtual token counter, arXiv
/// 2401.00588: who comes back after a pause starts level with those who are served least, so no
/// tenant saves up service and none starves), and of its sequences that which came first, where
/// each step of priority counts as `priority_step` of waiting (so low priority waits longer, but
/// not for ever). A tenant cannot get ahead of another by its priorities. Thread: engine.
class WaitingQueue {
 public:
  explicit WaitingQueue(Clock::duration priority_step) : priority_step_(priority_step) {}

  /// Takes a sequence, with its forks, that has not run yet, and sets its tenant.
  void Push(std::unique_ptr<Sequence> sequence);
  /// Takes one back that ran.
  void PushPreempted(std::unique_ptr<Sequence> sequence);

  /// Whose turn it is, or null.
  Sequence* Front();
  /// Takes it out. There is one.
  std::unique_ptr<Sequence> PopFront();

  /// Takes out every sequence for which `end` is true. `end` may also take sequences out of the
  /// forks, or put one of them in place of the sequence itself.
  void EraseIf(const std::function<bool(std::unique_ptr<Sequence>&)>& end);

  /// True if `a`'s turn comes before `b`'s, if they are of one tenant.
  bool ComesBefore(const Sequence& a, const Sequence& b) const;

  bool empty() const { return num_sequences_ == 0; }
  int32_t num_sequences() const { return num_sequences_; }  // forks included
  int64_t num_tokens() const { return num_tokens_; }        // of them, prompt and generated

  /// Every tenant with a sequence here or running, and maybe some without.
  std::vector<Tenant> Tenants() const;

 private:
  struct Line {
    Tenant tenant;
    std::vector<std::unique_ptr<Sequence>> waiting;  // a heap by ComesBefore
  };

  const Clock::duration priority_step_;
  absl::flat_hash_map<std::string, std::unique_ptr<Line>> lines_;  // by tenant
  std::deque<std::unique_ptr<Sequence>> preempted_;                // by ComesBefore
  int32_t num_sequences_ = 0;
  int64_t num_tokens_ = 0;
};

}  // namespace shoal
