// One token of each sequence through the paper's layers (see moeut/model/native_step.py), and through a language model's
// head. Part of native.cpp.
//
// Letters: B sequences, d hidden size, H heads, P head size, A experts a head, K selected, N keys, E experts, S expert
// size. No 16-bit numbers here: T is what is summed, too. What is not a whole step is called by all threads of a region.

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

// A linear map: weight [rows, d], bias [rows] or null, out [B, rows].
template <class T>
struct Map {
  const T* weight;
  int64_t rows;
  T* out;
  const T* bias = nullptr;
};

// All maps of the layer norms of x [B, d]; each thread makes these for itself.
template <class T>
void apply(std::initializer_list<Map<T>> maps, const T* x, const T* weight, const T* bias, T eps, int64_t B,
           int64_t d) {
  const auto normalised = room<T>(B * d);
  for (int64_t b = 0; b < B; ++b) normalise(x + b * d, weight, bias, eps, d, normalised.get() + b * d);
  for (const Map<T>& map : maps) {
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < map.rows; ++row)
      for (int64_t b = 0; b < B; ++b)
        map.out[b * map.rows + row] =
            dot(map.weight + row * d, normalised.get() + b * d, d) + (map.bias ? map.bias[row] : T(0));
  }
#pragma omp barrier
}

// What the K best of each group of E scores are: their numbers over all groups, and their sigmoids. NaN is before all
// others. Each thread chooses for itself.
template <class T>
struct Choice {
  std::vector<int64_t> expert;
  std::vector<T> gates;

  Choice(const T* scores, int64_t sequences, int64_t groups, int64_t E, int64_t K)
      : expert(sequences * groups * K), gates(sequences * groups * K) {
    const auto better = [](T a, T b) { return a > b || (a != a && b == b); };
    for (int64_t row = 0; row < sequences * groups; ++row) {
      const T* s = scores + row * E;
      int64_t* best = expert.data() + row * K;
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

  SortedRoutes sorted(int64_t num_experts, int64_t shares) const {
    return {expert.data(), int64_t(expert.size()), num_experts, shares};
  }
};

// Rotate the first 2 · half channels of x [P].
template <class T>
void rotate(T* x, const T* cos, const T* sin, int64_t half) {
  for (int64_t j = 0; j < half; ++j) {
    const T first = x[j], second = x[j + half];
    x[j] = first * cos[j] - second * sin[j];
    x[j + half] = second * cos[j] + first * sin[j];
  }
}

// ---- what moeut/model/native_step.py describes, field by field ------------------------------------------------------

template <class T>
struct LayerWeights {
  const T *attention_norm_weight, *attention_norm_bias, *q_proj, *k_proj, *v_router, *o_router, *v_experts, *o_experts,
      *feed_forward_norm_weight, *feed_forward_norm_bias, *router, *up_experts, *down_experts;
};

struct Sizes {
  double eps;
  int64_t B, d, H, P, A, K, E, S, selected;
  int64_t half, phases_of_b;  // rotated pairs; numbers between two sequences' phases, 0 if they share them
};

// Keys or values of all heads: entry (b, h, n) of a tensor [B, H, N, P] whose last dimension is dense.
template <class T>
struct Rows {
  T* start;
  int64_t of_b, of_h, of_n;

  T* at(int64_t b, int64_t h, int64_t n) const { return start + b * of_b + h * of_h + n * of_n; }
};

// Those of an executed layer; the last ones are the new token's.
template <class T>
struct Slot {
  Rows<T> keys, values;
  int64_t N;
};

// ---- a step --------------------------------------------------------------------------------------------------------

// What threads share in a layer.
template <class T>
struct Workspace {
  std::unique_ptr<T[]> query, key, value, v_scores, o_scores, context, middle, scores, more;

  Workspace(const Sizes& n, int64_t shares)
      : query(room<T>(n.B * n.H * n.P)), key(room<T>(n.B * n.H * n.P)), value(room<T>(n.B * n.H * n.P)),
        v_scores(room<T>(n.B * n.H * n.A)), o_scores(room<T>(n.B * n.H * n.A)), context(room<T>(n.B * n.H * n.P)),
        middle(room<T>(n.B * n.d)), scores(room<T>(n.B * n.E)),
        more(room<T>((shares - 1) * n.B * std::max(n.d, n.H * n.P))) {}
};

// x [B, d] → queries, scores for the outputs, and the last key and value of the slot.
template <class T>
void begin_layer(const LayerWeights<T>& weights, const Sizes& n, const T* cos, const T* sin, const T* x, Slot<T> slot,
           const Workspace<T>& work, int64_t shares) {
  const int64_t B = n.B, d = n.d, H = n.H, P = n.P, A = n.A, K = n.K;
  apply<T>({{weights.q_proj, H * P, work.query.get()}, {weights.k_proj, H * P, work.key.get()},
            {weights.v_router, H * A, work.v_scores.get()}, {weights.o_router, H * A, work.o_scores.get()}},
           x, weights.attention_norm_weight, weights.attention_norm_bias, T(n.eps), B, d);
  const Choice<T> choice(work.v_scores.get(), B, H, A, K);
  const SortedRoutes sorted = choice.sorted(H * A, shares);
  linear<T>(x, weights.v_experts, sorted.routes(), choice.gates.data(), d, P, H * K, K, shares,
            {work.value.get(), work.more.get(), B * H * P});
  // The thread that has a head here has it in `attend`, too, and need not wait for the others.
#pragma omp for schedule(static) nowait
  for (int64_t head = 0; head < B * H; ++head) {
    const int64_t b = head / H, h = head % H;
    T *query = work.query.get() + head * P, *key = work.key.get() + head * P, *value = work.value.get() + head * P;
    for (T* rotated : {query, key}) rotate(rotated, cos + b * n.phases_of_b, sin + b * n.phases_of_b, n.half);
    std::copy(key, key + P, slot.keys.at(b, h, slot.N - 1));
    std::copy(value, value + P, slot.values.at(b, h, slot.N - 1));
  }
}

// context [B, H, P] = softmax(q kᵀ / √P) v for the query [B, H, P] of each head
template <class T>
void attend(const T* query, Slot<T> slot, const Sizes& n, T* context) {
  const T scale = 1 / std::sqrt(T(n.P));
  const auto weights = room<T>(slot.N);
#pragma omp for schedule(static)
  for (int64_t head = 0; head < n.B * n.H; ++head) {
    const int64_t b = head / n.H, h = head % n.H;
    T largest = -std::numeric_limits<T>::infinity(), sum = 0;
    for (int64_t i = 0; i < slot.N; ++i) {
      weights[i] = scale * dot(query + head * n.P, slot.keys.at(b, h, i), n.P);
      largest = std::max(largest, weights[i]);
    }
    T* out = context + head * n.P;
    std::fill(out, out + n.P, T(0));
    for (int64_t i = 0; i < slot.N; ++i) {
      const T weight = std::exp(weights[i] - largest);
      const T* value = slot.values.at(b, h, i);
      sum += weight;
#pragma omp simd
      for (int64_t p = 0; p < n.P; ++p) out[p] += weight * value[p];
    }
    for (int64_t p = 0; p < n.P; ++p) out[p] /= sum;
  }
}

// What `begin_layer` has made, and all keys and values → the stream after the layer, y [B, d].
template <class T>
void end_layer(const LayerWeights<T>& weights, const Sizes& n, const T* x, Slot<T> slot, T* y, const Workspace<T>& work,
         int64_t shares) {
  const int64_t B = n.B, d = n.d, H = n.H, P = n.P, A = n.A, K = n.K;
  T *middle = work.middle.get(), *more = work.more.get();
  const Choice<T> outputs(work.o_scores.get(), B, H, A, K);
  const SortedRoutes by_output = outputs.sorted(H * A, shares);
  attend(work.query.get(), slot, n, work.context.get());
  linear<T>(work.context.get(), weights.o_experts, by_output.routes(), outputs.gates.data(), P, d, K, H * K, shares,
            {middle, more, B * d, x});
  apply<T>({{weights.router, n.E, work.scores.get()}}, middle, weights.feed_forward_norm_weight,
           weights.feed_forward_norm_bias, T(n.eps), B, d);
  const Choice<T> experts(work.scores.get(), B, 1, n.E, n.selected);
  const SortedRoutes by_expert = experts.sorted(n.E, shares);
  mlp<T>(middle, weights.up_experts, weights.down_experts, by_expert.routes(), experts.gates.data(), d, n.S, n.selected,
         shares, nullptr, {y, more, B * d, middle});
}

// Through the layers schedule[0], schedule[1], … [L]; streams [L + 1, B, d], of which the first is given. Where `extend` is
// not null, the caller's `extend(depth)` makes slots[depth] all keys and values, once it is told the last ones.
template <class T>
void step(const LayerWeights<T>* layers, const int64_t* schedule, Slot<T>* slots, const Sizes& n, const T* cos,
          const T* sin, T* streams, void (*extend)(int64_t), int64_t L, int64_t shares) {
  const Workspace<T> work(n, shares);
  const auto begin = [&](int64_t depth) {
    begin_layer(layers[schedule[depth]], n, cos, sin, streams + depth * n.B * n.d, slots[depth], work, shares);
  };
  const auto end = [&](int64_t depth) {
    T* x = streams + depth * n.B * n.d;
    end_layer(layers[schedule[depth]], n, x, slots[depth], x + n.B * n.d, work, shares);
  };
  if (!extend)
    return on_threads(shares, [&] {
      for (int64_t depth = 0; depth < L; ++depth) begin(depth), end(depth);
    });
  for (int64_t depth = 0; depth < L; ++depth) {
    on_threads(shares, [&] { begin(depth); });
    extend(depth);
    on_threads(shares, [&] { end(depth); });
  }
}

#define MOEUT_EXPORT_STEP(NAME, T)                                                                                     \
  extern "C" void moeut_step_##NAME(const T* cos, const T* sin, T* streams, double eps, int64_t B, int64_t d,          \
                                    int64_t H, int64_t P, int64_t A, int64_t K, int64_t E, int64_t S,                  \
                                    int64_t selected, int64_t half, int64_t phases_of_b,                               \
                                    const LayerWeights<T>* layers, const int64_t* schedule, Slot<T>* slots,            \
                                    void (*extend)(int64_t), int64_t L, int64_t shares) {                              \
    step<T>(layers, schedule, slots, {eps, B, d, H, P, A, K, E, S, selected, half, phases_of_b}, cos, sin, streams,    \
            extend, L, shares);                                                                                        \
  }                                                                                                                    \
  extern "C" void moeut_head_##NAME(const T* x, const T* norm_weight, const T* norm_bias, const T* weight,             \
                                    const T* bias, T* logits, double eps, int64_t B, int64_t d, int64_t V,             \
                                    int64_t shares) {                                                                  \
    on_threads(shares, [&] { apply<T>({{weight, V, logits, bias}}, x, norm_weight, norm_bias, T(eps), B, d); });       \
  }
