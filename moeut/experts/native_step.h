// One token of each sequence through one of the paper's layers (see moeut/model/native_step.py), in two halves: between
// them the caller puts the key and the value into its cache. Part of native.cpp.
//
// Letters: B sequences, d hidden size, H heads, P head size, A experts a head, K selected, N keys, E experts, S expert
// size. No 16-bit numbers here: T is what is summed, too.

// out [d] = layer norm of x [d]
template <class T>
void normalise(const T* x, const T* weight, const T* bias, T eps, int64_t d, T* out) {
  T mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
  for (int64_t i = 0; i < d; ++i) mean += x[i];
  mean /= d;
#pragma omp simd reduction(+ : variance)
  for (int64_t i = 0; i < d; ++i) variance += (x[i] - mean) * (x[i] - mean);
  const T scale = 1 / std::sqrt(variance / d + eps);
  for (int64_t i = 0; i < d; ++i) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

// A linear map: weight [rows, d], out [B, rows].
template <class T>
struct Map {
  const T* weight;
  int64_t rows;
  T* out;
};

// All maps of the normalised rows of x [B, d]; their rows are shared out among threads, four at a time, because one sum
// would wait for itself. normalised: [B, d].
template <class T>
void apply(std::initializer_list<Map<T>> maps, const T* x, const T* weight, const T* bias, T eps, int64_t B, int64_t d,
           T* normalised, int64_t shares) {
  for (int64_t b = 0; b < B; ++b) normalise(x + b * d, weight, bias, eps, d, normalised + b * d);
#pragma omp parallel num_threads(shares)
  for (const Map<T>& map : maps) {
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < map.rows; row += 4)
      for (int64_t b = 0; b < B; ++b) {
        const T* v = normalised + b * d;
        T* out = map.out + b * map.rows;
        if (row + 4 > map.rows) {
          for (int64_t last = row; last < map.rows; ++last) out[last] = dot(map.weight + last * d, v, d);
          continue;
        }
        const T *w0 = map.weight + row * d, *w1 = w0 + d, *w2 = w1 + d, *w3 = w2 + d;
        T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int64_t i = 0; i < d; ++i) {
          s0 += w0[i] * v[i];
          s1 += w1[i] * v[i];
          s2 += w2[i] * v[i];
          s3 += w3[i] * v[i];
        }
        out[row] = s0, out[row + 1] = s1, out[row + 2] = s2, out[row + 3] = s3;
      }
  }
}

// The K best of each group of E scores, NaN before all others, their numbers over all groups, and their sigmoids.
template <class T>
void choose(const T* scores, int64_t groups, int64_t E, int64_t K, int64_t* expert, T* gates, int64_t sequences) {
  const auto better = [](T a, T b) { return a > b || (a != a && b == b); };
  for (int64_t row = 0; row < sequences * groups; ++row) {
    const T* s = scores + row * E;
    int64_t* best = expert + row * K;
    for (int64_t e = 0; e < E; ++e) {
      int64_t place = std::min(e, K);
      if (place == K && !better(s[e], s[best[K - 1]])) continue;
      for (place = std::min(place, K - 1); place > 0 && better(s[e], s[best[place - 1]]); --place)
        best[place] = best[place - 1];
      best[place] = e;
    }
    for (int64_t k = 0; k < K; ++k) {
      gates[row * K + k] = 1 / (1 + std::exp(-s[best[k]]));
      best[k] += row % groups * E;
    }
  }
}

// Rotate the first 2 · half channels of x [P].
template <class T>
void rotate(T* x, const T* cos, const T* sin, int64_t half) {
  for (int64_t j = 0; j < half; ++j) {
    const T first = x[j], second = x[j + half];
    x[j] = first * cos[j] - second * sin[j];
    x[j + half] = second * cos[j] + first * sin[j];
  }
}

// What an attention head reads: entry (b, h, n) of a tensor [B, H, N, P] whose last dimension is dense.
template <class T>
struct Slot {
  const T* start;
  int64_t of_b, of_h, of_n;

  const T* at(int64_t b, int64_t h) const { return start + b * of_b + h * of_h; }
};

// out [B, H, P] = softmax(q kᵀ / √P) v for one query [B, H, P] of each head
template <class T>
void attend(const T* query, Slot<T> keys, Slot<T> values, int64_t B, int64_t H, int64_t N, int64_t P, T* out,
            int64_t shares) {
  const T scale = 1 / std::sqrt(T(P));
#pragma omp parallel num_threads(shares)
  {
    const auto weights = room<T>(N);
#pragma omp for schedule(static)
    for (int64_t head = 0; head < B * H; ++head) {
      const T *q = query + head * P, *k = keys.at(head / H, head % H), *v = values.at(head / H, head % H);
      T largest = -std::numeric_limits<T>::infinity(), sum = 0;
      for (int64_t n = 0; n < N; ++n) {
        weights[n] = scale * dot(q, k + n * keys.of_n, P);
        largest = std::max(largest, weights[n]);
      }
      T* o = out + head * P;
      std::fill(o, o + P, T(0));
      for (int64_t n = 0; n < N; ++n) {
        const T weight = std::exp(weights[n] - largest);
        sum += weight;
        const T* value = v + n * values.of_n;
#pragma omp simd
        for (int64_t p = 0; p < P; ++p) o[p] += weight * value[p];
      }
      for (int64_t p = 0; p < P; ++p) o[p] /= sum;
    }
  }
}

// x [B, d] → query, key, value [B, H, P], and what the output's router has chosen, [B, H, K].
template <class T>
void step_begin(const T* x, const T* norm_weight, const T* norm_bias, const T* q_proj, const T* k_proj,
                const T* v_router, const T* o_router, const T* v_experts, const T* cos, const T* sin, T* query, T* key,
                T* value, int64_t* o_expert, T* o_gates, double eps, int64_t B, int64_t d, int64_t H, int64_t P,
                int64_t A, int64_t K, int64_t half, int64_t phases_of_b, int64_t shares) {
  const auto normalised = room<T>(B * d), v_scores = room<T>(B * H * A), o_scores = room<T>(B * H * A);
  apply<T>({{q_proj, H * P, query}, {k_proj, H * P, key}, {v_router, H * A, v_scores.get()},
            {o_router, H * A, o_scores.get()}},
           x, norm_weight, norm_bias, T(eps), B, d, normalised.get(), shares);
  for (int64_t head = 0; head < B * H; ++head)
    for (T* rotated : {query, key})
      rotate(rotated + head * P, cos + head / H * phases_of_b, sin + head / H * phases_of_b, half);
  std::vector<int64_t> v_expert(B * H * K);
  const auto v_gates = room<T>(B * H * K), more = room<T>((shares - 1) * B * H * P);
  choose(v_scores.get(), H, A, K, v_expert.data(), v_gates.get(), B);
  choose(o_scores.get(), H, A, K, o_expert, o_gates, B);
  const SortedRoutes sorted(v_expert.data(), B * H * K, H * A);
  linear<T>(x, v_experts, sorted.routes(), v_gates.get(), d, P, H * K, K, shares, {value, more.get(), B * H * P});
}

// The stream x [B, d] after the layer, y [B, d], of what `step_begin` gave, all keys and all values.
template <class T>
void step_end(const T* x, const T* query, Slot<T> keys, Slot<T> values, const int64_t* o_expert, const T* o_gates,
              const T* o_experts, const T* norm_weight, const T* norm_bias, const T* router, const T* up,
              const T* down, T* y, double eps, int64_t B, int64_t d, int64_t H, int64_t P, int64_t A, int64_t K,
              int64_t N, int64_t E, int64_t S, int64_t selected, int64_t shares) {
  const auto context = room<T>(B * H * P), more = room<T>((shares - 1) * B * d), update = room<T>(B * d);
  const auto normalised = room<T>(B * d), scores = room<T>(B * E), gates = room<T>(B * selected);
  std::vector<int64_t> expert(B * selected);
  attend(query, keys, values, B, H, N, P, context.get(), shares);
  const SortedRoutes outputs(o_expert, B * H * K, H * A);
  linear<T>(context.get(), o_experts, outputs.routes(), o_gates, P, d, K, H * K, shares, {y, more.get(), B * d});
  for (int64_t i = 0; i < B * d; ++i) y[i] += x[i];
  apply<T>({{router, E, scores.get()}}, y, norm_weight, norm_bias, T(eps), B, d, normalised.get(), shares);
  choose(scores.get(), 1, E, selected, expert.data(), gates.get(), B);
  const SortedRoutes experts(expert.data(), B * selected, E);
  mlp<T>(y, up, down, experts.routes(), gates.get(), d, S, selected, shares, nullptr,
         {update.get(), more.get(), B * d});
  for (int64_t i = 0; i < B * d; ++i) y[i] += update[i];
}

#define MOEUT_EXPORT_STEP(NAME, T)                                                                                     \
  extern "C" void moeut_step_begin_##NAME(                                                                             \
      const T* x, const T* norm_weight, const T* norm_bias, const T* q_proj, const T* k_proj, const T* v_router,       \
      const T* o_router, const T* v_experts, const T* cos, const T* sin, T* query, T* key, T* value,                   \
      int64_t* o_expert, T* o_gates, double eps, int64_t B, int64_t d, int64_t H, int64_t P, int64_t A, int64_t K,     \
      int64_t half, int64_t phases_of_b, int64_t shares) {                                                             \
    step_begin<T>(x, norm_weight, norm_bias, q_proj, k_proj, v_router, o_router, v_experts, cos, sin, query, key,      \
                  value, o_expert, o_gates, eps, B, d, H, P, A, K, half, phases_of_b, shares);                         \
  }                                                                                                                    \
  extern "C" void moeut_step_end_##NAME(                                                                               \
      const T* x, const T* query, const T* keys, const T* values, const int64_t* o_expert, const T* o_gates,           \
      const T* o_experts, const T* norm_weight, const T* norm_bias, const T* router, const T* up, const T* down, T* y, \
      double eps, int64_t keys_of_b, int64_t keys_of_h, int64_t keys_of_n, int64_t values_of_b, int64_t values_of_h,   \
      int64_t values_of_n, int64_t B, int64_t d, int64_t H, int64_t P, int64_t A, int64_t K, int64_t N, int64_t E,     \
      int64_t S, int64_t selected, int64_t shares) {                                                                   \
    step_end<T>(x, query, {keys, keys_of_b, keys_of_h, keys_of_n}, {values, values_of_b, values_of_h, values_of_n},    \
                o_expert, o_gates, o_experts, norm_weight, norm_bias, router, up, down, y, eps, B, d, H, P, A, K, N,   \
                E, S, selected, shares);                                                                               \
  }
