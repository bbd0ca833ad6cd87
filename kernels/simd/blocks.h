// Matrix products of blocks of rows, for operations that apply several layers to each row.
//
// A block is a few panels of PANEL rows. A panel is stored channels first, [channels][PANEL], so that vector lanes run over
// rows: the result of a product is the operand of the next one as it is, and a layer norm needs no sums across lanes.
//     product()    C[o][r]  = Σ_k W[o][k] X[k][r]        W is packed, see Weight; the caller's function takes C from registers
//     add_outer()  D[o][k] += Σ_r C[o][r] X[r][k]        gradient of a weight; X row by row, see RowSlices
//
// Operands consist of 32-bit lanes, see tile.h: with Bf16Lanes two channels (product) or two rows (add_outer) per lane. Results
// of a product are therefore stored twice: as `lanes`, the operand of a product, and `plain`, that of add_outer. With
// Fp32Lanes both are the same memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>

#include "access.h"
#include "array.h"
#include "tile.h"

namespace DS4SCI_ISA {

constexpr int PANEL = 2 * W;     // rows of a panel: two vectors
constexpr int STEP = MR / 3;     // channels of a panel are padded to a multiple, with 0

static inline int64_t padded(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
static inline int64_t padded_channels(int64_t n) { return padded(n, STEP); }

template <class L>
static inline int64_t lane_count(int64_t k) { return (k + L::PER_LANE - 1) / L::PER_LANE; }

// Memory of one thread or call, handed out in pieces that begin on cache lines. `Arena(nullptr)` counts only.
class Arena {
 public:
  explicit Arena(char* memory) : memory_(memory) {}
  float* floats(int64_t n) {
    const int64_t begin = used_;
    used_ += padded(4 * n, 64);
    return memory_ ? reinterpret_cast<float*>(memory_ + begin) : nullptr;
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// Aligned memory, zeroed. Throws std::bad_alloc.
class Memory {
 public:
  explicit Memory(int64_t bytes) : data_(static_cast<char*>(std::aligned_alloc(64, padded(std::max<int64_t>(bytes, 64), 64)))) {
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { std::free(data_); }
  char* data() const { return data_; }

 private:
  char* data_;
};

// Memory, or null if there is none.
static inline std::unique_ptr<Memory> make_memory(int64_t bytes) {
  try {
    return std::make_unique<Memory>(bytes);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

// A matrix [n][k] as an operand of product(): blocks of MR outputs, [lanes of k][MR].
struct Weight {
  const float* data;
  int64_t outputs, lanes;
  const float* block(int64_t first) const { return data + first / MR * lanes * MR; }
};

template <class L>
static inline int64_t packed_size(int64_t n, int64_t k) { return padded(n, MR) * lane_count<L>(k); }

static inline float to_float(float x) { return x; }
static inline float to_float(BFloat16 x) {
  const uint32_t bits = uint32_t(x.x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
static inline float to_float(Half x) { return half_to_float(x.x); }

// Packs the matrix of n rows whose element (o, k) is row(o)[k·sk]; row(o) is null for a row of zeros. WIDTH is MR for product(),
// PANEL for product_rows().
template <class L, class T, int WIDTH = MR, class Row>
static Weight pack_rows(Row row, int64_t sk, int64_t n, int64_t k, float* to) {
  const int64_t lanes = lane_count<L>(k);
  for (int64_t o = 0; o < padded(n, WIDTH); ++o) {
    const T* from = o < n ? row(o) : nullptr;
    float* lane = to + o / WIDTH * lanes * WIDTH + o % WIDTH;
    for (int64_t t = 0; t < lanes; ++t) {
      if constexpr (L::PER_LANE == 2) {
        uint16_t pair[2] = {};
        for (int j = 0; j < 2 && from && 2 * t + j < k; ++j) std::memcpy(pair + j, from + (2 * t + j) * sk, 2);
        std::memcpy(lane + t * WIDTH, pair, 4);
      } else {
        lane[t * WIDTH] = from ? to_float(from[t * sk]) : 0.0f;
      }
    }
  }
  return {to, n, lanes};
}

// Packs the matrix whose element (o, k) is data[o·so + k·sk].
template <class L, int WIDTH = MR, class T>
static Weight pack_weight(const T* data, int64_t so, int64_t sk, int64_t n, int64_t k, float* to) {
  return pack_rows<L, T, WIDTH>([=](int64_t o) { return data + o * so; }, sk, n, k, to);
}

// acc[i][x] = Σ_t a[i·AI + t·at] b[t·bt + x], at most SUMMED steps at a time, so that rounding does not grow with their number.
template <class L, int AI, int M>
__attribute__((always_inline)) static inline void sum_products(Vec (&acc)[M][2], int64_t steps, const float* a, int64_t at,
                                                               const float* b, int64_t bt) {
  constexpr int64_t SUMMED = 256;
  accumulate<L, AI>(acc, int(std::min(SUMMED, steps)), a, at, b, bt);
  for (int64_t t = SUMMED; t < steps; t += SUMMED) {
    Vec part[M][2] = {};
    accumulate<L, AI>(part, int(std::min(SUMMED, steps - t)), a + t * at, at, b + t * bt, bt);
    DS4SCI_UNROLL for (int i = 0; i < M; ++i)
      DS4SCI_UNROLL for (int x = 0; x < 2; ++x) acc[i][x] += part[i][x];
  }
}

// Calls e(acc, first output, panel) with acc[M][2] = Σ_k W[first + i][k] X[k][rows of the panel], for the outputs from `from` (a
// multiple of MR) to `to`, padded to a multiple of STEP. `x`: the panels' lanes; `k`: their first channel in W.
template <class L, class E>
static inline void product(const Weight& w, int64_t from, int64_t to, int64_t k, int64_t lanes, const float* x, int64_t x_panel,
                           int panels, E e) {
  for (int64_t o = from; o < to; o += MR) {
    const float* a = w.block(o) + k / L::PER_LANE * MR;
    const int units = int(padded_channels(std::min<int64_t>(MR, to - o)) / STEP);
    with_height<MR / STEP, STEP>(units, 0, [&](auto height, int) {
      constexpr int M = height;
      for (int p = 0; p < panels; ++p) {
        Vec acc[M][2] = {};
        sum_products<L, 1>(acc, lanes, a, MR, x + p * x_panel, PANEL);
        e(acc, o, p);
      }
    });
  }
}

// The same with row-major results: calls e(acc, panel, first row) with acc[M][2] = Σ_k X[k][first + i] W[o][k], for PANEL outputs
// in two vectors. `w`: the block of these outputs, packed with BLOCK = PANEL. Before, calls prefetch(panel, first row, M).
template <class L, class P, class E>
static inline void product_rows(const float* w, int64_t lanes, const float* x, int64_t x_panel, int panels, P prefetch, E e) {
  for (int p = 0; p < panels; ++p)
    for_each_block<MR, STEP>(PANEL, [&](auto height, int row) {
      constexpr int M = height;
      prefetch(p, row, M);
      Vec acc[M][2] = {};
      accumulate<L, 1>(acc, int(lanes), x + p * x_panel + row, PANEL, w, PANEL);
      e(acc, p, row);
    });
}

// D[o][k] += Σ_r C[o][r] X[r][k]. c: `plain` of the panels, from the first of `n` outputs (n is padded to a multiple of STEP).
// x: RowSlices of `k` channels. d: [n][padded(k, PANEL)].
template <class L>
static inline void add_outer(int64_t n, int64_t k, const float* c, int64_t c_panel, int panels, const float* x, float* d) {
  constexpr int LANES = PANEL / L::PER_LANE;  // of the rows of a panel
  const int64_t width = padded(k, PANEL), slice = int64_t(panels) * LANES * PANEL;
  for (int64_t k0 = 0; k0 < width; k0 += PANEL, x += slice) {
    for (int64_t o = 0; o < n; o += MR) {
      const int units = int(padded_channels(std::min<int64_t>(MR, n - o)) / STEP);
      with_height<MR / STEP, STEP>(units, 0, [&](auto height, int) {
        constexpr int M = height;
        Vec acc[M][2] = {};
        for (int p = 0; p < panels; ++p)
          accumulate<L, LANES>(acc, LANES, c + p * c_panel + o * LANES, 1, x + p * LANES * PANEL, PANEL);
        float* cell = d + o * width + k0;
        DS4SCI_UNROLL for (int i = 0; i < M; ++i)
          DS4SCI_UNROLL for (int v = 0; v < 2; ++v) {
            float* to = cell + i * width + v * W;
            store(to, load(to) + acc[i][v]);
          }
      });
    }
  }
}

// Calls f(i, v, acc[i][v]) for the vectors of a result of product().
template <int M, class F>
__attribute__((always_inline)) static inline void for_each_result(Vec (&acc)[M][2], F f) {
  DS4SCI_UNROLL for (int i = 0; i < M; ++i)
    DS4SCI_UNROLL for (int v = 0; v < 2; ++v) f(i, v, acc[i][v]);
}

// Channels `o` to o + M of a panel, as results of product() and as operands of the next ones.
template <int M>
static inline void store_panel(Fp32Lanes, const Vec (&x)[M][2], int64_t o, float* lanes, float*) {
  DS4SCI_UNROLL for (int i = 0; i < M; ++i)
    DS4SCI_UNROLL for (int v = 0; v < 2; ++v) store(lanes + (o + i) * PANEL + v * W, x[i][v]);
}

#if defined(__AVX512BF16__)
template <int M>
static inline void store_panel(Bf16Lanes, const Vec (&x)[M][2], int64_t o, float* lanes, float* plain) {
  DS4SCI_UNROLL for (int i = 0; i < M; i += 2) {
    const Vec one = to_bf16x2(x[i][0], x[i][1]), other = to_bf16x2(x[i + 1][0], x[i + 1][1]);
    store(lanes + (o + i) / 2 * PANEL, interleave<0>(one, other));
    store(lanes + (o + i) / 2 * PANEL + W, interleave<16>(one, other));
    if (plain) {
      store(plain + (o + i) * W, one);
      store(plain + (o + i + 1) * W, other);
    }
  }
}
#endif

// An fp32 panel [channels][PANEL] as the operand of product(), and of add_outer() where `plain` is not null.
template <class L>
static inline void convert_panel(const float* from, int64_t channels, float* lanes, float* plain) {
  for (int64_t o = 0; o < channels; o += 2) {
    Vec x[2][2] = {};
    for (int i = 0; i < 2 && o + i < channels; ++i)
      for (int v = 0; v < 2; ++v) x[i][v] = load(from + (o + i) * PANEL + v * W);
    store_panel(L{}, x, o, lanes, plain);
  }
}

// Where the rows of a panel begin, in elements: row r of a tensor at r / inner · stride[0] + r % inner · stride[1]. Beyond `rows`
// the last one is repeated.
struct RowOffsets {
  int64_t at[PANEL];

  RowOffsets(int64_t inner, const int64_t (&stride)[2], int64_t first, int rows) {
    int64_t i = first / inner, j = first % inner;
    for (int r = 0; r < PANEL; ++r) {
      at[r] = i * stride[0] + j * stride[1];
      if (r + 1 < rows && ++j == inner) j = 0, ++i;
    }
  }
};

// Reads `rows` ≤ PANEL rows of `channels` as an fp32 panel. row(r): the first element of row r. Rows beyond the last are 0.
template <class Row>
static inline void gather_panel(Row row, int rows, int64_t channels, float* to) {
  for (int v = 0; v < PANEL; v += W)
    for (int64_t k = 0; k < channels; k += W) {
      const int width = int(std::min<int64_t>(W, channels - k));
      Vec x[W];
      if (v + W <= rows && width == W) {
        DS4SCI_UNROLL for (int r = 0; r < W; ++r) x[r] = read(row(v + r) + k);
      } else {
        for (int r = 0; r < W; ++r) x[r] = v + r < rows ? read_lanes(row(v + r) + k, width) : Vec{};
      }
      transpose_step<1>(x);
      DS4SCI_UNROLL for (int i = 0; i < W; ++i)
        if (i < width) store(to + (k + i) * PANEL + v, x[i]);
    }
}

// A square of an fp32 panel, rows v to v + W of channels k to k + W, transposed: x[r] holds channels. Channels beyond the last
// are 0.
static inline void transpose_rows(const float* panel, int v, int64_t k, int64_t channels, Vec (&x)[W]) {
  DS4SCI_UNROLL for (int i = 0; i < W; ++i) x[i] = k + i < channels ? load(panel + (k + i) * PANEL + v) : Vec{};
  transpose_step<1>(x);
}

// The inverse of gather_panel: writes `rows` rows of `channels`.
template <class Row>
static inline void scatter_panel(const float* from, Row row, int rows, int64_t channels) {
  for (int v = 0; v < rows; v += W)
    for (int64_t k = 0; k < channels; k += W) {
      Vec x[W];
      transpose_rows(from, v, k, channels, x);
      if (v + W <= rows && k + W <= channels) {
        DS4SCI_UNROLL for (int r = 0; r < W; ++r) write(row(v + r) + k, x[r]);
      } else {
        for (int r = 0; r < std::min(W, rows - v); ++r) write_lanes(row(v + r) + k, x[r], channels - k);
      }
    }
}

// Both for rows at equal distances.
template <class T>
static inline void load_panel(const T* from, int64_t step, int rows, int64_t channels, float* to) {
  gather_panel([=](int r) { return from + r * step; }, rows, channels, to);
}

template <class T>
static inline void store_rows(const float* from, T* to, int64_t step, int rows, int64_t channels) {
  scatter_panel(from, [=](int r) { return to + r * step; }, rows, channels);
}

// Reads and writes a panel of a tensor that is stored channels first, from[channel · step + row].
template <class T>
static inline void load_columns(const T* from, int64_t step, int rows, int64_t channels, float* to) {
  for (int64_t k = 0; k < channels; ++k, from += step)
    for (int v = 0; v < PANEL; v += W) store(to + k * PANEL + v, read_lanes(from + v, rows - v));
}

template <class T>
static inline void store_columns(const float* from, T* to, int64_t step, int rows, int64_t channels) {
  for (int64_t k = 0; k < channels; ++k, to += step)
    for (int v = 0; v < rows; v += W) write_lanes(to + v, load(from + k * PANEL + v), rows - v);
}

// An fp32 panel as panel number `p` of `panels` in RowSlices, the operand of add_outer(): for each PANEL channels, the rows of
// all panels, [panels · lanes of rows][PANEL].
template <class L>
static inline void slice_rows(const float* from, int64_t channels, int p, int panels, float* to) {
  constexpr int LANES = PANEL / L::PER_LANE;
  for (int v = 0; v < PANEL; v += W)
    for (int64_t k = 0; k < channels; k += W) {
      Vec x[W];
      transpose_rows(from, v, k, channels, x);
      float* row = to + (k / PANEL * panels + p) * LANES * PANEL + k % PANEL;
      if constexpr (L::PER_LANE == 1) {
        DS4SCI_UNROLL for (int r = 0; r < W; ++r) store(row + (v + r) * PANEL, x[r]);
      } else {
#if defined(__AVX512BF16__)
        DS4SCI_UNROLL for (int r = 0; r < W; r += 2)
          store(row + (v + r) / 2 * PANEL, interleave_halves(to_bf16x2(x[r], x[r + 1])));
#endif
      }
    }
}

static inline int64_t slices_size(int64_t channels, int panels, int per_lane) {
  return padded(channels, PANEL) / PANEL * panels * (PANEL / per_lane) * PANEL;
}

// Layer norm over the channels of an fp32 panel.
struct PanelNorm {
  Vec mean[2], rstd[2];

  // Mean and reciprocal standard deviation of the rows of x. Four sums at once, each of a quarter of the channels: a single one
  // would wait for its own last addition. Rows from `rows` on become 0: with eps = 0 they would be 0 · inf.
  void measure(const float* x, int64_t channels, double eps, int rows = PANEL) {
    for (int v = 0; v < 2; ++v)
      mean[v] = sum_channels(channels, [&](int64_t k) { return load(x + k * PANEL + v * W); }) / float(channels);
    for (int v = 0; v < 2; ++v) {
      const Vec square = sum_channels(channels, [&](int64_t k) {
        const Vec d = load(x + k * PANEL + v * W) - mean[v];
        return d * d;
      });
      Vec root = square / float(channels) + float(eps);
      for (int i = 0; i < W; ++i) root[i] = v * W + i < rows ? 1.0f / std::sqrt(root[i]) : 0.0f;
      rstd[v] = root + (square - square);  // NaN if the sum of squares overflows: 1 / inf would hide it
    }
  }

  // scaled = (x - mean) · rstd, y = scaled · weight + bias. Either may be null or x itself; `bias` may be null.
  void apply(const float* x, const float* weight, const float* bias, int64_t channels, float* scaled, float* y) const {
    for (int64_t k = 0; k < channels; ++k)
      for (int v = 0; v < 2; ++v) {
        const int64_t cell = k * PANEL + v * W;
        const Vec s = (load(x + cell) - mean[v]) * rstd[v];
        if (scaled) store(scaled + cell, s);
        if (y) store(y + cell, bias ? s * weight[k] + bias[k] : s * weight[k]);
      }
  }

  template <class F>
  static Vec sum_channels(int64_t channels, F f) {
    Vec total[4] = {};
    int64_t k = 0;
    for (; k + 4 <= channels; k += 4)
      DS4SCI_UNROLL for (int i = 0; i < 4; ++i) total[i] += f(k + i);
    for (; k < channels; ++k) total[0] += f(k);
    return (total[0] + total[1]) + (total[2] + total[3]);
  }

  // Replaces `grad`, the gradient of weight · scaled + bias, by that of the layer norm's input. `scaled`: as apply() stores
  // it. Adds the gradients of weight and bias to sums[0] and sums[1], fp64, if they are not null.
  void backward(float* grad, const float* scaled, const float* weight, int64_t channels, double* const sums[2]) const {
    Vec sum[2] = {}, inner[2] = {};
    for (int64_t k = 0; k < channels; ++k) {
      Vec of_weight = {}, of_bias = {};
      for (int v = 0; v < 2; ++v) {
        const Vec g = load(grad + k * PANEL + v * W), s = load(scaled + k * PANEL + v * W), a = g * weight[k];
        sum[v] += a;
        inner[v] += a * s;
        of_weight += g * s;
        of_bias += g;
      }
      if (sums[0]) sums[0][k] += double(reduce_add(of_weight));
      if (sums[1]) sums[1][k] += double(reduce_add(of_bias));
    }
    for (int v = 0; v < 2; ++v) {
      const Vec first = sum[v] / float(channels), second = inner[v] / float(channels);
      for (int64_t k = 0; k < channels; ++k) {
        float* cell = grad + k * PANEL + v * W;
        store(cell, (load(cell) * weight[k] - first - load(scaled + k * PANEL + v * W) * second) * rstd[v]);
      }
    }
  }
};

// Adds Σ_r x[k][r] to the fp64 sums.
static inline void add_row_sums(const float* x, int64_t channels, double* sums) {
  for (int64_t k = 0; k < channels; ++k) sums[k] += double(reduce_add(load(x + k * PANEL) + load(x + k * PANEL + W)));
}

// The turns in which tasks add their parts to shared sums: in the order of their numbers, whatever thread runs them, so that
// results do not depend on the number of threads.
class Turns {
 public:
  template <class F>
  void in_order(int64_t task, F f) {
    while (turn_.load(std::memory_order_acquire) != task) std::this_thread::yield();
    f();
    turn_.store(task + 1, std::memory_order_release);
  }

 private:
  std::atomic<int64_t> turn_{0};
};

// The lanes of products of bf16 matrices: bf16 where the instruction set multiplies it, else fp32.
#if defined(__AVX512BF16__)
using LanesOfBf16 = Bf16Lanes;
#else
using LanesOfBf16 = Fp32Lanes;
#endif

// Calls f(element type) for a dtype.
template <class F>
static inline void with_element(int64_t dtype, F f) {
  switch (dtype) {
    case ds4sci::FLOAT32: return f(float{});
    case ds4sci::BFLOAT16: return f(BFloat16{});
    default: return f(Half{});
  }
}

// Calls f(lanes of products, element type) for a dtype. Returns 0, or 1 if memory ran out.
template <class F>
static int with_dtype(int64_t dtype, F f) {
  try {
    with_element(dtype, [&](auto element) {
      using T = decltype(element);
      f(std::conditional_t<std::is_same_v<T, BFloat16>, LanesOfBf16, Fp32Lanes>{}, element);
    });
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

}  // namespace DS4SCI_ISA
