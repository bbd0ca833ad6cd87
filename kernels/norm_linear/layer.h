// What the forward and the backward pass of the linear layer share: packed parameters, and panels of strided rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../simd/blocks.h"
#include "../simd/parallel_for.h"
#include "params.h"

namespace DS4SCI_ISA {

using ds4sci::Matrix;
using ds4sci::Params;

constexpr int PANELS = 4;  // panels of a block
constexpr int64_t BLOCK = PANELS * PANEL;

// Calls f with a value of the element type.
template <class F>
static inline void for_dtype(int64_t dtype, F f) {
  switch (dtype) {
    case ds4sci::FLOAT32: return f(float{});
    case ds4sci::BFLOAT16: return f(BFloat16{});
    default: return f(Half{});
  }
}

// The parameters as operands, packed once for several calls: the weight, transposed in the backward pass, for row-major results
// (`wide`) or for panels (`weight`). In the backward pass of a layer norm the results are panels.
template <class L>
struct Packed {
  Weight weight = {};
  float *wide = nullptr, *bias = nullptr;
  bool transposed;

  Packed(const Params& c, bool backward, Arena& a) : transposed(backward) {
    const int64_t n = backward ? c.inputs : c.outputs, k = backward ? c.outputs : c.inputs, lanes = lane_count<L>(k);
    const bool rows = backward ? !c.norm_weight : !c.y.channel_stride;
    bias = a.floats(padded(n, PANEL));
    float* memory = a.floats(rows ? padded(n, PANEL) * lanes : packed_size<L>(n, k));
    if (rows) wide = memory;
    weight = {memory, n, lanes};
  }

  void fill(const Params& c) const {
    const int64_t n = weight.outputs, k = transposed ? c.outputs : c.inputs;
    const int64_t of_n = transposed ? 1 : c.inputs, of_k = transposed ? c.inputs : 1;
    float* to = const_cast<float*>(weight.data);
    for_dtype(c.dtype, [&](auto zero) {
      const auto* from = static_cast<const decltype(zero)*>(c.weight);
      wide ? pack_weight<L, PANEL>(from, of_n, of_k, n, k, to) : pack_weight<L>(from, of_n, of_k, n, k, to);
    });
    std::fill_n(bias, padded(n, PANEL), 0.0f);
    if (c.bias && !transposed) std::copy_n(c.bias, n, bias);
  }
};

// Where the rows of a panel begin. Beyond `rows` the last one is repeated.
struct RowOffsets {
  int64_t at[PANEL];

  RowOffsets(const Matrix& m, int64_t first, int rows) {
    int64_t outer = first / m.inner, inner = first % m.inner;
    for (int r = 0; r < PANEL; ++r) {
      at[r] = outer * m.stride[0] + inner * m.stride[1];
      if (r + 1 < rows && ++inner == m.inner) inner = 0, ++outer;
    }
  }
};

// Prefetches part number `part` of `parts` of the rows `first` to `last`, channels `from` to `to`. Hardware prefetchers do not
// follow rows; spread over a product, the parts hide the latency of memory.
template <int WRITE = 0>
static inline void prefetch_rows(const Matrix& m, int64_t first, int64_t last, int64_t from, int64_t to, int64_t part = 0,
                                 int64_t parts = 1) {
  if (m.channel_stride || last <= first) return;
  const int64_t size = m.dtype == ds4sci::FLOAT32 ? 4 : 2;
  for (int64_t r = first + (last - first) * part / parts, end = first + (last - first) * (part + 1) / parts; r < end; ++r) {
    const char* row = static_cast<const char*>(m.data) + (r / m.inner * m.stride[0] + r % m.inner * m.stride[1]) * size;
    for (int64_t i = from * size; i < to * size; i += 64) {
      __builtin_prefetch(row + i, WRITE, 2);
      asm volatile("");  // keeps the compiler from removing calls as free of side effects
    }
  }
}

// Reads channels `from` to `to` of `rows` ≤ PANEL rows, beginning with `first`, as an fp32 panel. Rows beyond the last are 0, or
// with REPEAT the last one again: a layer norm of zeros is not finite if eps is 0.
template <bool REPEAT = false>
static inline void load_panel(const Matrix& m, int64_t first, int rows, int64_t from, int64_t to, float* panel) {
  for_dtype(m.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* data = static_cast<const T*>(m.data);
    if (m.channel_stride) {
      for (int64_t k = from; k < to; ++k)
        for (int v = 0; v < PANEL; v += W) {
          const T* x = data + k * m.channel_stride + first + v;
          store(panel + (k - from) * PANEL + v, v + W <= rows ? read(x) : v < rows ? read(x, Partial{rows - v}) : Vec{});
        }
      return;
    }
    const RowOffsets offsets(m, first, rows);
    for (int v = 0; v < PANEL; v += W) {
      const bool all = REPEAT || v + W <= rows;
      for (int64_t k = from; k < to; k += W) {
        const int width = int(std::min<int64_t>(W, to - k));
        float* cell = panel + (k - from) * PANEL + v;
        Vec x[W];
        if (all && width == W) {
          DS4SCI_UNROLL for (int r = 0; r < W; ++r) x[r] = read(data + offsets.at[v + r] + k);
        } else {
          for (int r = 0; r < W; ++r)
            x[r] = REPEAT || v + r < rows ? read(data + offsets.at[v + r] + k, Partial{width}) : Vec{};
        }
        transpose_step<1>(x);
        DS4SCI_UNROLL for (int i = 0; i < W; ++i)
          if (i < width) store(cell + i * PANEL, x[i]);
      }
    }
  });
}

// The inverse of load_panel for all `channels`.
static inline void store_panel_rows(const float* panel, const Matrix& m, int64_t first, int rows, int64_t channels) {
  for_dtype(m.dtype, [&](auto zero) {
    using T = decltype(zero);
    const RowOffsets offsets(m, first, rows);
    T* data = static_cast<T*>(m.data);
    for (int v = 0; v < rows; v += W)
      for (int64_t k = 0; k < channels; k += W) {
        const int width = int(std::min<int64_t>(W, channels - k)), height = std::min(W, rows - v);
        Vec x[W];
        DS4SCI_UNROLL for (int i = 0; i < W; ++i) x[i] = i < width ? load(panel + (k + i) * PANEL + v) : Vec{};
        transpose_step<1>(x);
        if (width == W && height == W) {
          DS4SCI_UNROLL for (int r = 0; r < W; ++r) write(data + offsets.at[v + r] + k, x[r]);
        } else {
          for (int r = 0; r < height; ++r) write(data + offsets.at[v + r] + k, x[r], Partial{width});
        }
      }
  });
}

// Channels `from` to `to` of `count` ≤ PANEL rows, beginning with `first`, as lanes along the rows: [PANEL / L::PER_LANE][width],
// with `width` a multiple of W. Rows beyond the last are 0; channels beyond `to` have any value. Adds the sums over the rows to
// `sums`, [width], if it is not null. `channels`: of the matrix. `scratch`: 2 · PANEL · width numbers. f(x, row, channel, lanes)
// gives the value for the numbers x of a row.
template <class L, class F>
static inline void pack_rows(const Matrix& m, int64_t first, int count, int64_t from, int64_t to, int64_t channels, int64_t width,
                             float* lanes, float* sums, float* scratch, F f) {
  auto pack = [&](int64_t channels, auto row_of) {
    constexpr int STEP_ROWS = L::PER_LANE;
    for (int r = 0; r < PANEL; r += STEP_ROWS)
      for (int64_t k = 0; k < to - from; k += W) {
        const int rest = int(std::min<int64_t>(W, channels - from - k));
        Vec x[STEP_ROWS];
        for (int i = 0; i < STEP_ROWS; ++i) {
          if (r + i >= count)
            x[i] = Vec{};
          else if (rest >= W)
            x[i] = f(read(row_of(r + i) + k), r + i, from + k, Full{});
          else
            x[i] = f(read(row_of(r + i) + k, Partial{rest}), r + i, from + k, Partial{rest});
          if (sums) store(sums + k, load(sums + k) + x[i]);
        }
        float* cell = lanes + r / STEP_ROWS * width + k;
        if constexpr (STEP_ROWS == 1) {
          store(cell, x[0]);
        } else {
#if defined(__AVX512BF16__)
          store(cell, interleave_halves(to_bf16x2(x[0], x[1])));
#endif
        }
      }
  };
  if (m.channel_stride) {
    float* rows = scratch + PANEL * width;
    load_panel(m, first, count, from, to, scratch);
    std::fill(scratch + (to - from) * PANEL, scratch + width * PANEL, 0.0f);
    for (int v = 0; v < PANEL; v += W)
      for (int64_t k = 0; k < width; k += W) transpose(scratch + k * PANEL + v, PANEL, rows + v * width + k, width);
    return pack(from + width, [&](int r) { return rows + r * width; });
  }
  const RowOffsets offsets(m, first, count);
  for_dtype(m.dtype, [&](auto zero) {
    const auto* data = static_cast<const decltype(zero)*>(m.data) + from;
    pack(channels, [&](int r) { return data + offsets.at[r]; });
  });
}

// The input of a layer norm as a panel, normalized, before the norm's weight and bias.
static inline void load_normalized(const Params& c, int64_t row, int rows, PanelNorm& norm, float* panel) {
  prefetch_rows(c.x, row + PANEL, std::min(c.rows, row + 2 * PANEL), 0, c.inputs);
  load_panel<true>(c.x, row, rows, 0, c.inputs, panel);
  norm.normalize(panel, c.inputs, c.eps);
}

}  // namespace DS4SCI_ISA
