// Rows of a strided array as fp32 or as rows of 32-bit lanes (see tile.h), and back.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "array.h"
#include "fp16.h"
#include "tile.h"

namespace DS4SCI_ISA {

using ds4sci::Array;

constexpr double LOG2E = 1.44269504088896340736, LN2 = 0.69314718055994530942;
constexpr float NEG_INF = -std::numeric_limits<float>::infinity();

// Conversion of a bias to units of log 2, and of a log-sum-exp back: from_log2 is the natural logarithm of a sum of 2^x whose
// largest x is `top` (rounded) and whose log2 is top + log2_sum.
//
// Beyond ±2^32, scores differ by hundreds or not at all, so their unit does not matter: there they are not converted.
// finfo.min times log2 e would be -inf, which masks a key, and finfo.max times log2 e would be +inf, which gives NaN. And
// `top` is then the rounded log-sum-exp itself: converted there and back it would be off by more than an exponential allows.
constexpr float UNIT_LIMIT = 4294967296.0f, UNIT_LIMIT_LOG2 = UNIT_LIMIT * float(LOG2E);
static inline Vec to_log2(Vec x) {
  const Vec low = x < -UNIT_LIMIT_LOG2 ? x : set1(-UNIT_LIMIT_LOG2), high = x > UNIT_LIMIT_LOG2 ? x : set1(UNIT_LIMIT_LOG2);
  const Vec converted = x > UNIT_LIMIT ? high : x * float(LOG2E);
  return x < -UNIT_LIMIT ? low : converted;
}
static inline Vec from_log2(Vec top, DVec log2_sum) {
  const Vec unconverted = to_float(to_double(top) + log2_sum * LN2);
  const Vec converted = top < -UNIT_LIMIT_LOG2 ? unconverted : to_float((to_double(top) + log2_sum) * LN2);
  return top > UNIT_LIMIT_LOG2 ? unconverted : converted;
}

static inline int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

// One element of a floating-point array, as fp32.
static inline float element(const Array& x, int64_t at) {
  switch (x.dtype) {
    case ds4sci::FLOAT32: return static_cast<const float*>(x.data)[at];
    case ds4sci::BFLOAT16: return bits_to_float(uint32_t(static_cast<const uint16_t*>(x.data)[at]) << 16);
    default: return half_to_float(static_cast<const uint16_t*>(x.data)[at]);
  }
}

// Index of an element, for element().
static inline int64_t offset(const Array& x, int64_t i, int64_t j, int64_t k, int64_t l) {
  return i * x.stride[0] + j * x.stride[1] + k * x.stride[2] + l * x.stride[3];
}

// The rows of channels of one (batch, row, head), or one row of channels. `stride` is in bytes.
struct Rows {
  char* data;
  int64_t stride, dtype;

  Rows(const Array& x, int64_t b, int64_t s, int64_t h)
      : data(static_cast<char*>(x.data) + offset(x, b, s, 0, h) * size(x.dtype)),
        stride(x.stride[2] * size(x.dtype)),
        dtype(x.dtype) {}
  Rows(const Array& x, int64_t first)
      : data(static_cast<char*>(x.data) + first * size(x.dtype)), stride(0), dtype(x.dtype) {}

  static int64_t size(int64_t dtype) { return dtype == ds4sci::FLOAT32 ? 4 : 2; }
  template <class T>
  T* row(int64_t n) const { return reinterpret_cast<T*>(data + n * stride); }

  // Prefetches rows from..to. They are h·d apart, a stride that hardware prefetchers do not follow.
  template <int WRITE>
  void prefetch(int64_t from, int64_t to, int d) const {
    for (int64_t n = from; n < to; ++n)
      for (int64_t i = 0; i < d * size(dtype); i += 64) {
        __builtin_prefetch(data + n * stride + i, WRITE, 2);
        asm volatile("");  // keeps the compiler from removing calls of the caller as free of side effects
      }
  }
};

// Copies n numbers in pieces of a fixed size, which the compiler inlines.
template <class T>
static inline void copy(const T* from, T* to, int n) {
  int i = 0;
  for (; i + W <= n; i += W) std::memcpy(to + i, from + i, W * sizeof(T));
  for (; i + 4 <= n; i += 4) std::memcpy(to + i, from + i, 4 * sizeof(T));
  for (; i < n; ++i) to[i] = from[i];
}

// Row n, d numbers, as fp32. `to` has room for whole vectors; its elements beyond d are unchanged or become 0.
static inline void load_row(const Rows& x, int64_t n, int d, float* to) {
  if (x.dtype == ds4sci::FLOAT32) return copy(x.row<const float>(n), to, d);
  const uint16_t* from = x.row<const uint16_t>(n);
  if (x.dtype == ds4sci::FLOAT16) {
    for (int i = 0; i < d; ++i) to[i] = half_to_float(from[i]);
    return;
  }
  for (int i = 0; i < d; i += W) {
    HVec bits = {};
    if (i + W <= d)
      std::memcpy(&bits, from + i, sizeof bits);
    else
      copy(from + i, reinterpret_cast<uint16_t*>(&bits), d - i);
    store(to + i, reinterpret_cast<Vec>(__builtin_convertvector(bits, IVec) << 16));
  }
}

// d numbers rounded to bf16.
static inline void to_bf16(const float* from, int d, uint16_t* to) {
  for (int i = 0; i < d; i += W) {
    const HVec bits = to_bf16(load(from + i));
    if (i + W <= d)
      std::memcpy(to + i, &bits, sizeof bits);
    else
      copy(reinterpret_cast<const uint16_t*>(&bits), to + i, d - i);
  }
}

// The inverse of load_row.
static inline void store_row(const Rows& x, int64_t n, int d, const float* from) {
  if (x.dtype == ds4sci::FLOAT32) return copy(from, x.row<float>(n), d);
  if (x.dtype == ds4sci::BFLOAT16) return to_bf16(from, d, x.row<uint16_t>(n));
  uint16_t* to = x.row<uint16_t>(n);
  for (int i = 0; i < d; ++i) to[i] = float_to_half(from[i]);
}

// Row n of an array, or d fp32 numbers, as a row of lanes.
static inline void load_lanes(Fp32Lanes, const Rows& x, int64_t n, int d, float* to) { load_row(x, n, d, to); }
static inline void pack_lanes(Fp32Lanes, const float* from, int d, float* to) { copy(from, to, d); }

#if defined(__AVX512BF16__)
static inline void load_lanes(Bf16Lanes, const Rows& x, int64_t n, int d, float* to) {  // x is bf16
  copy(x.row<const uint16_t>(n), reinterpret_cast<uint16_t*>(to), d);
}
static inline void pack_lanes(Bf16Lanes, const float* from, int d, float* to) {
  to_bf16(from, d, reinterpret_cast<uint16_t*>(to));
}

// Pairs (a[c], b[c]) of two rows of bf16 as lanes, for a product along the rows.
static inline void interleave(const float* a, const float* b, int d, float* to) {
  typedef uint16_t __attribute__((may_alias)) Bf16Bits;
  typedef uint32_t __attribute__((may_alias)) LaneBits;
  const Bf16Bits *lower = reinterpret_cast<const Bf16Bits*>(a), *upper = reinterpret_cast<const Bf16Bits*>(b);
  LaneBits* lanes = reinterpret_cast<LaneBits*>(to);
  for (int c = 0; c < d; ++c) lanes[c] = uint32_t(lower[c]) | uint32_t(upper[c]) << 16;
}
#endif

}  // namespace DS4SCI_ISA
