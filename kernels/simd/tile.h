// Matrix products of a tile of queries with a tile of keys.
//
// Vector lanes run over queries: scores are stored transposed, S[key][query], so that the softmax needs no shuffles. Every
// product, forward and backward, is one loop, accumulate():
//     C[i][x] += Σ_t a[i·AI + t·at] · B[t][x]        a is broadcast, x runs along the vector lanes
//
// The operands a and B consist of 32-bit lanes: one fp32 number, or two bf16 numbers that are consecutive along t. The
// classes Fp32Lanes and Bf16Lanes describe the two kinds. Sums are fp32 with both.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vector.h"

namespace DS4SCI_ISA {

constexpr int QB = 32;         // queries of a tile
constexpr int KB = 128;        // keys of a tile
constexpr int MR = DS4SCI_MR;  // rows of C that stay in registers, two vectors each
constexpr int MR2 = MR > 6 ? 4 : 3;  // the same for two C at once; small, so that the exponentials of one block overlap with
                                    // the products of the next

struct Fp32Lanes {
  static constexpr int PER_LANE = 1, DEGREE = 5;  // numbers per lane; degree of the polynomial for 2^x
  static inline Vec broadcast(const float* a) { return set1(*a); }
  static inline Vec fmadd(Vec sum, Vec a, Vec row) { return sum + a * row; }
};

#if defined(__AVX512BF16__)
struct Bf16Lanes {
  static constexpr int PER_LANE = 2, DEGREE = 4;
  static inline Vec broadcast(const float* a) { return Vec(_mm512_set1_ps(*a)); }
  static inline Vec fmadd(Vec sum, Vec a, Vec row) {
    return Vec(_mm512_dpbf16_ps(__m512(sum), __m512bh(row), __m512bh(__m512(a))));
  }
};
#endif

// Two lanes of a at once, for a B whose rows are at most half a vector: lane 2c + j of row t is column c of row 2t + j of the
// unpaired B. The lanes 2c and 2c + 1 of C are added in the end.
template <class L>
struct PairedLanes {
  static constexpr int PER_LANE = L::PER_LANE;
  static inline Vec broadcast(const float* a) {
    typedef long long Two __attribute__((vector_size(4 * DS4SCI_LANES)));
    long long two;
    std::memcpy(&two, a, 8);
    return reinterpret_cast<Vec>(Two{} + two);
  }
  static inline Vec fmadd(Vec sum, Vec a, Vec row) { return L::fmadd(sum, a, row); }
};

// acc[i][x] += Σ_t a[i·AI + t·at] · b[t·bt + x], see above. The accumulators must stay in registers through all steps, so every
// loop over them is unrolled. AI is a compile-time constant: the addresses of the rows of a would need too many registers.
template <class L, int AI, int M, int NV>
__attribute__((always_inline)) static inline void accumulate(Vec (&acc)[M][NV], int steps, const float* a, long at,
                                                             const float* b, long bt) {
  for (int t = 0; t < steps; ++t) {
    Vec row[NV];
    DS4SCI_UNROLL for (int x = 0; x < NV; ++x) row[x] = load(b + t * bt + x * W);
    DS4SCI_UNROLL for (int i = 0; i < M; ++i) {
      const Vec s = L::broadcast(a + i * AI + t * at);
      DS4SCI_UNROLL for (int x = 0; x < NV; ++x) acc[i][x] = L::fmadd(acc[i][x], s, row[x]);
    }
  }
}

// Calls body with the height of a block, `units` times STEP, as a compile-time constant.
template <int M, int STEP, class Body>
static inline void with_height(int units, int first, Body body) {
  if constexpr (M > 0) {
    if (units == M) return body(std::integral_constant<int, M * STEP>{}, first);
    with_height<M - 1, STEP>(units, first, body);
  }
}

// Calls body(std::integral_constant<int, rows>, first row) for blocks of m rows. Their heights are multiples of STEP, at most M
// and nearly equal: a low last block would be bound by the latency of its own sums.
template <int M, int STEP, class Body>
static inline void for_each_block(int m, Body body) {
  const int units = m / STEP, max_units = M / STEP, count = (units + max_units - 1) / max_units;
  for (int n = 0, i = 0; n < count; ++n) {
    const int rows = units / count + (n < units % count);
    with_height<M / STEP, STEP>(rows, i, body);
    i += rows * STEP;
  }
}

enum Update { SET, ADD, RESCALE };  // C = AB, C = C + AB, C = C · rescale + AB

// Updates C[m][width] with Σ_t a[i·AI + t·at] · B[t·bt + x]; width is a multiple of W.
//
// The product is summed by itself and added to C in the end. Of n summands in total, each then goes through `steps` and
// n / steps roundings instead of n. Bf16Lanes accumulate into C directly (IN_PLACE): rounding to bf16 dominates there.
template <class L, int AI, Update UPDATE>
static void matmul(int m, int width, int steps, const float* a, long at, const float* b, long bt, float* c, long ci,
                   const Vec* rescale = nullptr) {
  constexpr bool IN_PLACE = UPDATE == ADD && L::PER_LANE == 2;
  auto columns = [&](auto vectors, int x0) {
    constexpr int NV = vectors;
    for_each_block<MR, 1>(m, [&](auto height, int i0) {
      constexpr int M = height;
      float* dst = c + i0 * ci + x0;
      Vec acc[M][NV];
      DS4SCI_UNROLL for (int i = 0; i < M; ++i)
        DS4SCI_UNROLL for (int x = 0; x < NV; ++x) acc[i][x] = IN_PLACE ? load(dst + i * ci + x * W) : Vec{};
      accumulate<L, AI>(acc, steps, a + i0 * AI, at, b + x0, bt);
      DS4SCI_UNROLL for (int i = 0; i < M; ++i)
        DS4SCI_UNROLL for (int x = 0; x < NV; ++x) {
          float* const cell = dst + i * ci + x * W;
          if (UPDATE == ADD && !IN_PLACE) acc[i][x] += load(cell);
          if (UPDATE == RESCALE) acc[i][x] += load(cell) * rescale[x0 / W + x];
          store(cell, acc[i][x]);
        }
    });
  };
  int x = 0;
  for (; x + 2 * W <= width; x += 2 * W) columns(std::integral_constant<int, 2>{}, x);
  for (; x < width; x += W) columns(std::integral_constant<int, 1>{}, x);
}

// Computes the weights exp2(scores - base) of one vector of queries and a tile of keys, as lanes for a product along the keys:
// Fp32Lanes in place, Bf16Lanes to `interleaved`. Returns the sum of the weights over the keys.
static inline Vec exp_and_sum(Fp32Lanes, int keys, Vec base, float* scores, float*) {
  constexpr int CHUNK = 16;  // summed by themselves first, to reduce rounding, see matmul()
  Vec total = Vec{};
  for (int begin = 0; begin < keys; begin += CHUNK) {
    Vec partial = Vec{};
    for (int k = begin; k < std::min(keys, begin + CHUNK); ++k) {
      const Vec weight = exp2<Fp32Lanes::DEGREE>(load(scores + k * QB) - base);
      store(scores + k * QB, weight);
      partial += weight;
    }
    total += partial;
  }
  return total;
}

// Stores the results of a block of keys: P (for dV) and dS (for dK) as lanes along the queries, and dS (for dQ) as lanes along
// the keys, which for Fp32Lanes is the same array.
template <int M>
static inline void store_p_ds(Fp32Lanes, const Vec (&probs)[M][2], const Vec (&dscores)[M][2], int i0, int x0, float* p,
                              float* ds, float*) {
  DS4SCI_UNROLL for (int i = 0; i < M; ++i)
    DS4SCI_UNROLL for (int x = 0; x < 2; ++x) {
      store(p + (i0 + i) * QB + x0 + x * W, probs[i][x]);
      store(ds + (i0 + i) * QB + x0 + x * W, dscores[i][x]);
    }
}

#if defined(__AVX512BF16__)
static_assert(QB == 2 * W, "a row of queries is one vector of bf16");

// Two fp32 vectors rounded to one vector of bf16, `first` in the lower half.
static inline Vec to_bf16x2(Vec first, Vec second) {
  return Vec(__m512(__m512i(_mm512_cvtne2ps_pbh(__m512(second), __m512(first)))));
}

// Pairs (a[i], b[i]) of two vectors of bf16, for i from FIRST to FIRST + 15.
template <int FIRST>
static inline Vec interleave(Vec a, Vec b) {
  alignas(64) static constexpr uint16_t order[32] = {
#define DS4SCI_PAIR(i) FIRST + i, 32 + FIRST + i
      DS4SCI_PAIR(0),  DS4SCI_PAIR(1),  DS4SCI_PAIR(2),  DS4SCI_PAIR(3),  DS4SCI_PAIR(4),  DS4SCI_PAIR(5),
      DS4SCI_PAIR(6),  DS4SCI_PAIR(7),  DS4SCI_PAIR(8),  DS4SCI_PAIR(9),  DS4SCI_PAIR(10), DS4SCI_PAIR(11),
      DS4SCI_PAIR(12), DS4SCI_PAIR(13), DS4SCI_PAIR(14), DS4SCI_PAIR(15)
#undef DS4SCI_PAIR
  };
  return Vec(_mm512_permutex2var_epi16(__m512i(a), _mm512_load_si512(order), __m512i(b)));
}

// Pairs (a[i], a[16 + i]) of one vector of bf16.
static inline Vec interleave_halves(Vec a) {
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return Vec(_mm512_permutexvar_epi16(_mm512_load_si512(order), __m512i(a)));
}

static inline Vec exp_and_sum(Bf16Lanes, int keys, Vec base, float* scores, float* interleaved) {
  Vec total = Vec{};
  for (int k = 0; k < keys; k += 2) {
    const Vec one = exp2<Bf16Lanes::DEGREE>(load(scores + k * QB) - base);
    const Vec other = exp2<Bf16Lanes::DEGREE>(load(scores + (k + 1) * QB) - base);
    store(interleaved + k / 2 * QB, interleave_halves(to_bf16x2(one, other)));
    total += one + other;
  }
  return total;
}

template <int M>
static inline void store_p_ds(Bf16Lanes, const Vec (&probs)[M][2], const Vec (&dscores)[M][2], int i0, int, float* p,
                              float* ds, float* interleaved) {
  DS4SCI_UNROLL for (int i = 0; i < M; i += 2) {
    const Vec one = to_bf16x2(dscores[i][0], dscores[i][1]), other = to_bf16x2(dscores[i + 1][0], dscores[i + 1][1]);
    store(p + (i0 + i) * W, to_bf16x2(probs[i][0], probs[i][1]));
    store(p + (i0 + i + 1) * W, to_bf16x2(probs[i + 1][0], probs[i + 1][1]));
    store(ds + (i0 + i) * W, one);
    store(ds + (i0 + i + 1) * W, other);
    store(interleaved + (i0 + i) / 2 * QB, interleave<0>(one, other));
    store(interleaved + (i0 + i) / 2 * QB + W, interleave<16>(one, other));
  }
}
#endif

}  // namespace DS4SCI_ISA
