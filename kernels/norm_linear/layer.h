// What the forward and the backward pass of the linear layer share: packed parameters, and panels of strided rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../simd/block_tasks.h"
#include "params.h"

namespace DS4SCI_ISA {

using ds4sci::Matrix;
using ds4sci::Params;

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
    with_element(c.dtype, [&](auto zero) {
      const auto* from = static_cast<const decltype(zero)*>(c.weight);
      wide ? pack_weight<L, PANEL>(from, of_n, of_k, n, k, to) : pack_weight<L>(from, of_n, of_k, n, k, to);
    });
    std::fill_n(bias, padded(n, PANEL), 0.0f);
    if (c.bias && !transposed) std::copy_n(c.bias, n, bias);
  }
};

// The channels `from` to `to` of a block of rows, for Ahead. `last`: end of the rows.
template <class L>
static inline void add_rows(Ahead& ahead, const Matrix& m, int64_t row, int64_t last, int64_t from, int64_t to) {
  if (row >= last) return;
  const int64_t size = m.dtype == ds4sci::FLOAT32 ? 4 : 2, rows = std::min(BLOCK<L>, last - row);
  const char* data = static_cast<const char*>(m.data);
  if (m.channel_stride)
    ahead.add(data + (from * m.channel_stride + row) * size, m.channel_stride * size, to - from, rows * size);
  else
    ahead.add(data + (row / m.inner * m.stride[0] + row % m.inner * m.stride[1] + from) * size, m.stride[1] * size, rows,
              (to - from) * size);
}

// Reads channels `from` to `to` of `rows` ≤ PANEL rows, beginning with `first`, as an fp32 panel. Rows beyond the last are 0.
static inline void load_panel(const Matrix& m, int64_t first, int rows, int64_t from, int64_t to, float* panel) {
  with_element(m.dtype, [&](auto zero) {
    const auto* data = static_cast<const decltype(zero)*>(m.data);
    if (m.channel_stride) return load_columns(data + from * m.channel_stride + first, m.channel_stride, rows, to - from, panel);
    const RowOffsets offsets(m.inner, m.stride, first, rows);
    gather_panel([&](int r) { return data + offsets.at[r] + from; }, rows, to - from, panel);
  });
}

// The inverse of load_panel for all `channels`.
static inline void store_panel_rows(const float* panel, const Matrix& m, int64_t first, int rows, int64_t channels) {
  with_element(m.dtype, [&](auto zero) {
    const RowOffsets offsets(m.inner, m.stride, first, rows);
    auto* data = static_cast<decltype(zero)*>(m.data);
    scatter_panel(panel, [&](int r) { return data + offsets.at[r]; }, rows, channels);
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
  const RowOffsets offsets(m.inner, m.stride, first, count);
  with_element(m.dtype, [&](auto zero) {
    const auto* data = static_cast<const decltype(zero)*>(m.data) + from;
    pack(channels, [&](int r) { return data + offsets.at[r]; });
  });
}

// A panel of x: `scaled` normalized, before the norm's weight and bias, and y after. One may be null.
static inline void load_normalized(const Params& c, int64_t row, int rows, PanelNorm& norm, float* scaled, float* y) {
  float* const panel = y ? y : scaled;
  load_panel(c.x, row, rows, 0, c.inputs, panel);
  norm.measure(panel, c.inputs, c.eps, rows);
  norm.apply(panel, c.norm_weight, c.norm_bias, c.inputs, scaled, y);
}

}  // namespace DS4SCI_ISA
