// Vectors of one instruction set, and what is done with them lane by lane. Included by width.cpp inside its namespace.

typedef float Vec __attribute__((vector_size(4 * DS4SCI_LANES), aligned(4), may_alias));
typedef int IVec __attribute__((vector_size(4 * DS4SCI_LANES), aligned(4), may_alias));
constexpr int W = DS4SCI_LANES;

static inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
static inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
static inline Vec set(float x) { return x - Vec{}; }  // x + 0 would be an addition: it turns -0 into 0
typedef unsigned short HVec __attribute__((vector_size(2 * DS4SCI_LANES), aligned(2), may_alias));
static inline Vec from_bf16(HVec x) { return reinterpret_cast<Vec>(__builtin_convertvector(x, IVec) << 16); }

static inline HVec to_bf16(Vec x) {
#if defined(__AVX512BF16__)
  return HVec(__m256i(_mm512_cvtneps_pbh(__m512(x))));
#else
  const IVec bits = reinterpret_cast<IVec>(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded, HVec);
#endif
}

static inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// 2^x; 0 far below. Scores are kept in units of log 2, so no e^x is needed anywhere.
// DEGREE 5: relative error below 1e-7. DEGREE 4: below 3e-6, for what is rounded to bf16 afterwards.
template <int DEGREE>
static inline Vec power(Vec r) {  // |r| <= 1/2; minimax polynomials of the relative error
  if constexpr (DEGREE == 4) {
    Vec p = set(0.958284e-2f);
    p = p * r + 0.5590643e-1f;
    p = p * r + 0.24024099f;
    p = p * r + 0.69312419f;
    return p * r + 1.0f;
  } else {
    Vec p = set(0.132647e-2f);
    p = p * r + 0.967151e-2f;
    p = p * r + 0.5550734e-1f;
    p = p * r + 0.24022242f;
    p = p * r + 0.69314698f;
    return p * r + 1.0f;
  }
}

template <int DEGREE>
static inline Vec exp2(Vec x) {
#if defined(__AVX512DQ__)
  const Vec r = Vec(_mm512_reduce_ps(__m512(x), 0));
  return Vec(_mm512_scalef_ps(__m512(power<DEGREE>(r)), __m512(x - r)));
#else
  const Vec shift = set(12582912.0f);  // 1.5·2^23: adding it rounds to an integer
  const Vec rounded = x + shift;
  const IVec scaled = reinterpret_cast<IVec>(power<DEGREE>(x - (rounded - shift))) + (reinterpret_cast<IVec>(rounded) << 23);
  return reinterpret_cast<Vec>(scaled & ~(x < -126.0f));
#endif
}

// Doubles, as many: for the few numbers of a row whose rounding would reach every gradient.
typedef double DVec __attribute__((vector_size(8 * DS4SCI_LANES)));
static inline DVec wide(Vec x) { return __builtin_convertvector(x, DVec); }
static inline Vec narrow(DVec x) { return __builtin_convertvector(x, Vec); }

static inline double sum_of(DVec x) {
  double parts[4] = {};
  for (int l = 0; l < W; ++l) parts[l % 4] += x[l];
  return parts[0] + parts[1] + (parts[2] + parts[3]);
}

// log2 of what is positive and normal, to 1e-12: x = 2^e m, log m = log √2 + 2 artanh((m - √2) / (m + √2)).
static inline DVec log2(Vec x) {
  const IVec bits = reinterpret_cast<IVec>(x), exponent = (bits >> 23) - 127;
  const DVec m = wide(reinterpret_cast<Vec>((bits & 0x7fffff) | 0x3f800000));
  const double root = 1.41421356237309504880;
  const DVec s = (m - root) / (m + root), t = s * s;
  DVec p = t * (2.0 / 13) + 2.0 / 11;
  p = p * t + 2.0 / 9;
  p = p * t + 2.0 / 7;
  p = p * t + 2.0 / 5;
  p = p * t + 2.0 / 3;
  p = p * t + 2.0;
  return __builtin_convertvector(exponent, DVec) + 0.5 + p * s * 1.44269504088896340736;
}

#if defined(__clang__)
#define DS4SCI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DS4SCI_UNROLL _Pragma("GCC unroll 32")
#endif

// Lanes with bit S of their number set in `upper`, the others in `lower`, trade places across two vectors.
template <int S, int... I>
static inline void trade(Vec& lower, Vec& upper, std::integer_sequence<int, I...>) {
  const Vec a = lower, b = upper;
#if defined(__clang__)
  lower = __builtin_shufflevector(a, b, (I & S ? W + (I ^ S) : I)...);
  upper = __builtin_shufflevector(a, b, (I & S ? W + I : I ^ S)...);
#else
  lower = __builtin_shuffle(a, b, IVec{(I & S ? W + (I ^ S) : I)...});
  upper = __builtin_shuffle(a, b, IVec{(I & S ? W + I : I ^ S)...});
#endif
}

template <int S>
static inline void transpose_by(Vec (&x)[W]) {
  if constexpr (S < W) {
    DS4SCI_UNROLL for (int i = 0; i < W; ++i)
      if (!(i & S)) trade<S>(x[i], x[i | S], std::make_integer_sequence<int, W>{});
    transpose_by<2 * S>(x);
  }
}

// to[c][r] = from[r][c] for a square of W; from and to have rows `fr` and `tr` apart; `rows` of the result are kept.
static inline void transpose(const float* from, long fr, float* to, long tr, int rows = W) {
  Vec x[W];
  DS4SCI_UNROLL for (int i = 0; i < W; ++i) x[i] = load(from + i * fr);
  transpose_by<1>(x);
  DS4SCI_UNROLL for (int i = 0; i < W; ++i)
    if (i < rows) store(to + i * tr, x[i]);
}
