// Evoformer attention on a CPU, for one vector width. Included once per instruction set; see attention.cpp.
//
// Vector lanes run over queries: scores are kept transposed, S[key][query], so the softmax needs no shuffles and K and V
// are read in place by broadcast. Every matrix product, forward and backward, is one micro-kernel (product()):
//     C[i][x] (+)= Σ_t a(i, t) · B[t][x],   a broadcast, x along the lanes.
// Rows are packed to fp32 first (n·d work beside n²·d), which takes care of dtype, strides and masked keys: a key that
// the mask drops is simply not packed.

namespace DS4SCI_ISA {

typedef float Vec __attribute__((vector_size(4 * DS4SCI_LANES), aligned(4), may_alias));
typedef int IVec __attribute__((vector_size(4 * DS4SCI_LANES), aligned(4), may_alias));
constexpr int W = DS4SCI_LANES;
constexpr int QB = 32;         // queries of a tile
constexpr int KB = 128;        // keys of a tile
constexpr int MR = DS4SCI_MR;  // rows of the micro-kernel with two vectors

static inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
static inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
static inline Vec set(float x) { return x - Vec{}; }  // x + 0 would be an addition: it turns -0 into 0
static inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// 2^x, relative error below 1e-7; 0 below -126. Scores are kept in units of log 2, so no e^x is needed anywhere.
static inline Vec exp2(Vec x) {
  const Vec shift = set(12582912.0f);  // 1.5·2^23: adding it rounds to an integer
  const Vec rounded = x + shift;
  const Vec r = x - (rounded - shift);
  Vec p = set(0.1535920892e-3f);
  p = p * r + 0.1339262701e-2f;
  p = p * r + 0.9618384764e-2f;
  p = p * r + 0.5550347269e-1f;
  p = p * r + 0.2402264476f;
  p = p * r + 0.6931471825f;
  p = p * r + 1.0f;
  const IVec scaled = reinterpret_cast<IVec>(p) + (reinterpret_cast<IVec>(rounded) << 23);
  return reinterpret_cast<Vec>(scaled & ~(x < -126.0f));
}

#if defined(__clang__)
#define DS4SCI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DS4SCI_UNROLL _Pragma("GCC unroll 16")
#endif

// The accumulators must stay in registers from the first load to the last store, so every loop over them is unrolled.
template <int M, int NV, bool ADD>
__attribute__((always_inline)) static inline void block(int steps, const float* a, long ai, long at, const float* b, long bt, float* c, long ci) {
  Vec acc[M][NV];
  DS4SCI_UNROLL for (int i = 0; i < M; ++i)
    DS4SCI_UNROLL for (int x = 0; x < NV; ++x) acc[i][x] = ADD ? load(c + i * ci + x * W) : Vec{};
  for (int t = 0; t < steps; ++t) {
    Vec row[NV];
    DS4SCI_UNROLL for (int x = 0; x < NV; ++x) row[x] = load(b + t * bt + x * W);
    DS4SCI_UNROLL for (int i = 0; i < M; ++i) {
      const Vec s = set(a[i * ai + t * at]);
      DS4SCI_UNROLL for (int x = 0; x < NV; ++x) acc[i][x] += s * row[x];
    }
  }
  DS4SCI_UNROLL for (int i = 0; i < M; ++i)
    DS4SCI_UNROLL for (int x = 0; x < NV; ++x) store(c + i * ci + x * W, acc[i][x]);
}

template <int M, int NV, bool ADD>
static inline void sized(int m, int steps, const float* a, long ai, long at, const float* b, long bt, float* c,
                         long ci) {
  if constexpr (M > 0) {
    if (m == M) return block<M, NV, ADD>(steps, a, ai, at, b, bt, c, ci);
    sized<M - 1, NV, ADD>(m, steps, a, ai, at, b, bt, c, ci);
  }
}

// m rows in blocks of nearly equal height: a thin last one would wait for its own sums.
template <int NV, int M, bool ADD>
static void columns(int m, int steps, const float* a, long ai, long at, const float* b, long bt, float* c, long ci) {
  const int blocks = (m + M - 1) / M, height = m / blocks, taller = m % blocks;
  for (int i = 0, n = 0; n < blocks; ++n) {
    const int rows = height + (n < taller);
    sized<M, NV, ADD>(rows, steps, a + i * ai, ai, at, b, bt, c + i * ci, ci);
    i += rows;
  }
}

// C[m][width] = or += Σ_t a[i·ai + t·at] · B[t·bt + x]; width a multiple of W.
template <bool ADD>
static void product(int m, int width, int steps, const float* a, long ai, long at, const float* b, long bt, float* c,
                    long ci) {
  if (!m) return;
  int x = 0;
  for (; x + 2 * W <= width; x += 2 * W) columns<2, MR, ADD>(m, steps, a, ai, at, b + x, bt, c + x, ci);
  for (; x < width; x += W) columns<1, MR, ADD>(m, steps, a, ai, at, b + x, bt, c + x, ci);
}

#include "rows.h"

}  // namespace DS4SCI_ISA
