// Rows of z as panels, and how the four projections are packed.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../simd/block_tasks.h"
#include "params.h"

namespace DS4SCI_ISA {

using ds4sci::Params;

// Rows of z, counted over both dimensions.
template <class T>
static inline void load_rows(const Params& c, const ds4sci::Rows& x, int64_t row, int rows, float* to) {
  const RowOffsets offsets(c.inner, x.stride, row, rows);
  gather_panel([&](int r) { return static_cast<const T*>(x.data) + offsets.at[r]; }, rows, c.channels, to);
}

template <class T>
static inline void store_rows_of(const Params& c, const float* from, const ds4sci::Rows& x, int64_t row, int rows) {
  const RowOffsets offsets(c.inner, x.stride, row, rows);
  scatter_panel(from, [&](int r) { return static_cast<T*>(x.data) + offsets.at[r]; }, rows, c.channels);
}

// The next block of z and of channels-first tensors, for Ahead.
template <class L, class T>
static inline void add_rows(const Params& c, Ahead& ahead, const ds4sci::Rows& x, int64_t row) {
  if (row >= c.outer * c.inner) return;
  const T* first = static_cast<const T*>(x.data) + row / c.inner * x.stride[0] + row % c.inner * x.stride[1];
  ahead.add(first, x.stride[1] * sizeof(T), BLOCK<L>, c.channels * sizeof(T));
}

template <class L, class T>
static inline void add_columns(const Params& c, Ahead& ahead, const ds4sci::Columns& x, int64_t channels, int64_t row) {
  if (row < c.outer * c.inner) ahead.add(static_cast<T*>(x.data) + row, x.stride * sizeof(T), channels, BLOCK<L> * sizeof(T));
}

template <class T>
static inline T* columns_at(const ds4sci::Columns& x, int64_t row) { return static_cast<T*>(x.data) + row; }

// Projections of a block of MR outputs: HALF values and their HALF gates, so that both are in registers at once.
constexpr int HALF = MR / 2;
static inline int64_t glu_outputs(const Params& c) { return padded(2 * c.hidden, HALF) * 2; }

// Row of weight_in for output o, or -1 for padding.
static inline int64_t glu_row(const Params& c, int64_t o) {
  const int64_t channel = o / MR * HALF + o % HALF;
  return channel >= 2 * c.hidden ? -1 : channel + (o % MR < HALF ? 0 : 2 * c.hidden);
}

// Parameters of the layers and their bias in the order and with the padding of the outputs; a missing bias is 0.
static inline void fill_bias(const float* bias, int64_t n, float* to) {
  if (bias) std::copy_n(bias, n, to);
}

static inline void fill_glu_bias(const Params& c, float* to) {
  for (int64_t o = 0; c.bias_in && o < glu_outputs(c); ++o) to[o] = glu_row(c, o) < 0 ? 0.0f : c.bias_in[glu_row(c, o)];
}

// LN(z) of a panel: `scaled` before weight and bias, null or as large as y, and y after.
template <class T>
static inline void load_normalized(const Params& c, int64_t row, int rows, PanelNorm& norm, float* scaled, float* y) {
  load_rows<T>(c, c.z, row, rows, y);
  norm.measure(y, c.channels, c.eps, rows);
  norm.apply(y, c.norm_in, c.norm_in_bias, c.channels, scaled, y);
}

// The same for p, over the hidden channels.
template <class T>
static inline void load_normalized_p(const Params& c, int64_t row, int rows, PanelNorm& norm, float* scaled, float* y) {
  load_columns(columns_at<const T>(c.p, row), c.p.stride, rows, c.hidden, y);
  norm.measure(y, c.hidden, c.eps, rows);
  norm.apply(y, c.norm_out, c.norm_out_bias, c.hidden, scaled, y);
}

// The mask of a panel's rows, 1 without a mask; rows beyond the last are 0.
static inline void load_mask(const Params& c, int64_t row, int rows, Vec (&mask)[2]) {
  float x[PANEL] = {};
  for (int r = 0; r < rows; ++r) x[r] = c.mask ? c.mask[row + r] : 1.0f;
  for (int v = 0; v < 2; ++v) mask[v] = load(x + v * W);
}

}  // namespace DS4SCI_ISA
