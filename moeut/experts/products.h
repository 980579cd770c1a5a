// Products of matrices on one thread: small ones, many of them, on rows that lie anywhere and may be 16 bits wide.
//
// A BLAS wants both sides in one piece and in one dtype, and spends as much on a product of 64 rows as on starting it. Here
// what an expert needs is part of the product: its rows are read where they lie, widened, transposed or scaled as they
// are copied, and the results are added to where they belong.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>

namespace moeut {

constexpr int64_t kFewRows = 4;  // up to here a product is limited by reading the matrix

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
//
// Everything is left [n, k] · right [k, q], computed in tiles of kRows × kColumns sums that stay in registers. The right
// side is copied into panels first, [q / kColumns, k, kColumns], so that a tile reads it from one end to the other; on the
// way it is widened, transposed, gathered or scaled. The left side is rows wherever they lie, or panels [n / kRows, k,
// kRows]. Each sum has one order of its own, whatever stands beside it.

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRows = 12;  // 24 of 32 registers hold sums
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRows = 6;  // 12 of 16
#else
constexpr int kVectorBytes = 16, kRows = 6;
#endif

template <class W>
using Vector __attribute__((vector_size(kVectorBytes), aligned(alignof(W)), may_alias)) = W;
template <class W>
constexpr int64_t kLanes = kVectorBytes / sizeof(W);
template <class W>
constexpr int64_t kColumns = 2 * kLanes<W>;

template <class W>
int64_t panels(int64_t k, int64_t q) {
  return k * ((q + kColumns<W> - 1) / kColumns<W> * kColumns<W>);
}

// to ← factor · from, whole vectors of numbers. Written out, because compilers take such a short loop apart.
template <int64_t vectors, class W, class T>
inline void scaled(W* to, const T* from, W factor) {
  Vector<W> part[vectors];
  if constexpr (std::is_same_v<T, W>) {
    for (int64_t v = 0; v < vectors; ++v) part[v] = factor * reinterpret_cast<const Vector<W>*>(from)[v];
  } else {
    W wide[vectors * kLanes<W>];
    for (int64_t c = 0; c < vectors * kLanes<W>; ++c) wide[c] = factor * widen(from[c]);
    std::memcpy(part, wide, sizeof part);
  }
  std::memcpy(to, part, sizeof part);
}

// right ← [k, q] with the rows row(t), each times scale(t)
template <class W, class Row, class Scale>
void pack_right(int64_t k, int64_t q, W* right, Row row, Scale scale) {
  for (int64_t t = 0; t < k; ++t) {
    const auto* from = row(t);
    const W factor = scale(t);
    W* to = right + t * kColumns<W>;
    int64_t j = 0;
    for (; j + kColumns<W> <= q; j += kColumns<W>, to += k * kColumns<W>) scaled<2>(to, from + j, factor);
    for (int64_t c = 0; j < q && c < kColumns<W>; ++c) to[c] = j + c < q ? factor * widen(from[j + c]) : W(0);
  }
}

// right ← matrixᵀ [k, q], matrix [q, k]
template <class T>
void pack_right_transposed(int64_t k, int64_t q, Wide<T>* right, const T* matrix) {
  using W = Wide<T>;
  for (int64_t j = 0; j < q; j += kColumns<W>)
    for (int64_t t = 0; t < k; ++t, right += kColumns<W>) {
      const T* from = matrix + j * k + t;
      if (j + kColumns<W> <= q)
        for (int64_t c = 0; c < kColumns<W>; ++c) right[c] = widen(from[c * k]);
      else
        for (int64_t c = 0; c < kColumns<W>; ++c) right[c] = j + c < q ? widen(from[c * k]) : W(0);
    }
}

// left ← a panel [n, kRows]: the first columns, at most `columns`, of the rows row(t), each times scale(t). Whole vectors are
// copied where there are so many columns: the next row, or room for kRows more numbers, lies behind.
template <class W, class Row, class Scale>
void pack_left_panel(int64_t n, int64_t columns, W* left, Row row, Scale scale) {
  constexpr int64_t vectors = (kRows + kLanes<W> - 1) / kLanes<W>;
  for (int64_t t = 0; t < n; ++t, left += kRows) {
    const auto* from = row(t);
    const W factor = scale(t);
    if (columns >= vectors * kLanes<W>)
      scaled<vectors>(left, from, factor);
    else
      for (int c = 0; c < std::min<int64_t>(columns, kRows); ++c) left[c] = factor * widen(from[c]);
  }
}

struct One {
  int operator()(int64_t) const { return 1; }
};

template <class W>
struct ByRoute {  // gates of the routes of a piece
  const W* gates;
  const int64_t* order;
  W operator()(int64_t i) const { return gates[order[i]]; }
};

template <class W>
struct AsRows {
  const W* const* rows;
  W operator()(int i, int64_t t) const { return rows[i][t]; }
  AsRows from(int64_t i, int64_t) const { return {rows + i}; }
};

template <class W>
struct AsMatrix {  // rows of `width` numbers, one after the other
  const W* matrix;
  int64_t width;
  W operator()(int i, int64_t t) const { return matrix[i * width + t]; }
  AsMatrix from(int64_t i, int64_t) const { return {matrix + i * width, width}; }
};

template <class W>
struct AsPanels {
  const W* panel;
  W operator()(int i, int64_t t) const { return panel[t * kRows + i]; }
  AsPanels from(int64_t i, int64_t k) const { return {panel + i * k}; }
};

// What will be read next is fetched while a tile is computed, a line for each of its k steps: a core waits for few lines at a
// time, and asking for many at once would make it wait for all of them.
struct Nothing {
  void operator()(int64_t, int64_t) const {}
};

// Of rows that lie anywhere, the columns from `column` on: a line of each in the first tile, the next in the second, ..
template <class W, class Row>
struct LinesOf {
  Row row;
  int64_t column, width;
  void operator()(int64_t i, int64_t t) const {
    const int64_t at = column + i / kRows * int64_t(64 / sizeof(W));
    if (at < width) __builtin_prefetch(row(t) + at);
  }
};

template <int M, class W, class Left, class Use, class Ahead>
inline void tile(int64_t k, Left left, const W* right, int64_t i, int64_t j, int64_t columns, Use& use, Ahead ahead) {
  Vector<W> sums[M][2] = {};
  for (int m = 0; m < M; ++m) use.soon(i + m, j);
  for (int64_t t = 0; t < k; ++t, right += kColumns<W>) {
    const auto* pair = reinterpret_cast<const Vector<W>*>(right);
    ahead(i, t);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const W factor = left(m, t);
      sums[m][0] += factor * pair[0];
      sums[m][1] += factor * pair[1];
    }
  }
  for (int m = 0; m < M; ++m) {
    const W* of_row = reinterpret_cast<const W*>(sums[m]);
    if (columns == kColumns<W>)
      use(i + m, j, kColumns<W>, of_row);
    else
      use(i + m, j, columns, of_row);
  }
}

template <int M, class W, class Left, class Use, class Ahead>
inline void last_tile(int64_t rows, int64_t k, Left left, const W* right, int64_t i, int64_t j, int64_t columns,
                      Use& use, Ahead ahead) {
  if (rows == M) return tile<M>(k, left, right, i, j, columns, use, ahead);
  if constexpr (M > 1) last_tile<M - 1>(rows, k, left, right, i, j, columns, use, ahead);
}

// One panel of the right side, columns from j on.
template <class W, class Left, class Use, class Ahead>
void product_with_panel(int64_t n, int64_t k, int64_t columns, Left left, const W* panel, int64_t j, Use& use,
                        Ahead ahead) {
  int64_t i = 0;
  for (; i + kRows <= n; i += kRows) tile<kRows>(k, left.from(i, k), panel, i, j, columns, use, ahead);
  if (i < n) last_tile<kRows - 1>(n - i, k, left.from(i, k), panel, i, j, columns, use, ahead);
}

// Call use(i, j, columns, sums) for the sums of row i from column j on.
template <class W, class Left, class Use, class Ahead = Nothing>
void product(int64_t n, int64_t k, int64_t q, Left left, const W* right, Use use, Ahead ahead = {}) {
  for (int64_t j = 0; j < q; j += kColumns<W>, right += k * kColumns<W>) {
    const int64_t columns = std::min(kColumns<W>, q - j);
    if (j == 0)
      product_with_panel(n, k, columns, left, right, j, use, ahead);
    else
      product_with_panel(n, k, columns, left, right, j, use, Nothing());
  }
}

// The same for few rows, reading the matrix [k, q] once where it lies.
template <class T, class Left, class Use>
void product_of_few(int64_t n, int64_t k, int64_t q, Left left, const T* matrix, Wide<T>* sums, Use use) {
  using W = Wide<T>;
  std::fill(sums, sums + n * q, W(0));
  // A row of the matrix at a time: the processor sees by itself what comes next.
  for (int64_t t = 0; t < k; ++t)
    for (int64_t i = 0; i < n; ++i) {
      const W factor = left(int(i), t);
      W* to = sums + i * q;
#pragma omp simd
      for (int64_t j = 0; j < q; ++j) to[j] += factor * widen(matrix[t * q + j]);
    }
  for (int64_t i = 0; i < n; ++i) use(i, 0, q, sums + i * q);
}

// What becomes of sums: written, their positive part written, or added to what is there.
enum class How { kWrite, kRelu, kAdd };

template <class W, How how>
struct Into {  // a matrix of `width` columns
  W* matrix;
  int64_t width;
  Into from(int64_t i) const { return {matrix + i * width, width}; }
  void soon(int64_t, int64_t) const {}
  inline void operator()(int64_t i, int64_t j, int64_t columns, const W* sums) const {
    W* to = matrix + i * width + j;
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c)
      to[c] = how == How::kAdd ? to[c] + sums[c] : how == How::kRelu && sums[c] < 0 ? W(0) : sums[c];
  }
};

template <class W>
struct AddToRows {  // wherever they lie, each weighted
  W* const* rows;
  const W* weights;  // or null
  void soon(int64_t i, int64_t j) const {
    for (int64_t c = 0; c < kColumns<W>; c += kLanes<W>) __builtin_prefetch(rows[i] + j + c, 1);
  }
  inline void operator()(int64_t i, int64_t j, int64_t columns, const W* sums) const {
    W* to = rows[i] + j;
    const W weight = weights ? weights[i] : W(1);
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) to[c] += weight * sums[c];
  }
};

// a ← gate · a where h > 0, elsewhere 0
template <class W>
inline void gate_where_positive(const W* h, W gate, W* a, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const W gated = gate * a[i];  // computed in any case, so that there is nothing to branch on
    a[i] = h[i] <= 0 ? W(0) : gated;
  }
}

template <class W>
inline W dot(const W* a, const W* b, int64_t n) {
  constexpr int64_t lanes = kLanes<W>, several = 4;  // sums, because one would wait for itself
  const auto at = [](const W* from) { return *reinterpret_cast<const Vector<W>*>(from); };
  Vector<W> sums[several] = {};
  int64_t i = 0;
  for (; i + several * lanes <= n; i += several * lanes)
    for (int64_t u = 0; u < several; ++u) sums[u] += at(a + i + u * lanes) * at(b + i + u * lanes);
  for (; i + lanes <= n; i += lanes) sums[0] += at(a + i) * at(b + i);
  for (int64_t u = 1; u < several; ++u) sums[0] += sums[u];
  W sum = 0;
  for (int64_t lane = 0; lane < lanes; ++lane) sum += sums[0][lane];
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// ---- with memory of their own --------------------------------------------------------------------------------------

template <class W>
std::unique_ptr<W[]> room(int64_t numbers) {
  return std::unique_ptr<W[]>(new W[std::max<int64_t>(1, numbers)]);
}

// Rows of a matrix of `width` columns, one after the other.
template <class W>
struct RowsOf {
  const W* matrix;
  int64_t width;
  const W* operator()(int64_t i) const { return matrix + i * width; }
};

// The experts' matrices as right sides [k, q], one of them packed at a time: [E, k, q], or [E, q, k] to be transposed.
template <class T, bool transposed = false>
struct Matrices {
  using W = Wide<T>;
  const T* matrices;
  int64_t k, q;
  std::unique_ptr<W[]> packed, few;
  int64_t held = -1;

  Matrices(const T* matrices, int64_t k, int64_t q)
      : matrices(matrices), k(k), q(q), few(room<W>(transposed ? 0 : kFewRows * q)) {}

  template <class Left, class Use>
  void multiply(int64_t expert, Left left, int64_t n, Use use) {
    const T* matrix = matrices + expert * k * q;
    if constexpr (!transposed)
      if (n <= kFewRows) return product_of_few(n, k, q, left, matrix, few.get(), use);
    if (held != expert) pack(matrix);
    held = expert;
    product(n, k, q, left, packed.get(), use);
  }

  void pack(const T* matrix) {
    if (!packed) packed = room<W>(panels<W>(k, q));
    if constexpr (transposed)
      pack_right_transposed(k, q, packed.get(), matrix);
    else
      pack_right(k, q, packed.get(), RowsOf<T>{matrix, q}, One());
  }
};

// leftᵀ right, left [n, p], right [n, q], rows as their functions give them: written, or added if `more`. The narrower side
// is packed as a whole; of the other, which may be longer than a cache, a panel at a time just before it is used.
template <class W>
struct Outer {
  int64_t p, q;
  std::unique_ptr<W[]> left, right;

  Outer(int64_t p, int64_t q, int64_t limit, bool needed)
      : p(p), q(q), left(room<W>(needed ? (limit + 1) * (p < q ? p + kRows : kRows) : 0)),
        right(room<W>(needed ? panels<W>(limit, p < q ? 1 : q) : 0)) {}

  template <class Left, class Right, class LeftScale, class RightScale>
  void operator()(int64_t n, Left left_row, LeftScale left_scale, Right right_row, RightScale right_scale, W* target,
                  bool more) {
    const auto multiply = [&](auto into) {
      if (p < q) {
        for (int64_t i = 0; i < p; i += kRows)
          pack_left_panel(n, p - i, left.get() + i * n, [&](int64_t t) { return left_row(t) + i; }, left_scale);
        for (int64_t j = 0; j < q; j += kColumns<W>) {
          const int64_t columns = std::min(kColumns<W>, q - j);
          pack_right(n, columns, right.get(), [&](int64_t t) { return right_row(t) + j; }, right_scale);
          product_with_panel(p, n, columns, AsPanels<W>{left.get()}, right.get(), j, into,
                             LinesOf<W, Right>{right_row, j + kColumns<W>, q});
        }
      } else {
        pack_right(n, q, right.get(), right_row, right_scale);
        for (int64_t i = 0; i < p; i += kRows) {
          pack_left_panel(n, p - i, left.get(), [&](int64_t t) { return left_row(t) + i; }, left_scale);
          // Of the next panel the first column may lie in the last line of this one, which is at hand.
          product(std::min<int64_t>(kRows, p - i), n, q, AsPanels<W>{left.get()}, right.get(), into.from(i),
                  LinesOf<W, Left>{left_row, i + kRows + int64_t(63 / sizeof(W)), p});
        }
      }
    };
    if (more)
      multiply(Into<W, How::kAdd>{target, q});
    else
      multiply(Into<W, How::kWrite>{target, q});
  }
};

}  // namespace moeut
