// The two expert operations on a CPU, each thread by itself (see native.py for how this is built and called).
//
// The routes, sorted by expert, are cut into T shares, one for each thread: share t has the positions from t/T to (t+1)/T,
// or, of few routes, as many matrices as another. A thread goes through the experts of its share, a piece of rows at a time:
// gather the rows, multiply, and add the results to the output in the order of the routes. Threads do not wait for each
// other, a piece stays in or near the core's own cache, and each share has an output of its own; these are summed at the
// end, in order. So the same inputs give the same bits, whichever thread is faster.
//
// Letters: R routes, N input rows, M output rows, E experts, D hidden size, S expert size, I input features, O output
// features, T shares. Matrices are row-major.

#include <cmath>
#include <functional>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <vector>

#include "products.h"

namespace {

using namespace moeut;

// Of the rows of a piece: they and a matrix stay in or near a core's own cache. With fewer, most experts of a large model
// need a second piece, which reads the gradient of the matrix back to add to it.
constexpr int64_t kPieceBytes = 1024 * 1024;

// ---- threads -------------------------------------------------------------------------------------------------------

// All threads of a region call `work`; what it calls shares the work out among them, and makes them wait for each other.
template <class Work>
void on_threads(int64_t shares, Work work) {
#pragma omp parallel num_threads(shares)
  work();
}

// ---- routes --------------------------------------------------------------------------------------------------------

struct Routes {
  const int64_t *order, *offsets;
  int64_t num_experts;
  const int64_t* cuts = nullptr;  // [T + 1], where shares begin if not evenly

  int64_t first_of(int64_t share, int64_t shares) const {
    return cuts ? cuts[share] : offsets[num_experts] * share / shares;
  }

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

// The same, of routes that come as they are: a few are sorted more quickly here than by torch. Where most experts have few
// rows, reading their matrices takes the time: a share has as many of them as another, and reads none that another reads.
struct SortedRoutes {
  std::vector<int64_t> order, offsets, cuts;

  SortedRoutes(const int64_t* expert, int64_t num_routes, int64_t num_experts, int64_t shares)
      : order(num_routes), offsets(num_experts + 2), cuts(shares + 1) {
    const auto bin = [&](int64_t route) { return std::min(uint64_t(expert[route]), uint64_t(num_experts)); };
    for (int64_t route = 0; route < num_routes; ++route) ++offsets[bin(route) + 1];
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
    std::vector<int64_t> next(offsets);
    for (int64_t route = 0; route < num_routes; ++route) order[next[bin(route)]++] = route;

    const auto rows = [&](int64_t e) { return offsets[e + 1] - offsets[e]; };
    const auto cost = [&](int64_t e) { return rows(e) ? std::max(rows(e), kFewRows) : 0; };
    int64_t all = 0, done = 0, share = 0;
    for (int64_t e = 0; e < num_experts; ++e) all += cost(e);
    for (int64_t e = 0; e < num_experts; done += cost(e++))
      for (; share < shares && all * share < (done + cost(e)) * shares; ++share) {
        const int64_t within = (all * share / shares - done) * rows(e) / cost(e);
        cuts[share] = offsets[e] + (rows(e) > kFewRows ? within : 2 * within < rows(e) ? 0 : rows(e));
      }
    for (; share <= shares; ++share) cuts[share] = offsets[num_experts];
  }

  Routes routes() const { return {order.data(), offsets.data(), int64_t(offsets.size()) - 2, cuts.data()}; }
};

template <class W>
int64_t rows_of_a_piece(int64_t width, const Routes& routes) {
  const int64_t fit = std::max<int64_t>(16, kPieceBytes / (sizeof(W) * std::max<int64_t>(1, width)));
  return std::min(fit, std::max<int64_t>(1, routes.offsets[routes.num_experts]));
}

// The rows of x [.., width] that the routes of a piece read, widened where they must be.
template <class T>
struct ReadRows {
  using W = Wide<T>;
  static constexpr bool copied = !std::is_same_v<T, W>;
  const T* x;
  int64_t per_row, width;
  std::unique_ptr<W[]> space;
  std::unique_ptr<const T*[]> rows;
  std::unique_ptr<const W*[]> wide;

  ReadRows(const T* x, int64_t per_row, int64_t width, int64_t limit)
      : x(x), per_row(per_row), width(width), space(room<W>(copied ? limit * width : 0)),
        rows(room<const T*>(limit)), wide(room<const W*>(limit)) {}

  void find(const int64_t* order, int64_t n) {
    for (int64_t i = 0; i < n; ++i) rows[i] = x + order[i] / per_row * width;
  }

  // Those found last.
  AsRows<W> widened(int64_t n) {
    if constexpr (!copied) return {rows.get()};
    for (int64_t i = 0; i < n; ++i) {
      W* to = space.get() + i * width;
      for (int64_t j = 0; j < width; ++j) to[j] = widen(rows[i][j]);
      wide[i] = to;
    }
    return {wide.get()};
  }

  const T* operator()(int64_t i) const { return rows[i]; }
};

// The rows of an output that the routes of a piece add to, and their gates.
template <class W>
struct WrittenRows {
  std::unique_ptr<W*[]> rows;
  std::unique_ptr<W[]> weights;

  explicit WrittenRows(int64_t limit) : rows(room<W*>(limit)), weights(room<W>(limit)) {}

  AddToRows<W> find(W* output, const int64_t* order, int64_t n, int64_t per_row, int64_t width, const W* gates) {
    for (int64_t i = 0; i < n; ++i) {
      rows[i] = output + order[i] / per_row * width;
      if (gates) weights[i] = gates[order[i]];
    }
    return {rows.get(), gates ? weights.get() : nullptr};
  }
};

// Where each share adds up its own output of `size` numbers: the first in y itself if that needs no rounding.
template <class T>
struct Outputs {
  static constexpr bool in_place = std::is_same_v<T, Wide<T>>;
  T* y;
  Wide<T>* more;  // [T − 1, size] if in place, otherwise [T, size]
  int64_t size;
  const T* start = nullptr;  // [size], what the sum is added to, or null

  Wide<T>* of(int64_t share) const {
    if constexpr (in_place) return share ? more + (share - 1) * size : y;
    return more + share * size;
  }

  Wide<T>* begun(int64_t share) const {
    Wide<T>* output = of(share);
    for (int64_t i = 0; y && i < size; ++i) output[i] = start && !share ? widen(start[i]) : Wide<T>(0);
    return output;
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
//
// These functions, and SwitchHead's, are called by all threads of a region, which leave them together.

// y [N, D] = Σ gate · relu(x up) down; hidden: relu(x up), [R, S] in sorted order, or null.
template <class T>
void mlp(const T* x, const T* up, const T* down, Routes routes, const Wide<T>* gates, int64_t D, int64_t S,
         int64_t K, int64_t shares, Wide<T>* hidden, Outputs<T> outputs) {
  using W = Wide<T>;
  const int64_t limit = rows_of_a_piece<W>(D, routes);
  const auto space = room<W>(hidden ? 0 : limit * S);
  ReadRows<T> rows(x, K, D, limit);
  WrittenRows<W> written(limit);
  Matrices<T> ups(up, D, S), downs(down, S, D);
#pragma omp for schedule(static, 1)
  for (int64_t share = 0; share < shares; ++share) {
    W* output = outputs.begun(share);
    each_piece(routes, share, shares, limit, [&](int64_t expert, int64_t begin, int64_t end) {
      const int64_t n = end - begin, *order = routes.order + begin;
      W* h = hidden ? hidden + begin * S : space.get();
      rows.find(order, n);
      ups.multiply(expert, rows.widened(n), n, Into<W, How::kRelu>{h, S});
      downs.multiply(expert, AsMatrix<W>{h, S}, n, written.find(output, order, n, K, D, gates));
    });
  }
  outputs.sum(shares);
}

// With H = hidden and A = dy downᵀ for the rows of an expert: dgate = rowsum(H · A), which spares the output of the down
// projection; ddown = (gate · H)ᵀ dy; with B = gate · A where H > 0: dup = xᵀ B and dx = B upᵀ. What is not needed is
// null; dgates [R] is zero at first.
template <class T>
void mlp_backward(const T* dy, const T* x, const T* up, const T* down, Routes routes, const Wide<T>* gates,
                  const Wide<T>* hidden, int64_t D, int64_t S, int64_t K, int64_t shares,
                  Outputs<T> outputs, MatrixGradient<Wide<T>> dup, MatrixGradient<Wide<T>> ddown, Wide<T>* dgates) {
  using W = Wide<T>;
  const int64_t limit = rows_of_a_piece<W>(D, routes);
  const auto a = room<W>(limit * S);
  ReadRows<T> rows(x, K, D, limit), d_rows(dy, K, D, limit);
  WrittenRows<W> written(limit);
  Matrices<T, true> downs(down, D, S), ups(up, S, D);
  Outer<W> outer_up(D, S, limit, dup.gradient), outer_down(S, D, limit, ddown.gradient);
#pragma omp for schedule(static, 1)
  for (int64_t share = 0; share < shares; ++share) {
    W* output = outputs.begun(share);
    each_piece(routes, share, shares, limit, [&](int64_t expert, int64_t begin, int64_t end) {
      const int64_t n = end - begin, *order = routes.order + begin;
      const W* h = hidden + begin * S;
      const bool more = MatrixGradient<W>::more(routes, share, shares, expert, begin);
      d_rows.find(order, n);
      downs.multiply(expert, d_rows.widened(n), n, Into<W, How::kWrite>{a.get(), S});
      for (int64_t i = 0; i < n; ++i) {
        const W gate = gates[order[i]];
        if (dgates) dgates[order[i]] = dot(h + i * S, a.get() + i * S, S);
        gate_where_positive(h + i * S, gate, a.get() + i * S, S);
      }
      if (ddown.gradient)
        outer_down(n, RowsOf<W>{h, S}, ByRoute<W>{gates, order}, std::cref(d_rows), One(),
                   ddown.target(routes, share, shares, expert), more);
      if (dup.gradient) {
        rows.find(order, n);
        outer_up(n, std::cref(rows), One(), RowsOf<W>{a.get(), S}, One(), dup.target(routes, share, shares, expert),
                 more);
      }
      if (outputs.y)
        ups.multiply(expert, AsMatrix<W>{a.get(), S}, n,
                     written.find(output, order, n, K, D, static_cast<const W*>(nullptr)));
    });
  }
  outputs.sum(shares);
  dup.finish(routes, shares);
  ddown.finish(routes, shares);
}

// ---- SwitchHead's projections --------------------------------------------------------------------------------------

// y [M, O] = Σ gate · x weight; gates: [R] or null. Route r reads input row r / per_input and adds to output row
// r / per_output.
template <class T>
void linear(const T* x, const T* weight, Routes routes, const Wide<T>* gates, int64_t I, int64_t O,
            int64_t per_input, int64_t per_output, int64_t shares, Outputs<T> outputs) {
  using W = Wide<T>;
  const int64_t limit = rows_of_a_piece<W>(std::max(I, O), routes);
  ReadRows<T> rows(x, per_input, I, limit);
  WrittenRows<W> written(limit);
  Matrices<T> weights(weight, I, O);
#pragma omp for schedule(static, 1)
  for (int64_t share = 0; share < shares; ++share) {
    W* output = outputs.begun(share);
    each_piece(routes, share, shares, limit, [&](int64_t expert, int64_t begin, int64_t end) {
      const int64_t n = end - begin, *order = routes.order + begin;
      rows.find(order, n);
      weights.multiply(expert, rows.widened(n), n, written.find(output, order, n, per_output, O, gates));
    });
  }
  outputs.sum(shares);
}

// With A = dy weightᵀ for the rows of an expert: dgate = rowsum(x · A); dweight = xᵀ (gate · dy); dx = gate · A.
template <class T>
void linear_backward(const T* dy, const T* x, const T* weight, Routes routes, const Wide<T>* gates,
                     int64_t I, int64_t O, int64_t per_input, int64_t per_output, int64_t shares, Outputs<T> outputs,
                     MatrixGradient<Wide<T>> dweight, Wide<T>* dgates) {
  using W = Wide<T>;
  const int64_t limit = rows_of_a_piece<W>(std::max(I, O), routes);
  const auto a = room<W>(dgates ? limit * I : 0);
  ReadRows<T> rows(x, per_input, I, limit), d_rows(dy, per_output, O, limit);
  WrittenRows<W> written(limit);
  Matrices<T, true> weights(weight, O, I);
  Outer<W> outer(I, O, limit, dweight.gradient);
#pragma omp for schedule(static, 1)
  for (int64_t share = 0; share < shares; ++share) {
    W* output = outputs.begun(share);
    each_piece(routes, share, shares, limit, [&](int64_t expert, int64_t begin, int64_t end) {
      const int64_t n = end - begin, *order = routes.order + begin;
      d_rows.find(order, n);
      rows.find(order, n);
      if (dgates) {
        weights.multiply(expert, d_rows.widened(n), n, Into<W, How::kWrite>{a.get(), I});
        const W* const* wide = rows.widened(n).rows;
        for (int64_t i = 0; i < n; ++i) dgates[order[i]] = dot(wide[i], a.get() + i * I, I);
      }
      if (outputs.y) {
        const auto add = written.find(output, order, n, per_input, I, gates);
        if (dgates)
          for (int64_t i = 0; i < n; ++i) add(i, 0, I, a.get() + i * I);
        else
          weights.multiply(expert, d_rows.widened(n), n, add);
      }
      if (dweight.gradient) {
        W* target = dweight.target(routes, share, shares, expert);
        const bool more = MatrixGradient<W>::more(routes, share, shares, expert, begin);
        if (gates)
          outer(n, std::cref(rows), One(), std::cref(d_rows), ByRoute<W>{gates, order}, target, more);
        else
          outer(n, std::cref(rows), One(), std::cref(d_rows), One(), target, more);
      }
    });
  }
  outputs.sum(shares);
  dweight.finish(routes, shares);
}

#include "native_step.h"

}  // namespace

#define MOEUT_EXPORT(NAME, T)                                                                                          \
  extern "C" void moeut_mlp_##NAME(const T* x, const T* up, const T* down, const int64_t* order,                       \
                                   const int64_t* offsets, const Wide<T>* gates, Wide<T>* hidden, T* y,                \
                                   Wide<T>* more, int64_t E, int64_t N, int64_t D, int64_t S, int64_t K,               \
                                   int64_t shares) {                                                                   \
    on_threads(shares, [&] {                                                                                           \
      mlp<T>(x, up, down, {order, offsets, E}, gates, D, S, K, shares, hidden, {y, more, N * D});                      \
    });                                                                                                                \
  }                                                                                                                    \
  extern "C" void moeut_mlp_backward_##NAME(                                                                           \
      const T* dy, const T* x, const T* up, const T* down, const int64_t* order, const int64_t* offsets,               \
      const Wide<T>* gates, const Wide<T>* hidden, T* dx, Wide<T>* more, Wide<T>* dup, Wide<T>* up_rests,              \
      Wide<T>* ddown, Wide<T>* down_rests, Wide<T>* dgates, int64_t E, int64_t N, int64_t D, int64_t S, int64_t K,     \
      int64_t shares) {                                                                                                \
    on_threads(shares, [&] {                                                                                           \
      mlp_backward<T>(dy, x, up, down, {order, offsets, E}, gates, hidden, D, S, K, shares, {dx, more, N * D},         \
                      {dup, up_rests, D * S}, {ddown, down_rests, D * S}, dgates);                                     \
    });                                                                                                                \
  }                                                                                                                    \
  extern "C" void moeut_linear_##NAME(const T* x, const T* weight, const int64_t* order, const int64_t* offsets,       \
                                      const Wide<T>* gates, T* y, Wide<T>* more, int64_t E, int64_t M, int64_t I,      \
                                      int64_t O, int64_t per_input, int64_t per_output, int64_t shares) {              \
    on_threads(shares, [&] {                                                                                           \
      linear<T>(x, weight, {order, offsets, E}, gates, I, O, per_input, per_output, shares, {y, more, M * O});         \
    });                                                                                                                \
  }                                                                                                                    \
  extern "C" void moeut_few_mlp_##NAME(const T* x, const T* up, const T* down, const int64_t* expert,                  \
                                       const Wide<T>* gates, T* y, int64_t E, int64_t N, int64_t D, int64_t S,         \
                                       int64_t R, int64_t shares) {                                                    \
    const SortedRoutes sorted(expert, R, E, shares);                                                                   \
    const auto more = room<Wide<T>>((shares - Outputs<T>::in_place) * N * D);                                          \
    on_threads(shares, [&] {                                                                                           \
      mlp<T>(x, up, down, sorted.routes(), gates, D, S, R / std::max<int64_t>(1, N), shares, nullptr,                  \
             {y, more.get(), N * D});                                                                                  \
    });                                                                                                                \
  }                                                                                                                    \
  extern "C" void moeut_few_linear_##NAME(const T* x, const T* weight, const int64_t* expert, const Wide<T>* gates,    \
                                          T* y, int64_t E, int64_t N, int64_t M, int64_t I, int64_t O, int64_t R,      \
                                          int64_t shares) {                                                            \
    const SortedRoutes sorted(expert, R, E, shares);                                                                   \
    const auto more = room<Wide<T>>((shares - Outputs<T>::in_place) * M * O);                                          \
    on_threads(shares, [&] {                                                                                           \
      linear<T>(x, weight, sorted.routes(), gates, I, O, R / std::max<int64_t>(1, N), R / std::max<int64_t>(1, M),     \
                shares, {y, more.get(), M * O});                                                                       \
    });                                                                                                                \
  }                                                                                                                    \
  extern "C" void moeut_linear_backward_##NAME(                                                                        \
      const T* dy, const T* x, const T* weight, const int64_t* order, const int64_t* offsets, const Wide<T>* gates,    \
      T* dx, Wide<T>* more, Wide<T>* dweight, Wide<T>* rests, Wide<T>* dgates, int64_t E, int64_t N, int64_t I,        \
      int64_t O, int64_t per_input, int64_t per_output, int64_t shares) {                                              \
    on_threads(shares, [&] {                                                                                           \
      linear_backward<T>(dy, x, weight, {order, offsets, E}, gates, I, O, per_input, per_output, shares,               \
                         {dx, more, N * I}, {dweight, rests, I * O}, dgates);                                          \
    });                                                                                                                \
  }

MOEUT_EXPORT(float64, double)
MOEUT_EXPORT(float32, float)
MOEUT_EXPORT(bfloat16, BFloat16)
MOEUT_EXPORT(float16, _Float16)
MOEUT_EXPORT_STEP(float64, double)
MOEUT_EXPORT_STEP(float32, float)
