// The collectives against the definition of each element, for any kind of group: a test file
// includes this and instantiates CommunicatorParity with its GroupCases.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/backend.h"

namespace shoal {

/// A group under test: the backends of `size` ranks, in their order.
struct GroupCase {
  std::string name;
  int size = 1;
  std::function<std::vector<Backend>(int size)> make;
};

inline void PrintTo(const GroupCase& group, std::ostream* out) { *out << group.name; }

/// What all ranks do in one round; the same for all who know its number.
struct CollectiveRound {
  static constexpr int64_t kMaxRows = 9, kMaxTopK = 4, kMaxColumns = 40;

  int number = 0;
  int size = 1;
  int experts_per_rank = 1;
  int64_t top_k = 1;
  int64_t columns = 1;
  std::vector<int64_t> counts;

  CollectiveRound(int number, int size) : number(number), size(size) {
    std::mt19937 random(number);
    const auto up_to = [&](int64_t most) { return static_cast<int64_t>(random() % (most + 1)); };
    experts_per_rank = static_cast<int>(1 + up_to(4));
    top_k = 1 + up_to(kMaxTopK - 1);
    columns = 1 + up_to(kMaxColumns - 1);
    const bool is_sparse = up_to(2) == 0;
    for (int r = 0; r < size; ++r) {
      counts.push_back(is_sparse && up_to(2) > 0 ? 0 : up_to(kMaxRows));
    }
  }

  int64_t first(int rank) const {
    return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
  }
  int64_t total() const { return first(size); }

  /// Element `i` of what `rank` has in this round.
  int32_t Element(int rank, int64_t i) const {
    const uint64_t key = (static_cast<uint64_t>(number) * 64 + rank) * 1000003 + i + 1;
    return static_cast<int32_t>(key * 0x9E3779B97F4A7C15 >> 33);
  }
  int32_t Expert(int rank, int64_t i) const {
    return Element(rank + 32, i) % (size * experts_per_rank);
  }
  std::vector<int32_t> Elements(int rank, int64_t count) const {
    std::vector<int32_t> elements(count);
    for (int64_t i = 0; i < count; ++i) elements[i] = Element(rank, i);
    return elements;
  }
};

/// One rank's memory and its part in a round. Elements are four bytes, whatever they stand for.
class CollectiveRank {
 public:
  explicit CollectiveRank(Backend backend) : backend_(std::move(backend)) {
    constexpr int64_t kColumns = CollectiveRound::kMaxTopK * CollectiveRound::kMaxColumns;
    const int64_t own = CollectiveRound::kMaxRows, all = own * backend_.communicator->size();
    local_ = backend_.device->Allocate(DType::kInt32, {own * kColumns}).value();
    all_ = backend_.device->Allocate(DType::kInt32, {all * kColumns}).value();
    ids_ = backend_.device->Allocate(DType::kInt32, {own * kColumns}).value();
  }

  /// The memory is that of the round before: a rank that reads too late sees other elements.
  void Run(const CollectiveRound& round) {
    EXPECT_EQ(Gathered(round), ExpectedGathered(round)) << "round " << round.number;
    EXPECT_EQ(Returned(round), ExpectedReturned(round)) << "round " << round.number;
  }

 private:
  int rank() const { return backend_.communicator->rank(); }

  void Write(const std::vector<int32_t>& values, const Tensor& tensor) {
    ASSERT_EQ(std::ssize(values), tensor.num_elements());
    backend_.device->CopyFromHost(values.data(), tensor);
    EXPECT_TRUE(backend_.device->Synchronize().ok());
  }
  std::vector<int32_t> Read(const Tensor& tensor) {
    std::vector<int32_t> values(tensor.num_elements());
    backend_.device->CopyToHost(tensor, values.data());
    EXPECT_TRUE(backend_.device->Synchronize().ok());
    return values;
  }
  /// The first elements of `memory`; no memory at all if there are none.
  static Tensor View(const Tensor& memory, std::initializer_list<int64_t> shape) {
    return Tensor(*shape.begin() == 0 ? nullptr : memory.data, DType::kInt32, shape);
  }

  std::vector<int32_t> Gathered(const CollectiveRound& round) {
    const int64_t count = round.counts[rank()];
    const Tensor local = View(local_, {count, round.columns});
    const Tensor all = View(all_, {round.total(), round.columns});
    Write(round.Elements(rank(), count * round.columns), local);
    backend_.communicator->AllGather(local, round.counts, all);
    return Read(all);
  }
  static std::vector<int32_t> ExpectedGathered(const CollectiveRound& round) {
    std::vector<int32_t> expected;
    for (int r = 0; r < round.size; ++r) {
      const std::vector<int32_t> rows = round.Elements(r, round.counts[r] * round.columns);
      expected.insert(expected.end(), rows.begin(), rows.end());
    }
    return expected;
  }

  std::vector<int32_t> Returned(const CollectiveRound& round) {
    const int64_t count = round.counts[rank()];
    const Tensor rows = View(all_, {round.total(), round.top_k, round.columns});
    const Tensor ids = View(ids_, {count, round.top_k});
    const Tensor out = View(local_, {count, round.top_k, round.columns});
    std::vector<int32_t> experts;
    for (int64_t i = 0; i < count * round.top_k; ++i) experts.push_back(round.Expert(rank(), i));
    Write(experts, ids);
    Write(round.Elements(rank(), rows.num_elements()), rows);
    backend_.communicator->ReturnRows(rows, ids, round.experts_per_rank, round.counts, out);
    return Read(out);
  }
  std::vector<int32_t> ExpectedReturned(const CollectiveRound& round) const {
    std::vector<int32_t> expected;
    const int64_t first = round.first(rank()) * round.top_k;
    for (int64_t i = 0; i < round.counts[rank()] * round.top_k; ++i) {
      const int owner = round.Expert(rank(), i) / round.experts_per_rank;
      for (int64_t c = 0; c < round.columns; ++c) {
        expected.push_back(round.Element(owner, (first + i) * round.columns + c));
      }
    }
    return expected;
  }

  Backend backend_;
  Tensor local_, all_, ids_;
};

class CommunicatorParity : public testing::TestWithParam<GroupCase> {};

TEST_P(CommunicatorParity, RanksKnowTheirPlace) {
  const std::vector<Backend> backends = GetParam().make(GetParam().size);
  for (int rank = 0; rank < GetParam().size; ++rank) {
    EXPECT_EQ(backends[rank].communicator->rank(), rank);
    EXPECT_EQ(backends[rank].communicator->size(), GetParam().size);
  }
}

TEST_P(CommunicatorParity, RowsTravelAsDefined) {
  constexpr int kRounds = 300;
  std::vector<std::thread> threads;
  for (Backend& backend : GetParam().make(GetParam().size)) {
    threads.emplace_back([backend = std::move(backend)]() mutable {
      CollectiveRank rank(std::move(backend));
      for (int i = 0; i < kRounds; ++i) rank.Run(CollectiveRound(i, GetParam().size));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace shoal
