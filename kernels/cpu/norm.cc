#include "kernels/cpu/norm.h"

#include <cmath>

#include "kernels/cpu/element.h"

namespace shoal {
namespace {

/// Sum of the squares of x [n], lane by lane as in DotRows.
template <typename T>
float SumOfSquares(const T* x, int64_t n) {
  const int64_t whole = n / kLanes * kLanes;
  Vec sum = {}, v;
  for (int64_t i = 0; i < whole; i += kLanes) {
    Load(x + i, v);
    sum = v * v + sum;
  }
  LoadPartial(x + whole, n - whole, v);
  sum = v * v + sum;
  return ReduceAdd(sum);
}

/// out = round(round(x * scale) * weight).
template <typename T>
void ScaleRow(const T* x, float scale, const T* weight, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    T normed;
    Round(ToFloat(x[i]) * scale, normed);
    Round(ToFloat(normed) * ToFloat(weight[i]), out[i]);
  }
}

template <typename T>
void CombineRow(const T* rows, const float* weights, int64_t top_k, const T* shared, int64_t n,
                T* residual) {
  for (int64_t i = 0; i < n; ++i) {
    float sum = 0;
    for (int64_t k = 0; k < top_k; ++k) sum += weights[k] * ToFloat(rows[k * n + i]);
    if (shared != nullptr) sum += ToFloat(shared[i]);
    Round(ToFloat(residual[i]) + sum, residual[i]);
  }
}

}  // namespace

void AddRmsNormRows(Cpu& cpu, const Tensor& delta, const Tensor& residual, const Tensor& weight,
                    float epsilon, const Tensor& out) {
  const int64_t n = residual.shape[1];
  cpu.pool->ParallelFor(residual.shape[0], GrainFor(4 * n), [&](int64_t begin, int64_t end, int) {
    WithStorage(residual.dtype, [&](auto element) {
      using T = decltype(element);
      for (int64_t t = begin; t < end; ++t) {
        T* x = residual.as<T>() + t * n;
        if (!delta.empty()) {
          const T* added = delta.as<const T>() + t * n;
          for (int64_t i = 0; i < n; ++i) Round(ToFloat(x[i]) + ToFloat(added[i]), x[i]);
        }
        const float mean = SumOfSquares(x, n) / static_cast<float>(n);
        const float scale = 1.0f / std::sqrt(mean + epsilon);
        ScaleRow(x, scale, weight.as<const T>(), n, out.as<T>() + t * n);
      }
    });
  });
}

void CombineRows(Cpu& cpu, const Tensor& rows, const Routing& routing, const Tensor& shared,
                 const Tensor& residual) {
  const int64_t n = residual.shape[1];
  const int64_t top_k = rows.empty() ? 0 : rows.shape[1];
  const int64_t grain = GrainFor((top_k + 2) * n);
  cpu.pool->ParallelFor(residual.shape[0], grain, [&](int64_t begin, int64_t end, int) {
    WithStorage(residual.dtype, [&](auto element) {
      using T = decltype(element);
      for (int64_t t = begin; t < end; ++t) {
        const T* routed = rows.empty() ? nullptr : rows.as<const T>() + t * top_k * n;
        const float* weights =
            rows.empty() ? nullptr : routing.weights.as<const float>() + t * top_k;
        CombineRow(routed, weights, top_k, shared.empty() ? nullptr : shared.as<const T>() + t * n,
                   n, residual.as<T>() + t * n);
      }
    });
  });
}

}  // namespace shoal
