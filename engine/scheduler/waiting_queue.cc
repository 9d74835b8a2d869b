#include "engine/scheduler/waiting_queue.h"

#include <absl/numeric/int128.h>

#include <algorithm>
#include <utility>

#include "kernels/status.h"

namespace shoal {

void WaitingQueue::Push(std::unique_ptr<Sequence> sequence) {
  Line& line = Activate(sequence->request->scheduling().tenant);
  sequence->tenant = &line.tenant;
  for (const auto& fork : sequence->forks) fork->tenant = &line.tenant;
  Insert(line.waiting, std::move(sequence));
}

void WaitingQueue::PushPreempted(std::unique_ptr<Sequence> sequence) {
  Insert(preempted_, std::move(sequence));
}

Sequence* WaitingQueue::Front() {
  if (!preempted_.empty()) return preempted_.front().get();
  Line* const next = Next();
  return next == nullptr ? nullptr : next->waiting.front().get();
}

std::unique_ptr<Sequence> WaitingQueue::PopFront() {
  SHOAL_CHECK(!empty(), "nobody waits");
  Sequences& heap = preempted_.empty() ? Next()->waiting : preempted_;
  std::ranges::pop_heap(heap, IsAfter());
  std::unique_ptr<Sequence> sequence = std::move(heap.back());
  heap.pop_back();
  Count(*sequence, -1);
  return sequence;
}

void WaitingQueue::EraseIf(const std::function<bool(std::unique_ptr<Sequence>&)>& end) {
  const auto erase_from = [&](Sequences& heap) {
    bool changed = false;
    size_t num_kept = 0;
    for (std::unique_ptr<Sequence>& sequence : heap) {
      const Sequence* const before = sequence.get();
      Count(*sequence, -1);
      const bool ends = end(sequence);
      changed |= ends || sequence.get() != before;
      if (ends) continue;
      Count(*sequence, 1);
      std::swap(heap[num_kept++], sequence);
    }
    heap.resize(num_kept);
    if (changed) std::ranges::make_heap(heap, IsAfter());
  };
  for (Line* const line : active_) erase_from(line->waiting);
  erase_from(preempted_);
}

bool WaitingQueue::ComesBefore(const Sequence& a, const Sequence& b) const {
  // No priority overflows 128 bits, whatever a step is worth.
  const auto turn = [this](const Request& request) {
    return absl::int128(request.arrival().time_since_epoch().count()) +
           absl::int128(request.scheduling().priority) * priority_step_.count();
  };
  const absl::int128 a_turn = turn(*a.request), b_turn = turn(*b.request);
  return a_turn != b_turn ? a_turn < b_turn : a.id < b.id;
}

std::vector<Tenant> WaitingQueue::Tenants() const {
  std::vector<Tenant> tenants;
  tenants.reserve(lines_.size());
  for (const auto& [name, line] : lines_) tenants.push_back(line->tenant);
  return tenants;
}

/// The line of `tenant`, which is about to get a sequence. If it had none, it starts level with the
/// active one that has been served least. Only here are tenants forgotten, so that whoever has just
/// taken or is about to bring back a sequence still finds its tenant.
WaitingQueue::Line& WaitingQueue::Activate(const std::string& tenant) {
  const auto found = lines_.find(tenant);
  if (found != lines_.end() && IsInUse(found->second->tenant)) return *found->second;
  std::erase_if(active_, [](const Line* line) { return !IsInUse(line->tenant); });
  ForgetIdle();
  int64_t least_service = 0;
  if (!active_.empty()) {
    least_service = (*std::ranges::min_element(active_, {}, [](const Line* line) {
                      return line->tenant.service_tokens;
                    }))->tenant.service_tokens;
  }
  std::unique_ptr<Line>& line = lines_[tenant];
  if (line == nullptr) {
    line = std::make_unique<Line>();
    line->tenant.name = tenant;
  }
  line->tenant.service_tokens = std::max(line->tenant.service_tokens, least_service);
  active_.push_back(line.get());
  return *line;
}

/// With nobody active all start anew. Otherwise half of the idle ones go when they are too many;
/// those served least lose the least by it, as they are the first to be raised anyway.
void WaitingQueue::ForgetIdle() {
  if (active_.empty()) return lines_.clear();
  if (lines_.size() - active_.size() <= kMaxIdleTenants) return;
  std::vector<const Tenant*> idle;
  for (const auto& [name, line] : lines_) {
    if (!IsInUse(line->tenant)) idle.push_back(&line->tenant);
  }
  const auto middle = idle.begin() + std::ssize(idle) / 2;
  std::ranges::nth_element(idle, middle, {}, &Tenant::service_tokens);
  for (auto forgotten = idle.begin(); forgotten != middle; ++forgotten) {
    lines_.erase((*forgotten)->name);
  }
}

/// The line of the waiting tenant that has been served least, or null. Among equals it is that of
/// whom came first: there, too, priority does not help.
WaitingQueue::Line* WaitingQueue::Next() {
  const auto rank = [](const Line& line) {
    return std::pair(line.tenant.service_tokens, line.waiting.front()->id);
  };
  Line* next = nullptr;
  for (Line* const line : active_) {
    if (line->waiting.empty()) continue;
    if (next == nullptr || rank(*line) < rank(*next)) next = line;
  }
  return next;
}

void WaitingQueue::Insert(Sequences& heap, std::unique_ptr<Sequence> sequence) {
  Count(*sequence, 1);
  heap.push_back(std::move(sequence));
  std::ranges::push_heap(heap, IsAfter());
}

/// The sequence and its forks come, or go with a `sign` of -1.
void WaitingQueue::Count(const Sequence& sequence, int sign) {
  int32_t num_sequences = 1;
  int64_t num_tokens = sequence.num_known_tokens();
  for (const auto& fork : sequence.forks) {
    ++num_sequences;
    num_tokens += fork->num_known_tokens();
  }
  sequence.tenant->num_waiting += sign * num_sequences;
  num_sequences_ += sign * num_sequences;
  num_tokens_ += sign * num_tokens;
}

}  // namespace shoal
