#include "kernels/comm/collective.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/status.h"

namespace shoal {
namespace {

void CheckCounts(const RowCounts& counts, int size) {
  SHOAL_CHECK(std::ssize(counts.of_rank) == size, "{} counts for {} ranks", counts.of_rank.size(),
              size);
  SHOAL_CHECK(std::ranges::all_of(counts.of_rank, [](int64_t count) { return count >= 0; }),
              "counts are {}", fmt::join(counts.of_rank, ", "));
}

void CheckRows(const char* name, const Tensor& tensor, int64_t count) {
  SHOAL_CHECK(tensor.rank >= 1 && tensor.shape[0] == count,
              "{} has {} dimensions and {} rows, the counts say {}", name, tensor.rank,
              tensor.shape[0], count);
}

}  // namespace

int64_t RowCounts::first() const {
  return std::accumulate(of_rank.begin(), of_rank.begin() + rank, int64_t{0});
}

int64_t RowCounts::total() const {
  return std::accumulate(of_rank.begin(), of_rank.end(), int64_t{0});
}

void CheckAllGather(const RowCounts& counts, int size, const Tensor& local, const Tensor& all) {
  CheckCounts(counts, size);
  CheckRows("local", local, counts.own());
  CheckRows("all", all, counts.total());
  SHOAL_CHECK(SameRowShape(local, all), "local has rows of another shape or dtype than all");
}

void CheckReturnRows(const RowCounts& counts, int size, const Tensor& rows,
                     const Tensor& expert_ids, const Tensor& out) {
  CheckCounts(counts, size);
  CheckRows("rows", rows, counts.total());
  CheckRows("expert_ids", expert_ids, counts.own());
  CheckRows("out", out, counts.own());
  SHOAL_CHECK(rows.rank == 3 && SameRowShape(rows, out),
              "rows of {} dimensions, or of another shape or dtype than out", rows.rank);
  SHOAL_CHECK(expert_ids.dtype == DType::kInt32 && expert_ids.rank == 2 &&
                  expert_ids.shape[1] == rows.shape[1],
              "{} expert ids of {} dimensions for {} rows per token", Name(expert_ids.dtype),
              expert_ids.rank, rows.shape[1]);
}

bool SameRowShape(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.rank == b.rank &&
         std::equal(a.shape.begin() + 1, a.shape.begin() + a.rank, b.shape.begin() + 1);
}

void CopyBytes(const void* from, int64_t bytes, void* to) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

}  // namespace shoal
