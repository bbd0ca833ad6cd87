// Vectors of fp32 from and to memory of any dtype, and whole rows cut into them. Included by width.cpp inside its namespace.

struct Brain { uint16_t x; };
struct Half { uint16_t x; };

static inline Vec read(const float* p) { return load(p); }
static inline void write(float* p, Vec v) { store(p, v); }
static inline Vec read(const Brain* p) {
  HVec bits;
  std::memcpy(&bits, p, sizeof bits);
  return from_bf16(bits);
}
static inline void write(Brain* p, Vec v) {
  const HVec bits = to_bf16(v);
  std::memcpy(p, &bits, sizeof bits);
}
static inline Vec read(const Half* p) {
#if defined(__AVX512F__)
  __m256i bits;
  std::memcpy(&bits, p, sizeof bits);
  return Vec(_mm512_cvtph_ps(bits));
#else
  float x[W];
  for (int i = 0; i < W; ++i) x[i] = from_half(p[i].x);
  return load(x);
#endif
}
static inline void write(Half* p, Vec v) {
#if defined(__AVX512F__)
  const __m256i bits = _mm512_cvtps_ph(__m512(v), 0);
  std::memcpy(p, &bits, sizeof bits);
#else
  float x[W];
  store(x, v);
  for (int i = 0; i < W; ++i) p[i].x = to_half(x[i]);
#endif
}

// A vector's place in a row: a whole one, or the `n` numbers that are left, read with zeros behind them.
struct Whole {};
struct Some { int n; };
template <class T>
static inline Vec read(const T* p, Whole) { return read(p); }
template <class T>
static inline void write(T* p, Vec v, Whole) { write(p, v); }
template <class T>
static inline Vec read(const T* p, Some some) {
  T padded[W] = {};
  std::memcpy(padded, p, some.n * sizeof(T));
  return read(padded);
}
template <class T>
static inline void write(T* p, Vec v, Some some) {
  T padded[W];
  write(padded, v);
  std::memcpy(p, padded, some.n * sizeof(T));
}

// f(first element, place) for a row of n.
template <class F>
static inline void each(int64_t n, F f) {
  int64_t i = 0;
  for (; i + W <= n; i += W) f(i, Whole{});
  if (i < n) f(i, Some{int(n - i)});
}

// Lanes of a last vector that are numbers: 1 there, 0 behind.
static inline Vec there(Whole) { return set(1.0f); }
static inline Vec there(Some some) {
  float x[W];
  for (int i = 0; i < W; ++i) x[i] = i < some.n ? 1.0f : 0.0f;
  return load(x);
}

static inline float total(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(__m512(v));
#else
  float x[W];
  store(x, v);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
#endif
}

// Additions in fp32, one after another, after which a sum goes on in fp64: rounding does not grow with its length.
constexpr int FEW = 64;

// f(begin, end) for parts of a row of n, FEW vectors each.
template <class F>
static inline void in_parts(int64_t n, F f) {
  for (int64_t begin = 0; begin < n; begin += FEW * W) f(begin, std::min(n, begin + FEW * W));
}

// Σ f(first element, place) over a row of n.
template <class F>
static inline float sum_over(int64_t n, F f) {
  double all = 0;
  in_parts(n, [&](int64_t begin, int64_t end) {
    Vec part = {};
    each(end - begin, [&](int64_t j, auto at) { part += f(begin + j, at); });
    all += total(part);
  });
  return float(all);
}

// sigmoid(x) and 1 - sigmoid(x), both to a relative 2e-7: no exponential of a positive number, no difference.
struct Gate { Vec open, shut; };
static inline Gate sigmoid(Vec x) {
  const Vec small = exp2<5>(-max(x, -x) * 1.44269504f), near = 1.0f / (1.0f + small), far = small * near;
  return {x >= 0.0f ? near : far, x >= 0.0f ? far : near};
}

static inline Vec plus(Vec x, const float* bias, int64_t at, Whole w) { return bias ? x + read(bias + at, w) : x; }
static inline Vec plus(Vec x, const float* bias, int64_t at, Some s) { return bias ? x + read(bias + at, s) : x; }
