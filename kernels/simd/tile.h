// The matrix products of a tile. Vector lanes run over queries: scores are kept transposed, S[key][query], so the softmax
// needs no shuffles. Every product, forward and backward, is one loop (accumulate()):
//     C[i][x] += Σ_t a[i·AI + t·at] · B[t][x],   a broadcast, x along the lanes.
// Included by width.cpp inside its namespace.
//
// a and B are made of 32-bit words: one fp32 number, or two bf16 numbers that lie next to each other along t. The two
// kinds of words are the classes Single and Pair; sums are fp32 with both.

constexpr int QB = 32;         // queries of a tile
constexpr int KB = 128;        // keys of a tile
constexpr int MR = DS4SCI_MR;  // rows of C that stay in registers, two vectors each
constexpr int MR2 = MR > 6 ? 4 : 3;  // of two such C at once: lower, so that one block's exponentials overlap the next

struct Single {
  static constexpr int PER = 1, DEGREE = 5;  // numbers in a word; of the polynomial for 2^x
  static inline Vec spread(const float* a) { return set(*a); }
  static inline Vec madd(Vec sum, Vec a, Vec row) { return sum + a * row; }
};

#if defined(__AVX512BF16__)
struct Pair {
  static constexpr int PER = 2, DEGREE = 4;
  static inline Vec spread(const float* a) { return Vec(_mm512_set1_ps(*a)); }
  static inline Vec madd(Vec sum, Vec a, Vec row) {
    return Vec(_mm512_dpbf16_ps(__m512(sum), __m512bh(row), __m512bh(__m512(a))));
  }
};
#endif

// Two words of a at once, for a B narrower than half a vector: lane 2c + j of B's row t is column c of row 2t + j, and C's
// lanes 2c and 2c + 1 are summed at the very end.
template <class N>
struct Twin {
  static constexpr int PER = N::PER;
  static inline Vec spread(const float* a) {
    typedef long long Two __attribute__((vector_size(4 * DS4SCI_LANES)));
    long long two;
    std::memcpy(&two, a, 8);
    return reinterpret_cast<Vec>(Two{} + two);
  }
  static inline Vec madd(Vec sum, Vec a, Vec row) { return N::madd(sum, a, row); }
};

// The accumulators must stay in registers from the first step to the last, so every loop over them is unrolled.
// AI is a constant, or the addresses of the rows of a would need more registers than there are.
template <class N, int AI, int M, int NV>
__attribute__((always_inline)) static inline void accumulate(Vec (&acc)[M][NV], int steps, const float* a, long at,
                                                             const float* b, long bt) {
  for (int t = 0; t < steps; ++t) {
    Vec row[NV];
    DS4SCI_UNROLL for (int x = 0; x < NV; ++x) row[x] = load(b + t * bt + x * W);
    DS4SCI_UNROLL for (int i = 0; i < M; ++i) {
      const Vec s = N::spread(a + i * AI + t * at);
      DS4SCI_UNROLL for (int x = 0; x < NV; ++x) acc[i][x] = N::madd(acc[i][x], s, row[x]);
    }
  }
}

template <int M, int STEP, class Body>
static inline void sized(int units, int first, Body body) {
  if constexpr (M > 0) {
    if (units == M) return body(std::integral_constant<int, M * STEP>{}, first);
    sized<M - 1, STEP>(units, first, body);
  }
}

// Calls body(std::integral_constant<int, rows>, first row) for blocks of nearly equal height, at most M, multiples of
// STEP: a thin last one would wait for its own sums.
template <int M, int STEP, class Body>
static inline void blocks(int m, Body body) {
  const int units = m / STEP, most = M / STEP, count = (units + most - 1) / most;
  for (int n = 0, i = 0; n < count; ++n) {
    const int rows = units / count + (n < units % count);
    sized<M / STEP, STEP>(rows, i, body);
    i += rows * STEP;
  }
}

enum Into { SET, ADD, RESCALE };

// C[m][width] = Σ_t a[i·AI + t·at] · B[t·bt + x], or C + that, or C · shrink[x] + that; width a multiple of W.
//
// The product is a sum of its own that is added to C at last: of n summands in all, a number then goes through steps and
// n / steps roundings, not through n. Pairs of bf16 round more in their own numbers, and add to C as they go.
template <class N, int AI, Into INTO>
static void product(int m, int width, int steps, const float* a, long at, const float* b, long bt, float* c, long ci,
                    const Vec* shrink = nullptr) {
  constexpr bool ONWARD = INTO == ADD && N::PER == 2;
  auto columns = [&](auto vectors, int x0) {
    constexpr int NV = vectors;
    blocks<MR, 1>(m, [&](auto height, int i0) {
      constexpr int M = height;
      float* into = c + i0 * ci + x0;
      Vec acc[M][NV];
      DS4SCI_UNROLL for (int i = 0; i < M; ++i)
        DS4SCI_UNROLL for (int x = 0; x < NV; ++x) acc[i][x] = ONWARD ? load(into + i * ci + x * W) : Vec{};
      accumulate<N, AI>(acc, steps, a + i0 * AI, at, b + x0, bt);
      DS4SCI_UNROLL for (int i = 0; i < M; ++i)
        DS4SCI_UNROLL for (int x = 0; x < NV; ++x) {
          float* const at = into + i * ci + x * W;
          if (INTO == ADD && !ONWARD) acc[i][x] += load(at);
          if (INTO == RESCALE) acc[i][x] += load(at) * shrink[x0 / W + x];
          store(at, acc[i][x]);
        }
    });
  };
  int x = 0;
  for (; x + 2 * W <= width; x += 2 * W) columns(std::integral_constant<int, 2>{}, x);
  for (; x < width; x += W) columns(std::integral_constant<int, 1>{}, x);
}

// exp2(scores - base) of one vector of queries and a tile of keys, as the words that a product along the keys takes:
// Single in place, Pair to `zipped`. Returns their sum.
static inline Vec weigh(Single, int keys, Vec base, float* scores, float*) {
  constexpr int SOME = 16;  // summed by themselves first, see product()
  Vec total = Vec{};
  for (int begin = 0; begin < keys; begin += SOME) {
    Vec part = Vec{};
    for (int k = begin; k < std::min(keys, begin + SOME); ++k) {
      const Vec weight = exp2<Single::DEGREE>(load(scores + k * QB) - base);
      store(scores + k * QB, weight);
      part += weight;
    }
    total += part;
  }
  return total;
}

// What a block of keys gives: P for dV and dS for dK as rows of words along the queries, dS for dQ along the keys, which
// for Single is the same.
template <int M>
static inline void keep(Single, const Vec (&own)[M][2], const Vec (&slope)[M][2], int i0, int x0, float* p, float* ds,
                        float*) {
  DS4SCI_UNROLL for (int i = 0; i < M; ++i)
    DS4SCI_UNROLL for (int x = 0; x < 2; ++x) {
      store(p + (i0 + i) * QB + x0 + x * W, own[i][x]);
      store(ds + (i0 + i) * QB + x0 + x * W, slope[i][x]);
    }
}

#if defined(__AVX512BF16__)
static_assert(QB == 2 * W, "a row of queries is one vector of bf16");

static inline Vec rounded(Vec first, Vec second) {
  return Vec(__m512(__m512i(_mm512_cvtne2ps_pbh(__m512(second), __m512(first)))));
}

// Words (a, b) of two rows of bf16: lanes FIRST to FIRST + 15 of both.
template <int FIRST>
static inline Vec zip(Vec a, Vec b) {
  alignas(64) static constexpr uint16_t order[32] = {
#define DS4SCI_TWO(i) FIRST + i, 32 + FIRST + i
      DS4SCI_TWO(0), DS4SCI_TWO(1), DS4SCI_TWO(2),  DS4SCI_TWO(3),  DS4SCI_TWO(4),  DS4SCI_TWO(5),  DS4SCI_TWO(6),  DS4SCI_TWO(7),
      DS4SCI_TWO(8), DS4SCI_TWO(9), DS4SCI_TWO(10), DS4SCI_TWO(11), DS4SCI_TWO(12), DS4SCI_TWO(13), DS4SCI_TWO(14), DS4SCI_TWO(15)
#undef DS4SCI_TWO
  };
  return Vec(_mm512_permutex2var_epi16(__m512i(a), _mm512_load_si512(order), __m512i(b)));
}

// Words (lane i, lane 16 + i) of one row.
static inline Vec fold(Vec a) {
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return Vec(_mm512_permutexvar_epi16(_mm512_load_si512(order), __m512i(a)));
}

static inline Vec weigh(Pair, int keys, Vec base, float* scores, float* zipped) {
  Vec total = Vec{};
  for (int k = 0; k < keys; k += 2) {
    const Vec one = exp2<Pair::DEGREE>(load(scores + k * QB) - base);
    const Vec other = exp2<Pair::DEGREE>(load(scores + (k + 1) * QB) - base);
    store(zipped + k / 2 * QB, fold(rounded(one, other)));
    total += one + other;
  }
  return total;
}

template <int M>
static inline void keep(Pair, const Vec (&own)[M][2], const Vec (&slope)[M][2], int i0, int, float* p, float* ds,
                        float* zipped) {
  DS4SCI_UNROLL for (int i = 0; i < M; i += 2) {
    const Vec one = rounded(slope[i][0], slope[i][1]), other = rounded(slope[i + 1][0], slope[i + 1][1]);
    store(p + (i0 + i) * W, rounded(own[i][0], own[i][1]));
    store(p + (i0 + i + 1) * W, rounded(own[i + 1][0], own[i + 1][1]));
    store(ds + (i0 + i) * W, one);
    store(ds + (i0 + i + 1) * W, other);
    store(zipped + (i0 + i) / 2 * QB, zip<0>(one, other));
    store(zipped + (i0 + i) / 2 * QB + W, zip<16>(one, other));
  }
}
#endif
