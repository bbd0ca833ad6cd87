// Forward and backward of one task: a group of rows of one (batch, head), which share the transposed pair bias.
// Included by tile.h inside its namespace.

using ds4sci::Array;
using ds4sci::Problem;

static inline float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

static inline uint32_t as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

static inline float from_half(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
  if (exponent == 31) return as_float(sign | 0x7f800000 | fraction << 13);
  if (exponent) return as_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = float(fraction) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -small : small;
}

static inline uint16_t to_half(float x) {
  const uint32_t bits = as_bits(x), sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 65536 or more
  if (magnitude < 0x38800000) {                                 // below 2^-14: subnormal; adding .5 rounds to even
    return uint16_t(sign | (as_bits(as_float(magnitude) + 0.5f) - 0x3f000000));
  }
  return uint16_t(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13));
}

static inline uint16_t to_bfloat(float x) {
  const uint32_t bits = as_bits(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float element(const Array& x, int64_t at) {
  switch (x.type) {
    case ds4sci::FLOAT: return static_cast<const float*>(x.data)[at];
    case ds4sci::BFLOAT16: return as_float(uint32_t(static_cast<const uint16_t*>(x.data)[at]) << 16);
    default: return from_half(static_cast<const uint16_t*>(x.data)[at]);
  }
}

static inline int64_t place(const Array& x, int64_t i, int64_t j, int64_t k, int64_t l) {
  return i * x.stride[0] + j * x.stride[1] + k * x.stride[2] + l * x.stride[3];
}

// Ask for d numbers of x from `at` on: rows lie h·d apart, which no hardware prefetcher follows.
static inline void ahead(const Array& x, int64_t at, int d) {
  if (!x.data) return;
  const int size = x.type == ds4sci::FLOAT ? 4 : 2;
  const char* from = static_cast<const char*>(x.data) + at * size;
  for (int i = 0; i < d * size; i += 64) __builtin_prefetch(from + i);
}

// d numbers of x from `at` on, as fp32.
static void fetch(const Array& x, int64_t at, int d, float* to) {
  if (x.type == ds4sci::FLOAT) {
    std::memcpy(to, static_cast<const float*>(x.data) + at, 4 * d);
  } else if (x.type == ds4sci::BFLOAT16) {
    const uint16_t* from = static_cast<const uint16_t*>(x.data) + at;
    for (int i = 0; i < d; ++i) to[i] = as_float(uint32_t(from[i]) << 16);
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(x.data) + at;
    for (int i = 0; i < d; ++i) to[i] = from_half(from[i]);
  }
}

static void put(const Array& x, int64_t at, int d, const float* from) {
  if (x.type == ds4sci::FLOAT) {
    std::memcpy(static_cast<float*>(x.data) + at, from, 4 * d);
  } else if (x.type == ds4sci::BFLOAT16) {
    uint16_t* to = static_cast<uint16_t*>(x.data) + at;
    for (int i = 0; i < d; ++i) to[i] = to_bfloat(from[i]);
  } else {
    uint16_t* to = static_cast<uint16_t*>(x.data) + at;
    for (int i = 0; i < d; ++i) to[i] = to_half(from[i]);
  }
}

constexpr double LOG2E = 1.44269504088896340736, LN2 = 0.69314718055994530942;

static inline Vec sigmoid(Vec x) {
  const Vec y = x * float(-LOG2E);
  return set(1.0f) / (set(1.0f) + exp2(y > 126.0f ? set(126.0f) : y));  // beyond, 2^y has no exponent
}

// Where one thread works. Sizes depend on the problem alone.
struct Scratch {
  int d, dp;        // channels, and padded to whole vectors
  int64_t width;    // queries padded to whole tiles
  std::vector<float> bias;              // [keys][width], transposed
  std::vector<float> k, v, dk, dv;      // [keys][dp]
  std::vector<float> added;             // the mask's float at each kept key
  std::vector<int64_t> kept;            // keys that take part
  std::vector<float> scores, weights;   // [KB][QB]
  std::vector<float> qt, ot, gt, dqt;   // [dp][QB]: lanes over queries
  std::vector<float> qr, gr;            // [QB][dp]: lanes over channels
  std::vector<float> line, line2;       // [dp]

  Scratch(const Problem& p, bool backward) {
    d = int(p.channels);
    dp = (d + W - 1) / W * W;
    width = (p.queries + QB - 1) / QB * QB;
    const size_t keys = size_t(p.keys) * dp;
    if (p.bias.data) bias.resize(size_t(p.keys) * width);
    k.resize(keys);
    v.resize(keys);
    added.resize(p.keys);
    kept.resize(p.keys);
    scores.resize(KB * QB);
    for (auto* x : {&qt, &ot, &gt, &dqt, &qr, &gr}) x->resize(dp * QB);
    line.resize(dp);
    line2.resize(dp);
    if (backward) {
      dk.resize(keys);
      dv.resize(keys);
      weights.resize(KB * QB);
    }
  }
};

// The pair bias of one (batch, head), transposed to [key][query], in units of log 2 as all scores are.
static void transpose_bias(const Problem& p, int64_t b, int64_t h, Scratch& w) {
  if (!p.bias.data) return;
  constexpr int B = 16;
  float square[B][B];
  for (int64_t q0 = 0; q0 < p.queries; q0 += B)
    for (int64_t k0 = 0; k0 < p.keys; k0 += B) {
      const int height = int(std::min<int64_t>(B, p.queries - q0)), length = int(std::min<int64_t>(B, p.keys - k0));
      for (int q = 0; q < height; ++q) {
        const int64_t at = place(p.bias, b, h, q0 + q, k0);
        if (p.bias.stride[3] == 1)
          fetch(p.bias, at, length, square[q]);
        else
          for (int k = 0; k < length; ++k) square[q][k] = element(p.bias, at + k * p.bias.stride[3]);
      }
      for (int k = 0; k < length; ++k)
        for (int q = 0; q < height; ++q) w.bias[(k0 + k) * w.width + q0 + q] = square[q][k] * float(LOG2E);
    }
}

// K and V of one row, kept keys only; returns their number.
static int64_t pack_keys(const Problem& p, int64_t b, int64_t s, int64_t h, Scratch& w) {
  int64_t n = 0;
  constexpr int64_t FAR = 16;
  for (int64_t k = 0; k < p.keys; ++k) {
    if (k + FAR < p.keys) {
      ahead(p.k, place(p.k, b, s, k + FAR, h), w.d);
      ahead(p.v, place(p.v, b, s, k + FAR, h), w.d);
    }
    float add = 0.0f;
    if (p.mask.data) {
      const int64_t at = place(p.mask, b, s, k, 0);
      if (p.mask.type == ds4sci::BOOL) {
        if (!static_cast<const uint8_t*>(p.mask.data)[at]) continue;
      } else {
        add = element(p.mask, at);
        if (add == -std::numeric_limits<float>::infinity()) continue;
      }
    }
    w.kept[n] = k;
    w.added[n] = add * float(LOG2E);
    fetch(p.k, place(p.k, b, s, k, h), w.d, &w.k[n * w.dp]);
    fetch(p.v, place(p.v, b, s, k, h), w.d, &w.v[n * w.dp]);
    ++n;
  }
  return n;
}

// A tile of queries, scaled: [channel][query] and, for backward, [query][channel]; beyond the last query 0.
static void pack_queries(const Problem& p, int64_t b, int64_t s, int64_t h, int64_t q0, int count, bool backward,
                         Scratch& w) {
  if (count < QB) {
    std::fill(w.qt.begin(), w.qt.end(), 0.0f);
    std::fill(w.qr.begin(), w.qr.end(), 0.0f);
  }
  for (int q = 0; q < std::min<int64_t>(QB, p.queries - q0 - count); ++q) {  // the next tile
    const int64_t next = q0 + count + q;
    ahead(p.q, place(p.q, b, s, next, h), w.d);
    if (p.gate.data) ahead(p.gate, place(p.gate, b, s, next, h), w.d);
    if (backward) {
      ahead(p.out, place(p.out, b, s, next, h), w.d);
      ahead(p.grad_out, place(p.grad_out, b, s, next, h), w.d);
    }
  }
  for (int q = 0; q < count; ++q) {
    fetch(p.q, place(p.q, b, s, q0 + q, h), w.d, w.line.data());
    for (int c = 0; c < w.d; ++c) w.qt[c * QB + q] = w.line[c] * float(p.scale * LOG2E);
    if (backward)
      for (int c = 0; c < w.d; ++c) w.qr[q * w.dp + c] = w.line[c] * float(p.scale);
  }
}

// Calls use(k, x, score) for each key k and vector x of a tile's q·k + bias + mask.
template <class Use>
static inline void each_score(const Problem& p, int64_t q0, int64_t first, int keys, Scratch& w, Use use) {
  product<false>(keys, QB, w.d, &w.k[first * w.dp], w.dp, 1, w.qt.data(), QB, w.scores.data(), QB);
  const bool adds = p.mask.data && p.mask.type != ds4sci::BOOL;
  for (int k = 0; k < keys; ++k) {
    const float* row = &w.scores[k * QB];
    const float* bias = p.bias.data ? &w.bias[w.kept[first + k] * w.width + q0] : nullptr;
    const Vec add = set(adds ? w.added[first + k] : 0.0f);
    for (int x = 0; x < QB; x += W) {
      Vec score = load(row + x);
      if (bias) score += load(bias + x);
      if (adds) score += add;
      use(k, x, score);
    }
  }
}

static void forward_row(const Problem& p, int64_t b, int64_t s, int64_t h, Scratch& w) {
  const int64_t n = pack_keys(p, b, s, h, w);
  const int d = w.d;
  const float none = -std::numeric_limits<float>::infinity();
  for (int64_t q0 = 0; q0 < p.queries; q0 += QB) {
    const int count = int(std::min<int64_t>(QB, p.queries - q0));
    pack_queries(p, b, s, h, q0, count, false, w);
    Vec top[QB / W], sum[QB / W], highest[QB / W];
    for (int x = 0; x < QB / W; ++x) top[x] = set(none), sum[x] = Vec{};
    for (int64_t first = 0; first < n; first += KB) {
      const int keys = int(std::min<int64_t>(KB, n - first));
      for (int x = 0; x < QB / W; ++x) highest[x] = top[x];
      each_score(p, q0, first, keys, w, [&](int k, int x, Vec score) {
        store(&w.scores[k * QB + x], score);
        highest[x / W] = max(highest[x / W], score);
      });
      for (int x = 0; x < QB / W; ++x) {
        // nothing but -inf so far: subtract 0, so that the weights are 0 and not NaN
        const Vec base = highest[x] == set(none) ? Vec{} : highest[x];
        const Vec shrink = exp2(top[x] - base);
        Vec total = sum[x] * shrink;
        for (int k = 0; k < keys; ++k) {
          float* at = &w.scores[k * QB + x * W];
          const Vec weight = exp2(load(at) - base);
          total += weight;
          store(at, weight);
        }
        top[x] = highest[x];
        sum[x] = total;
        if (first)
          for (int c = 0; c < d; ++c) store(&w.ot[c * QB + x * W], load(&w.ot[c * QB + x * W]) * shrink);
      }
      if (first)
        product<true>(d, QB, keys, &w.v[first * w.dp], 1, w.dp, w.scores.data(), QB, w.ot.data(), QB);
      else
        product<false>(d, QB, keys, &w.v[0], 1, w.dp, w.scores.data(), QB, w.ot.data(), QB);
    }
    for (int q = 0; q < count; ++q) {
      const float total = n ? sum[q / W][q % W] : 0.0f, scale = total == 0.0f ? 0.0f : 1.0f / total;
      for (int c = 0; c < d; ++c) w.line[c] = n ? w.ot[c * QB + q] * scale : 0.0f;
      if (p.gate.data) {
        fetch(p.gate, place(p.gate, b, s, q0 + q, h), d, w.line2.data());
        for (int c = 0; c < d; c += W) store(&w.line[c], load(&w.line[c]) * sigmoid(load(&w.line2[c])));
      }
      put(p.out, place(p.out, b, s, q0 + q, h), d, w.line.data());
      const double exact = total == 0.0f ? none : double(top[q / W][q % W]) * LN2 + std::log(double(total));
      const float lse = float(exact);
      static_cast<float*>(p.lse.data)[place(p.lse, b, s, h, q0 + q)] = lse;
      static_cast<float*>(p.rest.data)[place(p.rest, b, s, h, q0 + q)] = total == 0.0f ? 0.0f : float(exact - lse);
    }
  }
}

static void backward_row(const Problem& p, int64_t b, int64_t s, int64_t h, float* grad_bias, Scratch& w) {
  const int64_t n = pack_keys(p, b, s, h, w);
  const int d = w.d, dp = w.dp;
  const float none = -std::numeric_limits<float>::infinity();
  std::fill(w.dk.begin(), w.dk.begin() + n * dp, 0.0f);
  std::fill(w.dv.begin(), w.dv.begin() + n * dp, 0.0f);
  float* grad_mask = p.grad_mask ? p.grad_mask + ((b * p.rows + s) * p.heads + h) * p.keys : nullptr;
  if (grad_mask) std::fill(grad_mask, grad_mask + p.keys, 0.0f);
  for (int64_t q0 = 0; q0 < p.queries; q0 += QB) {
    const int count = int(std::min<int64_t>(QB, p.queries - q0));
    pack_queries(p, b, s, h, q0, count, true, w);
    if (count < QB)
      for (auto* x : {&w.gt, &w.gr}) std::fill(x->begin(), x->end(), 0.0f);
    float lse[QB], rest[QB], delta[QB];
    for (int q = 0; q < QB; ++q) lse[q] = rest[q] = delta[q] = 0.0f;
    for (int q = 0; q < count; ++q) {
      float* grad = &w.gr[q * dp];
      fetch(p.grad_out, place(p.grad_out, b, s, q0 + q, h), d, grad);
      fetch(p.out, place(p.out, b, s, q0 + q, h), d, w.line.data());
      double dot = 0.0;
      for (int c = 0; c < d; ++c) dot += double(grad[c]) * w.line[c];  // gated: σ(g) stands in out instead of in dO
      if (p.gate.data) {
        fetch(p.gate, place(p.gate, b, s, q0 + q, h), d, w.line2.data());
        for (int c = 0; c < d; c += W) {  // the lanes beyond d are padding in all three
          const Vec open = sigmoid(load(&w.line2[c])), given = load(grad + c);
          store(&w.line[c], load(&w.line[c]) * given * (1.0f - open));
          store(grad + c, given * open);
        }
        if (p.grad_gate.data) put(p.grad_gate, place(p.grad_gate, b, s, q0 + q, h), d, w.line.data());
      }
      for (int c = 0; c < d; ++c) w.gt[c * QB + q] = grad[c];
      const float own = static_cast<const float*>(p.lse.data)[place(p.lse, b, s, h, q0 + q)];
      // in units of log 2, as a sum of two; no keys: every weight 0
      const double exact = (double(own) + static_cast<const float*>(p.rest.data)[place(p.rest, b, s, h, q0 + q)]) * LOG2E;
      lse[q] = own == none ? std::numeric_limits<float>::infinity() : float(exact);
      rest[q] = own == none ? 0.0f : float(exact - lse[q]);
      delta[q] = float(dot);
      if (p.grad_lse.data) delta[q] -= static_cast<const float*>(p.grad_lse.data)[place(p.grad_lse, b, s, h, q0 + q)];
    }
    for (int64_t first = 0; first < n; first += KB) {
      const int keys = int(std::min<int64_t>(KB, n - first));
      product<false>(keys, QB, d, &w.v[first * dp], dp, 1, w.gt.data(), QB, w.weights.data(), QB);
      Vec total = Vec{};
      each_score(p, q0, first, keys, w, [&](int k, int x, Vec score) {
        float* slope = &w.weights[k * QB + x];
        const Vec own = exp2(score - load(lse + x) - load(rest + x));
        const Vec change = own * (load(slope) - load(delta + x));
        store(&w.scores[k * QB + x], own);
        store(slope, change);
        if (grad_bias) {
          float* into = grad_bias + w.kept[first + k] * p.grad_bias_width + q0 + x;
          store(into, load(into) + change);
        }
        if (grad_mask) {
          total = x ? total + change : change;
          if (x + W == QB) {
            float sum = 0.0f;
            for (int l = 0; l < W; ++l) sum += total[l];
            grad_mask[w.kept[first + k]] += sum;
          }
        }
      });
      // weights holds dS, scores holds P; a gradient that nobody asked for is not made
      if (p.grad_q.data && first)
        product<true>(d, QB, keys, &w.k[first * dp], 1, dp, w.weights.data(), QB, w.dqt.data(), QB);
      else if (p.grad_q.data)
        product<false>(d, QB, keys, &w.k[0], 1, dp, w.weights.data(), QB, w.dqt.data(), QB);
      if (p.grad_k.data)
        product<true>(keys, dp, count, w.weights.data(), QB, 1, w.qr.data(), dp, &w.dk[first * dp], dp);
      if (p.grad_v.data)
        product<true>(keys, dp, count, w.scores.data(), QB, 1, w.gr.data(), dp, &w.dv[first * dp], dp);
    }
    if (p.grad_q.data)
      for (int q = 0; q < count; ++q) {
        for (int c = 0; c < d; ++c) w.line[c] = n ? w.dqt[c * QB + q] * float(p.scale) : 0.0f;
        put(p.grad_q, place(p.grad_q, b, s, q0 + q, h), d, w.line.data());
      }
  }
  std::fill(w.line.begin(), w.line.end(), 0.0f);
  int64_t next = 0;
  for (int64_t k = 0; k < p.keys; ++k) {
    const bool is_kept = next < n && w.kept[next] == k;
    if (p.grad_k.data) put(p.grad_k, place(p.grad_k, b, s, k, h), d, is_kept ? &w.dk[next * dp] : w.line.data());
    if (p.grad_v.data) put(p.grad_v, place(p.grad_v, b, s, k, h), d, is_kept ? &w.dv[next * dp] : w.line.data());
    next += is_kept;
  }
}

static void run_task(const Problem& p, int64_t task, bool backward, Scratch& w) {
  const int64_t group = task % p.groups, h = task / p.groups % p.heads, b = task / p.groups / p.heads;
  const int64_t from = p.rows * group / p.groups, to = p.rows * (group + 1) / p.groups;
  transpose_bias(p, b, h, w);
  float* grad_bias =
      p.grad_bias ? p.grad_bias + ((group * p.batch + b) * p.heads + h) * p.keys * p.grad_bias_width : nullptr;
  for (int64_t s = from; s < to; ++s) {
    if (backward)
      backward_row(p, b, s, h, grad_bias, w);
    else
      forward_row(p, b, s, h, w);
  }
}

// Tasks are taken from a shared counter; each writes its own part of the results, so who took it does not matter.
static void work(const Problem& p, bool backward, std::atomic<int64_t>& next) {
  const int64_t tasks = p.batch * p.heads * p.groups;
  std::unique_ptr<Scratch> scratch;
  for (int64_t task = next++; task < tasks; task = next++) {
    if (!scratch) scratch.reset(new Scratch(p, backward));
    run_task(p, task, backward, *scratch);
  }
}
