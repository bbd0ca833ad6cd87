// Loads and stores of fp32 vectors in memory of any dtype, and loops over the vectors of a row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "fp16.h"
#include "vector.h"

namespace DS4SCI_ISA {

struct BFloat16 { uint16_t x; };
struct Half { uint16_t x; };

static inline Vec read(const float* p) { return load(p); }
static inline void write(float* p, Vec v) { store(p, v); }
static inline Vec read(const BFloat16* p) {
  HVec bits;
  std::memcpy(&bits, p, sizeof bits);
  return from_bf16(bits);
}
static inline void write(BFloat16* p, Vec v) {
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
  for (int i = 0; i < W; ++i) x[i] = half_to_float(p[i].x);
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
  for (int i = 0; i < W; ++i) p[i].x = float_to_half(x[i]);
#endif
}

// Tags for the lanes of a vector that are inside the row: all of them, or the first `n`. Reads fill the others with 0.
struct Full {};
struct Partial { int n; };
template <class T>
static inline Vec read(const T* p, Full) { return read(p); }
template <class T>
static inline void write(T* p, Vec v, Full) { write(p, v); }
template <class T>
static inline Vec read(const T* p, Partial tag) {
  T padded[W] = {};
  std::memcpy(padded, p, tag.n * sizeof(T));
  return read(padded);
}
template <class T>
static inline void write(T* p, Vec v, Partial tag) {
  T padded[W];
  write(padded, v);
  std::memcpy(p, padded, tag.n * sizeof(T));
}

// A vector of which the first `left` lanes exist in memory, all of them if `left` is larger. Others are read as 0.
template <class T>
static inline Vec read_lanes(const T* p, int64_t left) {
  return left >= W ? read(p) : left > 0 ? read(p, Partial{int(left)}) : Vec{};
}
template <class T>
static inline void write_lanes(T* p, Vec v, int64_t left) {
  if (left >= W)
    write(p, v);
  else if (left > 0)
    write(p, v, Partial{int(left)});
}

// Calls f(index of the first element, lanes tag) for each vector of a row of n elements.
template <class F>
static inline void for_each_vector(int64_t n, F f) {
  int64_t i = 0;
  for (; i + W <= n; i += W) f(i, Full{});
  if (i < n) f(i, Partial{int(n - i)});
}

// 1 in the lanes that are inside the row, 0 in the others.
static inline Vec lane_mask(Full) { return set1(1.0f); }
static inline Vec lane_mask(Partial tag) {
  float x[W];
  for (int i = 0; i < W; ++i) x[i] = i < tag.n ? 1.0f : 0.0f;
  return load(x);
}

// The sum of the lanes.
static inline float reduce_add(Vec v) {
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

// Number of consecutive additions in fp32 after which a sum is moved to fp64. The rounding error of a sum therefore does
// not grow with its length.
constexpr int FP32_ADDITIONS = 64;

// Calls f(begin, end) for chunks of FP32_ADDITIONS vectors of a row of n elements.
template <class F>
static inline void for_each_chunk(int64_t n, F f) {
  for (int64_t begin = 0; begin < n; begin += FP32_ADDITIONS * W) f(begin, std::min(n, begin + FP32_ADDITIONS * W));
}

// Σ f(index of the first element, lanes tag) over a row of n elements.
template <class F>
static inline float reduce_sum(int64_t n, F f) {
  double total = 0;
  for_each_chunk(n, [&](int64_t begin, int64_t end) {
    Vec partial = {};
    for_each_vector(end - begin, [&](int64_t j, auto lanes) { partial += f(begin + j, lanes); });
    total += reduce_add(partial);
  });
  return float(total);
}

// 1 / x for 1 ≤ x ≤ 2. With AVX-512 by an estimate of 14 bits and one step of Newton's method: a division takes three times as long.
static inline Vec reciprocal(Vec x) {
#if defined(__AVX512F__)
  const Vec estimate = Vec(_mm512_rcp14_ps(__m512(x)));
  return estimate * (2.0f - x * estimate);
#else
  return 1.0f / x;
#endif
}

// sigmoid(x) and 1 - sigmoid(x), both with a relative error of 3e-7: the exponential is of a non-positive number, and
// neither value is computed as a difference.
struct Sigmoid { Vec value, complement; };
static inline Sigmoid sigmoid(Vec x) {
  const Vec small = exp2<5>(-max(x, -x) * 1.44269504f), near = reciprocal(1.0f + small), far = small * near;
  return {x >= 0.0f ? near : far, x >= 0.0f ? far : near};
}

// x + bias[i…], or x without a bias.
static inline Vec add_bias(Vec x, const float* bias, int64_t i, Full lanes) { return bias ? x + read(bias + i, lanes) : x; }
static inline Vec add_bias(Vec x, const float* bias, int64_t i, Partial lanes) { return bias ? x + read(bias + i, lanes) : x; }

}  // namespace DS4SCI_ISA
