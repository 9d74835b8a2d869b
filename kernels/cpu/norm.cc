#include "kernels/cpu/norm.h"

#include <cmath>

#include "kernels/cpu/element.h"
#include "kernels/cpu/routing.h"

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

/// out = round(round(x / root mean square of x) * weight).
template <typename T>
void NormRow(const T* x, const Norm& norm, int64_t n, T* out) {
  const float mean = SumOfSquares(x, n) / static_cast<float>(n);
  const float scale = 1.0f / std::sqrt(mean + norm.epsilon);
  const T* weight = norm.weight.as<const T>();
  for (int64_t i = 0; i < n; ++i) {
    T normed;
    Round(ToFloat(x[i]) * scale, normed);
    Round(ToFloat(normed) * ToFloat(weight[i]), out[i]);
  }
}

/// residual += the sum of the rows, each times its weight.
template <typename T>
void CombineRow(const T* rows, const float* weights, int64_t num_routes, int64_t n, T* residual) {
  for (int64_t i = 0; i < n; ++i) {
    float sum = 0;
    for (int64_t k = 0; k < num_routes; ++k) sum += weights[k] * ToFloat(rows[k * n + i]);
    Round(ToFloat(residual[i]) + sum, residual[i]);
  }
}

}  // namespace

void AddRmsNormRows(Cpu& cpu, const Tensor& delta, const Tensor& residual, const Norm& norm,
                    const Tensor& out) {
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
        NormRow(x, norm, n, out.as<T>() + t * n);
      }
    });
  });
}

void CombineRows(Cpu& cpu, const Tensor& rows, const Routing& routing, const Tensor& residual,
                 const Norm& norm, const Tensor& out) {
  const int64_t n = residual.shape[1], num_routes = rows.shape[1];
  const int64_t num_tokens = NumRoutedTokens(routing);
  const int64_t grain = GrainFor((num_routes + 4) * n);
  cpu.pool->ParallelFor(num_tokens, grain, [&](int64_t begin, int64_t end, int) {
    WithStorage(residual.dtype, [&](auto element) {
      using T = decltype(element);
      for (int64_t t = begin; t < end; ++t) {
        T* x = residual.as<T>() + t * n;
        CombineRow(rows.as<const T>() + t * num_routes * n,
                   routing.weights.as<const float>() + t * num_routes, num_routes, n, x);
        NormRow(x, norm, n, out.as<T>() + t * n);
      }
    });
  });
}

}  // namespace shoal
