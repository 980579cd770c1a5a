// The two expert operations on a CPU, each thread by itself (see native.py for how this is built and called).
//
// The routes, sorted by expert, are cut into T even shares, one for each thread: share t has the positions from t/T to
// (t+1)/T. A thread goes through the experts of its share, a piece of rows at a time: gather the rows, multiply, and add
// the results to the output in the order of the routes. Threads do not wait for each other, a piece never leaves the
// core's own cache, and each share has an output of its own; these are summed at the end, in order. So the same inputs
// give the same bits, whichever thread is faster.
//
// Letters: R routes, N input rows, M output rows, E experts, D hidden size, S expert size, I input features, O output
// features, T shares. Matrices are row-major.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

extern "C" {
// Of the BLAS that torch itself is linked to. Within a parallel region it runs on the calling thread.
void sgemm_(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*,
            const float*, const int*, const float*, float*, const int*);
void dgemm_(const char*, const char*, const int*, const int*, const int*, const double*, const double*, const int*,
            const double*, const int*, const double*, double*, const int*);
}

namespace {

constexpr int64_t kPieceBytes = 512 * 1024;  // of gathered rows: a core's second-level cache, together with a matrix
constexpr int64_t kFewRows = 4;              // up to here a product is limited by reading the matrix

// ---- numbers -------------------------------------------------------------------------------------------------------

struct BFloat16 {
  uint16_t bits;
};

template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;  // what is multiplied and summed

template <class T>
inline Wide<T> widen(T value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
  } else {
    return Wide<T>(value);
  }
}

template <class T>
inline T narrow(Wide<T> value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (value != value) return {0x7fc0};
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};  // to the nearest, ties to even
  } else {
    return T(value);
  }
}

// ---- products ------------------------------------------------------------------------------------------------------

inline void blas(const char* ta, const char* tb, int m, int n, int k, const float* a, int lda, const float* b, int ldb,
                 float beta, float* c, int ldc) {
  const float one = 1;
  sgemm_(ta, tb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}

inline void blas(const char* ta, const char* tb, int m, int n, int k, const double* a, int lda, const double* b,
                 int ldb, double beta, double* c, int ldc) {
  const double one = 1;
  dgemm_(ta, tb, &m, &n, &k, &one, a, &lda, b, &ldb, &beta, c, &ldc);
}

// out [n, q] = left [n, p] matrix [p, q]
template <class W>
void multiply(const W* left, const W* matrix, W* out, int64_t n, int64_t p, int64_t q) {
  if (n > kFewRows) return blas("N", "N", q, n, p, matrix, q, left, p, W(0), out, q);
  std::fill(out, out + n * q, W(0));
  // A row of the matrix at a time: the processor sees by itself what comes next.
  for (int64_t i = 0; i < p; ++i)
    for (int64_t row = 0; row < n; ++row) {
      const W l = left[row * p + i];
      W* o = out + row * q;
#pragma omp simd
      for (int64_t j = 0; j < q; ++j) o[j] += l * matrix[i * q + j];
    }
}

// out [n, p] = left [n, q] matrixᵀ, matrix [p, q]
template <class W>
void multiply_transposed(const W* left, const W* matrix, W* out, int64_t n, int64_t p, int64_t q) {
  blas("T", "N", p, n, q, matrix, q, left, q, W(0), out, p);
}

// out [p, q] = leftᵀ right, left [n, p], right [n, q]; added to what is there if `more`
template <class W>
void outer(const W* left, const W* right, W* out, int64_t n, int64_t p, int64_t q, bool more) {
  blas("N", "T", q, p, n, right, q, left, p, W(more), out, q);
}

template <class W>
inline W dot(const W* a, const W* b, int64_t n) {
  W sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// ---- routes --------------------------------------------------------------------------------------------------------

struct Routes {
  const int64_t *order, *offsets;
  int64_t num_experts;

  int64_t first_of(int64_t share, int64_t shares) const { return offsets[num_experts] * share / shares; }

  int64_t expert_at(int64_t position) const {
    return std::upper_bound(offsets, offsets + num_experts + 1, position) - offsets - 1;
  }
};

// Call `work(expert, begin, end)` for the routes of a share, pieces of at most `limit` of them.
template <class Work>
void each_piece(const Routes& routes, int64_t share, int64_t shares, int64_t limit, Work work) {
  const int64_t stop = routes.first_of(share + 1, shares);
  int64_t begin = routes.first_of(share, shares);
  for (int64_t expert = begin < stop ? routes.expert_at(begin) : 0; begin < stop; ++expert) {
    const int64_t last = std::min(stop, routes.offsets[expert + 1]);
    while (begin < last) {
      const int64_t end = std::min(last, begin + limit);
      work(expert, begin, end);
      begin = end;
    }
  }
}

// The same, of routes that come as they are: a few are sorted more quickly here than by torch.
struct SortedRoutes {
  std::vector<int64_t> order, offsets;

  SortedRoutes(const int64_t* expert, int64_t num_routes, int64_t num_experts)
      : order(num_routes), offsets(num_experts + 2) {
    const auto bin = [&](int64_t route) { return std::min(uint64_t(expert[route]), uint64_t(num_experts)); };
    for (int64_t route = 0; route < num_routes; ++route) ++offsets[bin(route) + 1];
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
    std::vector<int64_t> next(offsets);
    for (int64_t route = 0; route < num_routes; ++route) order[next[bin(route)]++] = route;
  }

  Routes routes() const { return {order.data(), offsets.data(), int64_t(offsets.size()) - 2}; }
};

template <class W>
int64_t rows_of_a_piece(int64_t width, const Routes& routes) {
  const int64_t fit = std::max<int64_t>(16, kPieceBytes / (sizeof(W) * std::max<int64_t>(1, width)));
  return std::min(fit, std::max<int64_t>(1, routes.offsets[routes.num_experts]));
}

template <class W>
std::unique_ptr<W[]> room(int64_t numbers) {
  return std::unique_ptr<W[]>(new W[std::max<int64_t>(1, numbers)]);
}

// The matrix of an expert in the dtype of accumulation: itself, or a copy of it in `space`.
template <class T>
const Wide<T>* matrix_of(const T* matrices, int64_t expert, int64_t size, Wide<T>* space, int64_t& held) {
  if constexpr (std::is_same_v<T, Wide<T>>) {
    return matrices + expert * size;
  } else {
    if (held != expert)
      for (int64_t i = 0; i < size; ++i) space[i] = widen(matrices[expert * size + i]);
    held = expert;
    return space;
  }
}

template <class T>
constexpr int64_t copied(int64_t size) {
  return std::is_same_v<T, Wide<T>> ? 0 : size;
}

// rows [n, width] ← x[order / per_row]
template <class T>
void gather(const T* x, const int64_t* order, int64_t n, int64_t per_row, int64_t width, Wide<T>* rows) {
  for (int64_t i = 0; i < n; ++i) {
    const T* from = x + order[i] / per_row * width;
    if constexpr (std::is_same_v<T, Wide<T>>) {
      std::memcpy(rows + i * width, from, width * sizeof(T));
    } else {
      for (int64_t j = 0; j < width; ++j) rows[i * width + j] = widen(from[j]);
    }
  }
}

// y[order / per_row] += gate · rows [n, width]; gates: by route, or null
template <class W>
void scatter(W* y, const int64_t* order, int64_t n, int64_t per_row, int64_t width, const W* gates, const W* rows) {
  for (int64_t i = 0; i < n; ++i) {
    W* to = y + order[i] / per_row * width;
    const W gate = gates ? gates[order[i]] : W(1);
    const W* from = rows + i * width;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) to[j] += gate * from[j];
  }
}

// Where each share adds up its own output of `size` numbers: the first in y itself if that needs no rounding.
template <class T>
struct Outputs {
  static constexpr bool in_place = std::is_same_v<T, Wide<T>>;
  T* y;
  Wide<T>* more;  // [T − 1, size] if in place, otherwise [T, size]
  int64_t size;

  Wide<T>* of(int64_t share) const {
    if constexpr (in_place) return share ? more + (share - 1) * size : y;
    return more + share * size;
  }

  Wide<T>* cleared(int64_t share) const {
    if (y) std::fill(of(share), of(share) + size, Wide<T>(0));
    return of(share);
  }

  // Called by all threads of a region, after a barrier: y ← the sum over shares, in their order, rounded.
  void sum(int64_t shares) const {
    if (!y || (in_place && shares == 1)) return;
#pragma omp for schedule(static)
    for (int64_t block = 0; block < size; block += 4096) {
      for (int64_t i = block; i < std::min(size, block + 4096); ++i) {
        Wide<T> sum = of(0)[i];
        for (int64_t share = 1; share < shares; ++share) sum += of(share)[i];
        y[i] = narrow<T>(sum);
      }
    }
  }
};

// The gradient of the experts' matrices as one share sees it. What a share knows of an expert that an earlier share began
// is summed apart, in `rests`, and added when all are done.
template <class W>
struct MatrixGradient {
  W *gradient, *rests;  // [E, size] and [T − 1, size]
  int64_t size;

  W* target(const Routes& routes, int64_t share, int64_t shares, int64_t expert) const {
    const bool begun_before = routes.first_of(share, shares) > routes.offsets[expert];
    return begun_before ? rests + (share - 1) * size : gradient + expert * size;
  }

  // Whether rows of this expert before `begin` went to the same target.
  static bool more(const Routes& routes, int64_t share, int64_t shares, int64_t expert, int64_t begin) {
    return begin > std::max(routes.offsets[expert], routes.first_of(share, shares));
  }

  // Called by all threads of a region, after a barrier.
  void finish(const Routes& routes, int64_t shares) const {
    if (!gradient) return;
    for (int64_t share = 1; share < shares; ++share) {
      const int64_t begin = routes.first_of(share, shares);
      if (begin == routes.first_of(share + 1, shares)) continue;
      const int64_t expert = routes.expert_at(begin);
      if (begin == routes.offsets[expert]) continue;
#pragma omp for schedule(static)
      for (int64_t i = 0; i < size; ++i) gradient[expert * size + i] += rests[(share - 1) * size + i];
    }
#pragma omp for schedule(static)
    for (int64_t expert = 0; expert < routes.num_experts; ++expert)
      if (routes.offsets[expert] == routes.offsets[expert + 1])
        std::fill(gradient + expert * size, gradient + (expert + 1) * size, W(0));
  }
};

// ---- σ-MoE ---------------------------------------------------------------------------------------------------------

// y [N, D] = Σ gate · relu(x up) down; hidden: relu(x up), [R, S] in sorted order, or null.
template <class T>
void mlp(const T* x, const T* up, const T* down, Routes routes, const Wide<T>* gates, int64_t D, int64_t S,
         int64_t K, int64_t shares, Wide<T>* hidden, Outputs<T> outputs) {
  using W = Wide<T>;
#pragma omp parallel num_threads(shares)
  {
    const int64_t limit = rows_of_a_piece<W>(D, routes);
    const auto rows = room<W>(limit * D), few = room<W>(hidden ? 0 : limit * S);
    const auto up_space = room<W>(copied<T>(D * S)), down_space = room<W>(copied<T>(D * S));
    int64_t up_held = -1, down_held = -1;
#pragma omp for schedule(static, 1)
    for (int64_t share = 0; share < shares; ++share) {
      W* output = outputs.cleared(share);
      each_piece(routes, share, shares, limit, [&](int64_t expert, int64_t begin, int64_t end) {
        const int64_t n = end - begin;
        W* h = hidden ? hidden + begin * S : few.get();
        gather(x, routes.order + begin, n, K, D, rows.get());
        multiply(rows.get(), matrix_of(up, expert, D * S, up_space.get(), up_held), h, n, D, S);
        for (int64_t i = 0; i < n * S; ++i) h[i] = h[i] < 0 ? W(0) : h[i];
        multiply(h, matrix_of(down, expert, D * S, down_space.get(), down_held), rows.get(), n, S, D);
        scatter(output, routes.order + begin, n, K, D, gates, rows.get());
      });
    }
    outputs.sum(shares);
  }
}

// With H = hidden and A = dy downᵀ for the rows of an expert: dgate = rowsum(H · A), which spares the output of the down
// projection; ddown = (gate · H)ᵀ dy; with B = gate · A where H > 0: dup = xᵀ B and dx = B upᵀ. What is not needed is
// null; dgates [R] is zero at first.
template <class T>
void mlp_backward(const T* dy, const T* x, const T* up, const T* down, Routes routes, const Wide<T>* gates,
                  const Wide<T>* hidden, int64_t D, int64_t S, int64_t K, int64_t shares,
                  Outputs<T> outputs, MatrixGradient<Wide<T>> dup, MatrixGradient<Wide<T>> ddown, Wide<T>* dgates) {
  using W = Wide<T>;
  const bool need_up = dup.gradient, need_down = ddown.gradient, need_x = outputs.y;
#pragma omp parallel num_threads(shares)
  {
    const int64_t limit = rows_of_a_piece<W>(D, routes);
    const auto rows = room<W>(limit * D), a = room<W>(limit * S), gated = room<W>(need_down ? limit * S : 0);
    const auto up_space = room<W>(copied<T>(D * S)), down_space = room<W>(copied<T>(D * S));
    int64_t up_held = -1, down_held = -1;
#pragma omp for schedule(static, 1)
    for (int64_t share = 0; share < shares; ++share) {
      W* output = outputs.cleared(share);
      each_piece(routes, share, shares, limit, [&](int64_t expert, int64_t begin, int64_t end) {
        const int64_t n = end - begin, *order = routes.order + begin;
        const W* h = hidden + begin * S;
        const bool more = MatrixGradient<W>::more(routes, share, shares, expert, begin);
        gather(dy, order, n, K, D, rows.get());
        multiply_transposed(rows.get(), matrix_of(down, expert, D * S, down_space.get(), down_held), a.get(), n, S, D);
        for (int64_t i = 0; i < n; ++i) {
          const W gate = gates[order[i]];
          if (dgates) dgates[order[i]] = dot(h + i * S, a.get() + i * S, S);
          for (int64_t s = i * S; s < (i + 1) * S; ++s) {
            if (need_down) gated[s] = gate * h[s];
            a[s] = h[s] <= 0 ? W(0) : gate * a[s];
          }
        }
        if (need_down) outer(gated.get(), rows.get(), ddown.target(routes, share, shares, expert), n, S, D, more);
        if (need_up) {
          gather(x, order, n, K, D, rows.get());
          outer(rows.get(), a.get(), dup.target(routes, share, shares, expert), n, D, S, more);
        }
        if (need_x) {
          multiply_transposed(a.get(), matrix_of(up, expert, D * S, up_space.get(), up_held), rows.get(), n, D, S);
          scatter(output, order, n, K, D, static_cast<const W*>(nullptr), rows.get());
        }
      });
    }
    outputs.sum(shares);
    dup.finish(routes, shares);
    ddown.finish(routes, shares);
  }
}

// ---- SwitchHead's projections --------------------------------------------------------------------------------------

// y [M, O] = Σ gate · x weight; gates: [R] or null. Route r reads input row r / per_input and adds to output row
// r / per_output.
template <class T>
void linear(const T* x, const T* weight, Routes routes, const Wide<T>* gates, int64_t I, int64_t O,
            int64_t per_input, int64_t per_output, int64_t shares, Outputs<T> outputs) {
  using W = Wide<T>;
#pragma omp parallel num_threads(shares)
  {
    const int64_t limit = rows_of_a_piece<W>(std::max(I, O), routes);
    const auto rows = room<W>(limit * I), products = room<W>(limit * O), space = room<W>(copied<T>(I * O));
    int64_t held = -1;
#pragma omp for schedule(static, 1)
    for (int64_t share = 0; share < shares; ++share) {
      W* output = outputs.cleared(share);
      each_piece(routes, share, shares, limit, [&](int64_t expert, int64_t begin, int64_t end) {
        const int64_t n = end - begin, *order = routes.order + begin;
        gather(x, order, n, per_input, I, rows.get());
        multiply(rows.get(), matrix_of(weight, expert, I * O, space.get(), held), products.get(), n, I, O);
        scatter(output, order, n, per_output, O, gates, products.get());
      });
    }
    outputs.sum(shares);
  }
}

// With A = dy weightᵀ for the rows of an expert: dgate = rowsum(x · A); dweight = xᵀ (gate · dy); dx = gate · A.
template <class T>
void linear_backward(const T* dy, const T* x, const T* weight, Routes routes, const Wide<T>* gates,
                     int64_t I, int64_t O, int64_t per_input, int64_t per_output, int64_t shares, Outputs<T> outputs,
                     MatrixGradient<Wide<T>> dweight, Wide<T>* dgates) {
  using W = Wide<T>;
  const bool need_weight = dweight.gradient, need_x = outputs.y;
#pragma omp parallel num_threads(shares)
  {
    const int64_t limit = rows_of_a_piece<W>(std::max(I, O), routes);
    const auto rows = room<W>(limit * I), a = room<W>(limit * I), dz = room<W>(limit * O);
    const auto space = room<W>(copied<T>(I * O));
    int64_t held = -1;
#pragma omp for schedule(static, 1)
    for (int64_t share = 0; share < shares; ++share) {
      W* output = outputs.cleared(share);
      each_piece(routes, share, shares, limit, [&](int64_t expert, int64_t begin, int64_t end) {
        const int64_t n = end - begin, *order = routes.order + begin;
        gather(dy, order, n, per_output, O, dz.get());
        if (need_x || dgates)
          multiply_transposed(dz.get(), matrix_of(weight, expert, I * O, space.get(), held), a.get(), n, I, O);
        if (need_x) scatter(output, order, n, per_input, I, gates, a.get());
        if (need_weight || dgates) gather(x, order, n, per_input, I, rows.get());
        for (int64_t i = 0; i < n && gates; ++i) {
          if (dgates) dgates[order[i]] = dot(rows.get() + i * I, a.get() + i * I, I);
          if (need_weight)
            for (int64_t o = i * O; o < (i + 1) * O; ++o) dz[o] *= gates[order[i]];
        }
        if (need_weight)
          outer(rows.get(), dz.get(), dweight.target(routes, share, shares, expert), n, I, O,
                MatrixGradient<W>::more(routes, share, shares, expert, begin));
      });
    }
    outputs.sum(shares);
    dweight.finish(routes, shares);
  }
}

#include "native_step.h"

}  // namespace

#define MOEUT_EXPORT(NAME, T)                                                                                          \
  extern "C" void moeut_mlp_##NAME(const T* x, const T* up, const T* down, const int64_t* order,                       \
                                   const int64_t* offsets, const Wide<T>* gates, Wide<T>* hidden, T* y,                \
                                   Wide<T>* more, int64_t E, int64_t N, int64_t D, int64_t S, int64_t K,               \
                                   int64_t shares) {                                                                   \
    mlp<T>(x, up, down, {order, offsets, E}, gates, D, S, K, shares, hidden, {y, more, N * D});                        \
  }                                                                                                                    \
  extern "C" void moeut_mlp_backward_##NAME(                                                                           \
      const T* dy, const T* x, const T* up, const T* down, const int64_t* order, const int64_t* offsets,               \
      const Wide<T>* gates, const Wide<T>* hidden, T* dx, Wide<T>* more, Wide<T>* dup, Wide<T>* up_rests,              \
      Wide<T>* ddown, Wide<T>* down_rests, Wide<T>* dgates, int64_t E, int64_t N, int64_t D, int64_t S, int64_t K,     \
      int64_t shares) {                                                                                                \
    mlp_backward<T>(dy, x, up, down, {order, offsets, E}, gates, hidden, D, S, K, shares, {dx, more, N * D},           \
                    {dup, up_rests, D * S}, {ddown, down_rests, D * S}, dgates);                                       \
  }                                                                                                                    \
  extern "C" void moeut_linear_##NAME(const T* x, const T* weight, const int64_t* order, const int64_t* offsets,       \
                                      const Wide<T>* gates, T* y, Wide<T>* more, int64_t E, int64_t M, int64_t I,      \
                                      int64_t O, int64_t per_input, int64_t per_output, int64_t shares) {              \
    linear<T>(x, weight, {order, offsets, E}, gates, I, O, per_input, per_output, shares, {y, more, M * O});           \
  }                                                                                                                    \
  extern "C" void moeut_few_mlp_##NAME(const T* x, const T* up, const T* down, const int64_t* expert,                  \
                                       const Wide<T>* gates, T* y, int64_t E, int64_t N, int64_t D, int64_t S,         \
                                       int64_t R, int64_t shares) {                                                    \
    const SortedRoutes sorted(expert, R, E);                                                                           \
    const auto more = room<Wide<T>>((shares - Outputs<T>::in_place) * N * D);                                          \
    mlp<T>(x, up, down, sorted.routes(), gates, D, S, R / std::max<int64_t>(1, N), shares, nullptr,                    \
           {y, more.get(), N * D});                                                                                    \
  }                                                                                                                    \
  extern "C" void moeut_few_linear_##NAME(const T* x, const T* weight, const int64_t* expert, const Wide<T>* gates,    \
                                          T* y, int64_t E, int64_t N, int64_t M, int64_t I, int64_t O, int64_t R,      \
                                          int64_t shares) {                                                            \
    const SortedRoutes sorted(expert, R, E);                                                                           \
    const auto more = room<Wide<T>>((shares - Outputs<T>::in_place) * M * O);                                          \
    linear<T>(x, weight, sorted.routes(), gates, I, O, R / std::max<int64_t>(1, N), R / std::max<int64_t>(1, M),       \
              shares, {y, more.get(), M * O});                                                                         \
  }                                                                                                                    \
  extern "C" void moeut_linear_backward_##NAME(                                                                        \
      const T* dy, const T* x, const T* weight, const int64_t* order, const int64_t* offsets, const Wide<T>* gates,    \
      T* dx, Wide<T>* more, Wide<T>* dweight, Wide<T>* rests, Wide<T>* dgates, int64_t E, int64_t N, int64_t I,        \
      int64_t O, int64_t per_input, int64_t per_output, int64_t shares) {                                              \
    linear_backward<T>(dy, x, weight, {order, offsets, E}, gates, I, O, per_input, per_output, shares,                 \
                       {dx, more, N * I}, {dweight, rests, I * O}, dgates);                                            \
  }

MOEUT_EXPORT(float64, double)
MOEUT_EXPORT(float32, float)
MOEUT_EXPORT(bfloat16, BFloat16)
MOEUT_EXPORT(float16, _Float16)
MOEUT_EXPORT_STEP(float64, double)
MOEUT_EXPORT_STEP(float32, float)
