// Vectors of one instruction set: loads, stores, conversions, exp2, log2 and the transpose of a square.
#pragma once

#include <utility>

#include "isa.h"

namespace DS4SCI_ISA {

typedef float Vec __attribute__((vector_size(4 * DS4SCI_LANES), aligned(4), may_alias));
typedef int IVec __attribute__((vector_size(4 * DS4SCI_LANES), aligned(4), may_alias));
constexpr int W = DS4SCI_LANES;

static inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
static inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
static inline Vec set1(float x) { return x - Vec{}; }  // not x + Vec{}: that would turn -0 into 0
typedef unsigned short HVec __attribute__((vector_size(2 * DS4SCI_LANES), aligned(2), may_alias));
static inline Vec from_bf16(HVec x) {
#if defined(__AVX512F__)  // compilers convert half a vector at a time
  return Vec(_mm512_slli_epi32(_mm512_cvtepu16_epi32(__m256i(x)), 16));
#else
  return reinterpret_cast<Vec>(__builtin_convertvector(x, IVec) << 16);
#endif
}

static inline HVec to_bf16(Vec x) {
#if defined(__AVX512BF16__)
  return HVec(__m256i(_mm512_cvtneps_pbh(__m512(x))));
#else
  const IVec bits = reinterpret_cast<IVec>(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded, HVec);
#endif
}

static inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// 2^r for |r| <= 1/2, by a minimax polynomial of the relative error.
// DEGREE 5: relative error below 1e-7. DEGREE 4: below 3e-6, for results that are rounded to bf16 afterwards.
template <int DEGREE>
static inline Vec exp2_polynomial(Vec r) {
  if constexpr (DEGREE == 4) {
    Vec p = set1(0.958284e-2f);
    p = p * r + 0.5590643e-1f;
    p = p * r + 0.24024099f;
    p = p * r + 0.69312419f;
    return p * r + 1.0f;
  } else {
    Vec p = set1(0.132647e-2f);
    p = p * r + 0.967151e-2f;
    p = p * r + 0.5550734e-1f;
    p = p * r + 0.24022242f;
    p = p * r + 0.69314698f;
    return p * r + 1.0f;
  }
}

// 2^x; 0 for x below -126. Scores are stored in units of log 2, so that no e^x is needed.
template <int DEGREE>
static inline Vec exp2(Vec x) {
#if defined(__AVX512DQ__)
  const Vec r = Vec(_mm512_reduce_ps(__m512(x), 0));
  return Vec(_mm512_scalef_ps(__m512(exp2_polynomial<DEGREE>(r)), __m512(x - r)));
#else
  const Vec shift = set1(12582912.0f);  // 1.5·2^23: adding it rounds to an integer
  const Vec rounded = x + shift;
  const Vec power = exp2_polynomial<DEGREE>(x - (rounded - shift));
  const IVec scaled = reinterpret_cast<IVec>(power) + (reinterpret_cast<IVec>(rounded) << 23);
  return reinterpret_cast<Vec>(scaled & ~(x < -126.0f));
#endif
}

// As many doubles, for the few values per row whose rounding error would reach every gradient.
typedef double DVec __attribute__((vector_size(8 * DS4SCI_LANES)));
static inline DVec to_double(Vec x) { return __builtin_convertvector(x, DVec); }
static inline Vec to_float(DVec x) { return __builtin_convertvector(x, Vec); }

// The sum of the lanes.
static inline double reduce_add(DVec x) {
  double parts[4] = {};
  for (int l = 0; l < W; ++l) parts[l % 4] += x[l];
  return parts[0] + parts[1] + (parts[2] + parts[3]);
}

// log2(x) for positive normal x, with an error of 1e-12: x = 2^e m, log m = log √2 + 2 artanh((m - √2) / (m + √2)).
static inline DVec log2(Vec x) {
  const IVec bits = reinterpret_cast<IVec>(x), exponent = (bits >> 23) - 127;
  const DVec m = to_double(reinterpret_cast<Vec>((bits & 0x7fffff) | 0x3f800000));
  const double sqrt2 = 1.41421356237309504880;
  const DVec s = (m - sqrt2) / (m + sqrt2), t = s * s;
  DVec p = t * (2.0 / 13) + 2.0 / 11;
  p = p * t + 2.0 / 9;
  p = p * t + 2.0 / 7;
  p = p * t + 2.0 / 5;
  p = p * t + 2.0 / 3;
  p = p * t + 2.0;
  return __builtin_convertvector(exponent, DVec) + 0.5 + p * s * 1.44269504088896340736;
}

// Exchanges the lanes of `lower` whose number has bit S set with the lanes of `upper` whose number has it clear.
template <int S, int... I>
static inline void swap_lanes(Vec& lower, Vec& upper, std::integer_sequence<int, I...>) {
  const Vec a = lower, b = upper;
#if defined(__clang__)
  lower = __builtin_shufflevector(a, b, (I & S ? W + (I ^ S) : I)...);
  upper = __builtin_shufflevector(a, b, (I & S ? W + I : I ^ S)...);
#else
  lower = __builtin_shuffle(a, b, IVec{(I & S ? W + (I ^ S) : I)...});
  upper = __builtin_shuffle(a, b, IVec{(I & S ? W + I : I ^ S)...});
#endif
}

// The steps S, 2S, 4S, … of the transpose of a square.
template <int S>
static inline void transpose_step(Vec (&x)[W]) {
  if constexpr (S < W) {
    DS4SCI_UNROLL for (int i = 0; i < W; ++i)
      if (!(i & S)) swap_lanes<S>(x[i], x[i | S], std::make_integer_sequence<int, W>{});
    transpose_step<2 * S>(x);
  }
}

// to[c][r] = from[r][c] for a square of W × W, of which the first `rows` rows of the result are stored.
static inline void transpose(const float* from, long from_stride, float* to, long to_stride, int rows = W) {
  Vec x[W];
  DS4SCI_UNROLL for (int i = 0; i < W; ++i) x[i] = load(from + i * from_stride);
  transpose_step<1>(x);
  DS4SCI_UNROLL for (int i = 0; i < W; ++i)
    if (i < rows) store(to + i * to_stride, x[i]);
}

}  // namespace DS4SCI_ISA
