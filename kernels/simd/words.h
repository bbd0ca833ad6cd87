// Rows of a strided array as rows of words (see tile.h), and back. Included by width.cpp inside its namespace.

using ds4sci::Array;

constexpr double LOG2E = 1.44269504088896340736, LN2 = 0.69314718055994530942;
constexpr float NONE = -std::numeric_limits<float>::infinity();

// A bias in units of log 2, and back as the logarithm of a sum of 2^x whose highest x is `top` (rounded).
//
// Beyond ±2^32 scores differ by hundreds or not at all, so their unit no longer matters: there they are kept as they are.
// finfo.min times log2 e would be -inf, which is no key, and finfo.max +inf, which gives NaN; and top alone, without the
// sum, is the rounded logarithm: changed to a unit and back it would be off by more than an exponential can take.
constexpr float FAR = 4294967296.0f, FAR_BINARY = FAR * float(LOG2E);
static inline Vec binary(Vec x) {
  const Vec far = x < -FAR_BINARY ? x : set(-FAR_BINARY), high = x > FAR_BINARY ? x : set(FAR_BINARY);
  const Vec near = x > FAR ? high : x * float(LOG2E);
  return x < -FAR ? far : near;
}
static inline Vec natural(Vec top, DVec log2_sum) {
  const Vec kept = narrow(wide(top) + log2_sum * LN2), near = top < -FAR_BINARY ? kept : narrow((wide(top) + log2_sum) * LN2);
  return top > FAR_BINARY ? kept : near;
}

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
