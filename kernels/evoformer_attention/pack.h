// Between the caller's strided arrays and a thread's buffers. Included by width.cpp inside its namespace.
//
// Rows are packed first (n·d work beside n²·d), which takes care of strides, of dtypes that are no words of the products,
// and of masked keys: a key that the mask drops is simply not packed.

using ds4sci::Array;
using ds4sci::Problem;

constexpr double LOG2E = 1.44269504088896340736, LN2 = 0.69314718055994530942;
constexpr float NONE = -std::numeric_limits<float>::infinity();

static inline int round_up(int x, int to) { return (x + to - 1) / to * to; }

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

// Rows of one (batch, row, head): d numbers each, `step` apart.
struct Rows {
  char* at;
  int64_t step, type;

  Rows(const Array& x, int64_t b, int64_t s, int64_t h)
      : at(static_cast<char*>(x.data) + place(x, b, s, 0, h) * size(x.type)), step(x.stride[2] * size(x.type)), type(x.type) {}
  Rows(const Array& x, int64_t first) : at(static_cast<char*>(x.data) + first * size(x.type)), step(0), type(x.type) {}
  static int64_t size(int64_t type) { return type == ds4sci::FLOAT ? 4 : 2; }
  template <class T>
  T* row(int64_t n) const { return reinterpret_cast<T*>(at + n * step); }

  // Ask for rows from..to: they lie h·d apart, which no hardware prefetcher follows.
  template <int WRITE>
  void ahead(int64_t from, int64_t to, int d) const {
    for (int64_t n = from; n < to; ++n)
      for (int64_t i = 0; i < d * size(type); i += 64) {
        __builtin_prefetch(at + n * step + i, WRITE, 2);
        asm volatile("");  // or the compiler takes the caller for a function without effects, and drops its calls
      }
  }
};

template <class T>
static inline void copy(const T* from, T* to, int n) {
  int i = 0;
  for (; i + W <= n; i += W) std::memcpy(to + i, from + i, W * sizeof(T));
  for (; i + 4 <= n; i += 4) std::memcpy(to + i, from + i, 4 * sizeof(T));
  for (; i < n; ++i) to[i] = from[i];
}

// d numbers as fp32; `to` has room for whole vectors, and what is beyond d stays or becomes 0.
static inline void fetch(const Rows& x, int64_t n, int d, float* to) {
  if (x.type == ds4sci::FLOAT) return copy(x.row<const float>(n), to, d);
  const uint16_t* from = x.row<const uint16_t>(n);
  if (x.type == ds4sci::HALF) {
    for (int i = 0; i < d; ++i) to[i] = from_half(from[i]);
    return;
  }
  for (int i = 0; i < d; i += W) {
    HVec some = {};
    if (i + W <= d)
      std::memcpy(&some, from + i, sizeof some);
    else
      copy(from + i, reinterpret_cast<uint16_t*>(&some), d - i);
    store(to + i, reinterpret_cast<Vec>(__builtin_convertvector(some, IVec) << 16));
  }
}

static inline void to_bf16(const float* from, int d, uint16_t* to) {
  for (int i = 0; i < d; i += W) {
    const HVec some = to_bf16(load(from + i));
    if (i + W <= d)
      std::memcpy(to + i, &some, sizeof some);
    else
      copy(reinterpret_cast<const uint16_t*>(&some), to + i, d - i);
  }
}

static inline void put(const Rows& x, int64_t n, int d, const float* from) {
  if (x.type == ds4sci::FLOAT) return copy(from, x.row<float>(n), d);
  if (x.type == ds4sci::BFLOAT16) return to_bf16(from, d, x.row<uint16_t>(n));
  uint16_t* to = x.row<uint16_t>(n);
  for (int i = 0; i < d; ++i) to[i] = to_half(from[i]);
}

// How rows of numbers become rows of words.
static inline void row(Single, const Rows& x, int64_t n, int d, float* to) { fetch(x, n, d, to); }
static inline void to_words(Single, const float* from, int d, float* to) { copy(from, to, d); }

#if defined(__AVX512BF16__)
static inline void row(Pair, const Rows& x, int64_t n, int d, float* to) {  // Pair is taken for bf16 alone
  copy(x.row<const uint16_t>(n), reinterpret_cast<uint16_t*>(to), d);
}
static inline void to_words(Pair, const float* from, int d, float* to) {
  to_bf16(from, d, reinterpret_cast<uint16_t*>(to));
}

// Words (a, b) of two rows of bf16: what a product along the rows takes.
static inline void zip(const float* a, const float* b, int d, float* to) {
  typedef uint16_t __attribute__((may_alias)) Half;
  typedef uint32_t __attribute__((may_alias)) Whole;
  const Half *lower = reinterpret_cast<const Half*>(a), *upper = reinterpret_cast<const Half*>(b);
  Whole* words = reinterpret_cast<Whole*>(to);
  for (int c = 0; c < d; ++c) words[c] = uint32_t(lower[c]) | uint32_t(upper[c]) << 16;
}
#endif

// Where one thread works. Sizes depend on the problem alone.
template <class N>
struct Scratch {
  int d, dp;  // channels, and padded to whole vectors
  bool twin;  // a row of channels is at most half a vector: dk and dv have two lanes for each, which are summed at last
  int words, wp;  // words of a row, and padded to whole vectors
  int64_t tiles;  // of queries
  int64_t padded;  // keys, to whole tiles
  std::vector<float> bias;                     // [tile][key][QB]: transposed, in units of log 2
  std::vector<float> k, v, zip;                // [key][wp]; K or V zipped (Pair alone): [key / 2][dp]
  std::vector<float> kt, vt;                   // transposed: [tile of keys][word][KB]
  std::vector<float> dk, dv;                   // [key][dp]
  std::vector<float> added;                    // the mask's float at each kept key
  std::vector<int64_t> kept;                   // keys that take part
  std::vector<float> scores, weights, zipped;  // [KB][QB], [KB][QB], [KB / 2][QB]
  std::vector<float> q, g, qt, gt, qz, gz;     // [QB][wp]; transposed [wp][QB]; zipped (Pair alone) [QB / 2][dp]
  std::vector<float> sums, lines;              // [dp][QB] and, transposed, [QB][dp]
  std::vector<float> line, line2, line3;       // [dp]
  std::vector<float> nothing;                  // [QB]: a bias of 0

  Scratch(const Problem& p, bool backward) {
    d = int(p.channels);
    dp = round_up(d, W);
    twin = 2 * d <= W;
    words = (d + N::PER - 1) / N::PER;
    wp = round_up(words, W);
    tiles = (p.queries + QB - 1) / QB;
    const size_t keys = p.keys + 1;  // one more: pairs of keys
    if (p.bias.data) bias.resize(size_t(tiles) * p.keys * QB);
    padded = (keys + KB - 1) / KB * KB;
    for (auto* x : {&k, &v, &kt}) x->resize(padded * wp);
    added.resize(keys);
    kept.resize(keys);
    scores.resize(KB * QB);
    for (auto* x : {&q, &qt}) x->resize(wp * QB);
    sums.resize(dp * QB);
    lines.resize(dp * QB);
    for (auto* x : {&line, &line2, &line3}) x->resize(dp);
    nothing.assign(QB, 0.0f);
    if (N::PER == 2) {
      zip.resize(keys / 2 * dp + dp);
      zipped.resize(KB * QB / 2);
    }
    if (backward) {
      vt.resize(padded * wp);
      for (auto* x : {&g, &gt}) x->resize(wp * QB);
      if (N::PER == 2)
        for (auto* x : {&qz, &gz}) x->resize(QB / 2 * dp);
      dk.resize(keys * dp);
      dv.resize(keys * dp);
      weights.resize(KB * QB);
    }
  }

  // a of a product along keys
  const float* along_keys(const std::vector<float>& rows, int64_t key) const {
    return N::PER == 2 ? &zip[key / 2 * dp] : &rows[key * wp];
  }
};

// The pair bias of one (batch, head), tile by tile of queries and transposed to [key][query].
template <class N>
static void pack_bias(const Problem& p, int64_t b, int64_t h, Scratch<N>& w) {
  if (!p.bias.data) return;
  float square[W][W] = {}, turned[W][W];
  for (int64_t q0 = 0; q0 < p.queries; q0 += W)
    for (int64_t k0 = 0; k0 < p.keys; k0 += W) {
      const int height = int(std::min<int64_t>(W, p.queries - q0)), length = int(std::min<int64_t>(W, p.keys - k0));
      for (int q = 0; q < height; ++q) {
        const int64_t at = place(p.bias, b, h, q0 + q, k0);
        if (p.bias.stride[3] == 1)
          fetch(Rows(p.bias, at), 0, length, square[q]);
        else
          for (int k = 0; k < length; ++k) square[q][k] = element(p.bias, at + k * p.bias.stride[3]);
        store(square[q], load(square[q]) * float(LOG2E));
      }
      transpose(square[0], W, turned[0], W);
      for (int k = 0; k < length; ++k)
        store(&w.bias[((q0 / QB) * p.keys + k0 + k) * QB + q0 % QB], load(turned[k]));
    }
}

// K and V of one row, kept keys only; returns their number, which for Pair a key of zeros, with a mask of -inf, makes even.
template <class N>
static int64_t pack_keys(const Problem& p, int64_t b, int64_t s, int64_t h, bool backward, Scratch<N>& w) {
  int64_t n = 0;
  const Rows from_k(p.k, b, s, h), from_v(p.v, b, s, h);
  for (int64_t k = 0; k < p.keys; ++k) {
    float add = 0.0f;
    if (p.mask.data) {
      const int64_t at = place(p.mask, b, s, k, 0);
      if (p.mask.type == ds4sci::BOOL) {
        if (!static_cast<const uint8_t*>(p.mask.data)[at]) continue;
      } else {
        add = element(p.mask, at);
        if (add == NONE) continue;
      }
    }
    w.kept[n] = k;
    w.added[n] = add * float(LOG2E);
    row(N{}, from_k, k, w.d, &w.k[n * w.wp]);
    row(N{}, from_v, k, w.d, &w.v[n * w.wp]);
    ++n;
  }
#if defined(__AVX512BF16__)
  if constexpr (N::PER == 2) {
    if (n % 2) {
      std::fill(&w.k[n * w.wp], &w.k[n * w.wp] + w.wp, 0.0f);
      std::fill(&w.v[n * w.wp], &w.v[n * w.wp] + w.wp, 0.0f);
      w.kept[n] = n ? w.kept[n - 1] : 0;
      w.added[n++] = NONE;
    }
    auto& rows = backward ? w.k : w.v;  // for dQ, for the output
    for (int64_t i = 0; i < n; i += 2) zip(&rows[i * w.wp], &rows[(i + 1) * w.wp], w.d, &w.zip[i / 2 * w.dp]);
  }
#endif
  for (int64_t k0 = 0; k0 < n; k0 += W)
    for (int c = 0; c < w.words; c += W) {
      const int64_t at = k0 / KB * KB * w.wp + c * KB + k0 % KB;
      transpose(&w.k[k0 * w.wp + c], w.wp, &w.kt[at], KB, std::min(W, w.words - c));
      if (backward) transpose(&w.v[k0 * w.wp + c], w.wp, &w.vt[at], KB, std::min(W, w.words - c));
    }
  return n;
}

// For Twin, in place: two rows of at most half a vector become one, lane by lane.
static inline void pair_up(std::vector<float>& rows, int count, int step) {
  for (int t = 0; t < count / 2; ++t) {
    float both[W];
    const float *a = &rows[2 * t * step], *b = &rows[(2 * t + 1) * step];
    for (int c = 0; c < W / 2; ++c) both[2 * c] = a[c], both[2 * c + 1] = b[c];
    store(&rows[t * step], load(both));
  }
}

// Rows of QB queries, transposed: [word][query].
template <class N>
static void turn(const Scratch<N>& w, const std::vector<float>& rows, std::vector<float>& to) {
  for (int c = 0; c < w.words; c += W)
    for (int q = 0; q < QB; q += W)
      transpose(&rows[q * w.wp + c], w.wp, &to[c * QB + q], QB, std::min(W, w.words - c));
}

// A tile of queries from q0 on; beyond the last one zeros.
template <class N>
static void pack_queries(const Problem& p, int64_t b, int64_t s, int64_t h, int64_t q0, int count, Scratch<N>& w) {
  const Rows from(p.q, b, s, h);
  for (int q = 0; q < count; ++q) row(N{}, from, q0 + q, w.d, &w.q[q * w.wp]);
  std::fill(w.q.begin() + count * w.wp, w.q.end(), 0.0f);
  turn(w, w.q, w.qt);
}
