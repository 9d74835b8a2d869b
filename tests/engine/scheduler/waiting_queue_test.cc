#include "engine/scheduler/waiting_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace shoal {
namespace {

using std::chrono::hours;
using std::chrono::microseconds;
using testing::ElementsAre;

/// Makes sequences with ids from 0 on.
class Maker {
 public:
  std::unique_ptr<Sequence> Make(const std::string& tenant = "", int32_t priority = 0,
                                 size_t num_tokens = 1) {
    SchedulingParams scheduling;
    scheduling.tenant = tenant;
    scheduling.priority = priority;
    auto request = std::make_shared<Request>("", std::vector<int32_t>(num_tokens), SamplingParams(),
                                             scheduling);
    return std::make_unique<Sequence>(next_id_++, std::move(request));
  }

 private:
  int64_t next_id_ = 0;
};

/// Lets the front run and charges it.
std::unique_ptr<Sequence> Start(WaitingQueue& queue, int64_t service_tokens = 0) {
  std::unique_ptr<Sequence> sequence = queue.PopFront();
  ++sequence->tenant->num_running;
  sequence->tenant->service_tokens += service_tokens;
  return sequence;
}

void End(std::unique_ptr<Sequence> sequence) { --sequence->tenant->num_running; }

std::vector<int64_t> PopAll(WaitingQueue& queue) {
  std::vector<int64_t> ids;
  while (!queue.empty()) {
    const Sequence* const front = queue.Front();
    ids.push_back(front->id);
    EXPECT_EQ(queue.PopFront().get(), front);
  }
  return ids;
}

std::optional<Tenant> Find(const WaitingQueue& queue, const std::string& name) {
  for (const Tenant& tenant : queue.Tenants()) {
    if (tenant.name == name) return tenant;
  }
  return std::nullopt;
}

TEST(WaitingQueue, GoesByArrival) {
  Maker maker;
  WaitingQueue queue(hours(1));
  EXPECT_EQ(queue.Front(), nullptr);
  for (int i = 0; i < 5; ++i) queue.Push(maker.Make());
  EXPECT_THAT(PopAll(queue), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_EQ(queue.Front(), nullptr);
}

TEST(WaitingQueue, LowerPrioritiesGoFirst) {
  Maker maker;
  WaitingQueue queue(hours(1));
  for (const int32_t priority : {0, 7, -1, 7, 0}) queue.Push(maker.Make("", priority));
  EXPECT_THAT(PopAll(queue), ElementsAre(2, 0, 4, 1, 3));
}

TEST(WaitingQueue, APriorityIsWorthABoundedTimeOfWaiting) {
  Maker maker;
  WaitingQueue queue(microseconds(10));
  queue.Push(maker.Make("", 5));
  const Clock::time_point arrival = queue.Front()->request->arrival();
  while (Clock::now() <= arrival + 5 * microseconds(10)) continue;
  queue.Push(maker.Make("", 0));  // no longer overtakes it
  queue.Push(maker.Make("", -1000'000));
  EXPECT_THAT(PopAll(queue), ElementsAre(2, 0, 1));
}

TEST(WaitingQueue, ExtremePrioritiesKeepTheirOrder) {
  constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  Maker maker;
  WaitingQueue queue(hours(1000));
  std::vector<int32_t> priorities = {kMax / 3, kMin / 5, 1 << 20, -(1 << 20), 0};
  for (int i = 0; i < 5; ++i) priorities.insert(priorities.end(), {kMax - i, kMin + i});
  for (const int32_t priority : priorities) queue.Push(maker.Make("", priority));
  std::ranges::sort(priorities);
  for (const int32_t priority : priorities) {
    EXPECT_EQ(queue.PopFront()->request->scheduling().priority, priority);
  }
}

TEST(WaitingQueue, PreemptedOnesGoFirstByTheirTurns) {
  Maker maker;
  WaitingQueue queue(hours(1));
  for (const int32_t priority : {-2, -1, -3}) queue.Push(maker.Make("a", priority));
  std::vector<std::unique_ptr<Sequence>> running;
  for (int i = 0; i < 3; ++i) running.push_back(Start(queue, 100));
  queue.Push(maker.Make("a", -9));
  for (auto& sequence : running) {
    --sequence->tenant->num_running;
    queue.PushPreempted(std::move(sequence));
  }
  EXPECT_EQ(queue.num_sequences(), 4);
  EXPECT_THAT(PopAll(queue), ElementsAre(2, 0, 1, 3));
}

TEST(WaitingQueue, TheTenantServedLeastGoesFirst) {
  Maker maker;
  WaitingQueue queue(hours(1));
  for (const char* tenant : {"a", "a", "b", "b"}) queue.Push(maker.Make(tenant));
  std::vector<std::unique_ptr<Sequence>> running;
  const auto run = [&](int64_t service_tokens) {
    running.push_back(Start(queue, service_tokens));
    return running.back()->id;
  };
  EXPECT_EQ(run(10), 0);
  EXPECT_EQ(run(30), 2);
  EXPECT_EQ(run(10), 1) << "a has had 10 tokens, b 30";
  EXPECT_EQ(run(10), 3);
}

TEST(WaitingQueue, PriorityDoesNotOvertakeAnotherTenant) {
  Maker maker;
  WaitingQueue queue(hours(1));
  queue.Push(maker.Make("b"));
  queue.Push(maker.Make("a", -1000));
  // Both have been served as little.
  EXPECT_EQ(queue.Front()->id, 0);
  queue.Push(maker.Make("b"));
  const auto first = Start(queue, 5);
  const auto second = Start(queue, 10);
  EXPECT_EQ(second->id, 1);
  queue.Push(maker.Make("a", -1000));
  EXPECT_EQ(queue.Front()->id, 2) << "a has been served more";
}

TEST(WaitingQueue, AGreedyTenantDoesNotDelayAModestOne) {
  Maker maker;
  WaitingQueue queue(hours(1));
  for (int i = 0; i < 200; ++i) queue.Push(maker.Make("greedy", -1));
  std::map<std::string, int> served;
  queue.Push(maker.Make("modest"));
  for (int i = 0, since_modest = 0; i < 200; ++i, ++since_modest) {
    auto sequence = Start(queue, 10);
    const bool is_modest = sequence->tenant->name == "modest";
    ++served[sequence->tenant->name];
    End(std::move(sequence));
    EXPECT_LE(since_modest, 2);
    if (!is_modest) continue;
    since_modest = 0;
    queue.Push(maker.Make("modest"));
  }
  EXPECT_NEAR(served["modest"], served["greedy"], 2);
}

TEST(WaitingQueue, NobodySavesUpServiceWhileAway) {
  Maker maker;
  WaitingQueue queue(hours(1));
  for (int i = 0; i < 100; ++i) queue.Push(maker.Make("busy"));
  queue.Push(maker.Make("away"));
  for (int i = 0; i < 40; ++i) End(Start(queue, 10));
  EXPECT_EQ(Find(queue, "away")->service_tokens, 10);
  const int64_t level = Find(queue, "busy")->service_tokens;
  for (int i = 0; i < 20; ++i) queue.Push(maker.Make("away"));
  EXPECT_EQ(Find(queue, "away")->service_tokens, level);
  std::map<std::string, int> served;
  for (int i = 0; i < 20; ++i) {
    auto sequence = Start(queue, 10);
    ++served[sequence->tenant->name];
    End(std::move(sequence));
  }
  EXPECT_EQ(served["away"], 10);
  EXPECT_EQ(served["busy"], 10);
}

TEST(WaitingQueue, WhoWasServedMoreIsNotForgivenForAPause) {
  Maker maker;
  WaitingQueue queue(hours(1));
  queue.Push(maker.Make("other"));
  const auto other = Start(queue, 100);
  queue.Push(maker.Make("greedy"));
  End(Start(queue, 1000));
  queue.Push(maker.Make("greedy"));
  EXPECT_EQ(Find(queue, "greedy")->service_tokens, 1100);
}

TEST(WaitingQueue, AllStartAnewOnceNobodyIsThere) {
  Maker maker;
  WaitingQueue queue(hours(1));
  queue.Push(maker.Make("greedy"));
  End(Start(queue, 1000));
  EXPECT_EQ(Find(queue, "greedy")->service_tokens, 1000);
  queue.Push(maker.Make("other"));
  queue.Push(maker.Make("greedy"));
  EXPECT_EQ(Find(queue, "greedy")->service_tokens, 0);
}

TEST(WaitingQueue, CountsSequencesAndTokensWithForks) {
  Maker maker;
  WaitingQueue queue(hours(1));
  auto leader = maker.Make("a", 0, 5);
  for (int i = 0; i < 2; ++i) leader->forks.push_back(maker.Make("a", 0, 5));
  queue.Push(std::move(leader));
  queue.Push(maker.Make("b", 0, 7));
  EXPECT_EQ(queue.num_sequences(), 4);
  EXPECT_EQ(queue.num_tokens(), 22);
  EXPECT_EQ(Find(queue, "a")->num_waiting, 3);
  leader = Start(queue);
  EXPECT_EQ(leader->tenant, leader->forks[1]->tenant);
  EXPECT_EQ(queue.num_sequences(), 1);
  EXPECT_EQ(queue.num_tokens(), 7);
  EXPECT_EQ(leader->tenant->num_waiting, 0);
  leader->token_ids.push_back(1);
  queue.PushPreempted(std::move(leader));
  EXPECT_EQ(queue.num_tokens(), 23);
}

TEST(WaitingQueue, ErasesWhatEnds) {
  Maker maker;
  WaitingQueue queue(hours(1));
  for (int i = 0; i < 10; ++i) queue.Push(maker.Make(i % 2 == 0 ? "a" : "b", -i));
  auto eight = queue.PopFront(), nine = queue.PopFront();
  queue.PushPreempted(std::move(eight));
  queue.PushPreempted(std::move(nine));
  queue.EraseIf([](const auto& sequence) { return sequence->id % 3 == 0; });
  EXPECT_EQ(queue.num_sequences(), 6);
  EXPECT_EQ(queue.num_tokens(), 6);
  EXPECT_EQ(Find(queue, "a")->num_waiting, 3);
  EXPECT_THAT(PopAll(queue), ElementsAre(8, 4, 2, 7, 5, 1));
}

TEST(WaitingQueue, AForkTakesThePlaceOfItsLeader) {
  Maker maker;
  WaitingQueue queue(hours(1));
  auto leader = maker.Make("a", 0, 5);
  queue.Push(maker.Make("a", 0, 5));
  for (int i = 0; i < 2; ++i) leader->forks.push_back(maker.Make("a", 0, 5));
  queue.Push(std::move(leader));
  queue.EraseIf([](std::unique_ptr<Sequence>& sequence) {
    if (sequence->forks.empty()) return false;
    auto forks = std::move(sequence->forks);
    sequence = std::move(forks.back());  // the first one ends too
    return false;
  });
  EXPECT_EQ(queue.num_sequences(), 2);
  EXPECT_EQ(queue.num_tokens(), 10);
  EXPECT_EQ(Find(queue, "a")->num_waiting, 2);
  EXPECT_THAT(PopAll(queue), ElementsAre(1, 3)) << "its turn is its own";
}

TEST(WaitingQueue, ForgetsTenantsThatCameOnce) {
  Maker maker;
  WaitingQueue queue(hours(1));
  queue.Push(maker.Make("running"));
  const auto running = Start(queue, 1);
  Tenant* const tenant = running->tenant;
  queue.Push(maker.Make("greedy"));
  End(Start(queue, 1'000'000));
  for (int i = 0; i < 5000; ++i) {
    queue.Push(maker.Make(std::to_string(i)));
    End(Start(queue, 10));
    ASSERT_LE(queue.Tenants().size(), WaitingQueue::kMaxIdleTenants + 2);
  }
  EXPECT_EQ(tenant->name, "running");
  EXPECT_EQ(Find(queue, "greedy")->service_tokens, 1'000'001) << "who had most goes last";
}

TEST(WaitingQueueDeathTest, HasNoFrontWhenEmpty) {
  WaitingQueue queue(hours(1));
  EXPECT_DEATH(queue.PopFront(), "nobody waits");
}

/// What waits, runs and was served, kept in the plainest way.
class Oracle {
 public:
  explicit Oracle(uint32_t seed) : random_(seed), queue_(kStep) {}

  void RunOperation() {
    switch (Draw(7)) {
      case 0:
      case 1:
        Push();
        break;
      case 2:
        if (!waiting_.empty()) Admit();
        break;
      case 3:
        if (!running_.empty()) Serve();
        break;
      case 4:
        if (!running_.empty()) Preempt();
        break;
      case 5:
        if (!running_.empty()) End();
        break;
      default:
        if (Draw(4) == 0) Erase();
    }
    Check();
  }

  int64_t num_admitted = 0;
  int64_t num_promoted = 0;

 private:
  static constexpr microseconds kStep = microseconds(3);

  struct Account {
    int64_t service_tokens = 0;
    int32_t num_waiting = 0;
    int32_t num_running = 0;
  };
  struct Waiting {
    const Sequence* sequence;
    bool preempted;
  };

  size_t Draw(size_t bound) { return random_() % bound; }
  static const std::string& TenantOf(const Sequence& sequence) {
    return sequence.request->scheduling().tenant;
  }
  static int32_t Size(const Sequence& sequence) {
    return 1 + static_cast<int32_t>(sequence.forks.size());
  }

  void Push() {
    const std::string tenant(1, static_cast<char>('a' + Draw(4)));
    const auto priority = static_cast<int32_t>(Draw(9)) - 4;
    auto sequence = maker_.Make(tenant, priority, 1 + Draw(3));
    for (size_t forks = Draw(3); forks > 0; --forks) {
      sequence->forks.push_back(maker_.Make(tenant, priority));
    }
    StartLevel(tenant);
    accounts_[tenant].num_waiting += Size(*sequence);
    waiting_.push_back({sequence.get(), false});
    queue_.Push(std::move(sequence));
  }

  void StartLevel(const std::string& tenant) {
    std::optional<int64_t> least;
    for (const auto& [name, account] : accounts_) {
      if (account.num_waiting + account.num_running == 0) continue;
      if (name == tenant) return;
      least = std::min(least.value_or(account.service_tokens), account.service_tokens);
    }
    if (!least) accounts_.clear();
    int64_t& own = accounts_[tenant].service_tokens;
    own = std::max(own, least.value_or(0));
  }

  void Admit() {
    std::unique_ptr<Sequence> sequence = queue_.PopFront();
    ASSERT_EQ(sequence.get(), First()->sequence);
    waiting_.erase(First());
    accounts_[TenantOf(*sequence)].num_waiting -= Size(*sequence);
    accounts_[TenantOf(*sequence)].num_running += 1;
    ++sequence->tenant->num_running;
    sequence->forks.clear();
    running_.push_back(std::move(sequence));
    ++num_admitted;
  }

  void Serve() {
    Sequence& sequence = *running_[Draw(running_.size())];
    const auto num_tokens = static_cast<int64_t>(Draw(20));
    accounts_[TenantOf(sequence)].service_tokens += num_tokens;
    sequence.tenant->service_tokens += num_tokens;
    sequence.token_ids.push_back(0);
  }

  std::unique_ptr<Sequence> Stop() {
    std::swap(running_[Draw(running_.size())], running_.back());
    std::unique_ptr<Sequence> sequence = std::move(running_.back());
    running_.pop_back();
    --accounts_[TenantOf(*sequence)].num_running;
    --sequence->tenant->num_running;
    return sequence;
  }

  void Preempt() {
    std::unique_ptr<Sequence> sequence = Stop();
    accounts_[TenantOf(*sequence)].num_waiting += 1;
    waiting_.push_back({sequence.get(), true});
    queue_.PushPreempted(std::move(sequence));
  }

  void End() { Stop(); }

  /// Ends some sequences; a fork takes the place of its leader.
  void Erase() {
    const size_t which = Draw(5);
    const int64_t num_waiting = std::ssize(waiting_);
    int64_t num_asked = 0;
    queue_.EraseIf([&](std::unique_ptr<Sequence>& sequence) {
      ++num_asked;
      if (static_cast<size_t>(sequence->id) % 5 != which) return false;
      const auto own = std::ranges::find(waiting_, sequence.get(), &Waiting::sequence);
      --accounts_[TenantOf(*sequence)].num_waiting;
      if (sequence->forks.empty()) {
        waiting_.erase(own);
        return true;
      }
      auto forks = std::move(sequence->forks);
      sequence = std::move(forks.front());
      forks.erase(forks.begin());
      sequence->forks = std::move(forks);
      own->sequence = sequence.get();
      ++num_promoted;
      return false;
    });
    ASSERT_EQ(num_asked, num_waiting);
  }

  std::vector<Waiting>::iterator First() {
    const auto turn = [](const Sequence& sequence) {
      return std::pair(
          sequence.request->arrival() + sequence.request->scheduling().priority * kStep,
          sequence.id);
    };
    const auto first_of = [&](const auto& among) {
      auto first = waiting_.end();
      for (auto it = waiting_.begin(); it != waiting_.end(); ++it) {
        if (!among(*it)) continue;
        if (first == waiting_.end() || turn(*it->sequence) < turn(*first->sequence)) first = it;
      }
      return first;
    };
    const auto preempted = first_of([](const Waiting& waiting) { return waiting.preempted; });
    if (preempted != waiting_.end()) return preempted;
    auto best = waiting_.end();
    const auto rank = [&](const Waiting& waiting) {
      return std::pair(accounts_[TenantOf(*waiting.sequence)].service_tokens, waiting.sequence->id);
    };
    for (const auto& [name, account] : accounts_) {
      const auto first =
          first_of([&](const Waiting& waiting) { return TenantOf(*waiting.sequence) == name; });
      if (first == waiting_.end()) continue;
      if (best == waiting_.end() || rank(*first) < rank(*best)) best = first;
    }
    return best;
  }

  void Check() {
    int32_t num_sequences = 0;
    int64_t num_tokens = 0;
    for (const Waiting& waiting : waiting_) {
      num_sequences += Size(*waiting.sequence);
      num_tokens += waiting.sequence->num_known_tokens();
      for (const auto& fork : waiting.sequence->forks) num_tokens += fork->num_known_tokens();
    }
    ASSERT_EQ(queue_.num_sequences(), num_sequences);
    ASSERT_EQ(queue_.num_tokens(), num_tokens);
    ASSERT_EQ(queue_.Front(), waiting_.empty() ? nullptr : First()->sequence);
    for (const Tenant& tenant : queue_.Tenants()) {
      ASSERT_EQ(tenant.service_tokens, accounts_[tenant.name].service_tokens);
      ASSERT_EQ(tenant.num_waiting, accounts_[tenant.name].num_waiting);
      ASSERT_EQ(tenant.num_running, accounts_[tenant.name].num_running);
    }
  }

  std::mt19937 random_;
  Maker maker_;
  WaitingQueue queue_;
  std::vector<Waiting> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
  std::map<std::string, Account> accounts_;
};

TEST(WaitingQueue, AgreesWithAnOracleOverRandomOperations) {
  int64_t num_admitted = 0, num_promoted = 0;
  for (uint32_t seed = 0; seed < 20 && !testing::Test::HasFailure(); ++seed) {
    Oracle oracle(seed);
    for (int i = 0; i < 1000 && !testing::Test::HasFailure(); ++i) oracle.RunOperation();
    num_admitted += oracle.num_admitted;
    num_promoted += oracle.num_promoted;
  }
  EXPECT_GT(num_admitted, 1000);
  EXPECT_GT(num_promoted, 100);
}

}  // namespace
}  // namespace shoal
