// What the forward and the backward pass of the transition share: packed parameters, blocks of rows and their hidden channels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../simd/block_tasks.h"
#include "params.h"

namespace DS4SCI_ISA {

using ds4sci::Params;

constexpr int64_t MOST_HIDDEN = 132;  // hidden channels that exist at a time
static_assert(MOST_HIDDEN % MR == 0);

// The hidden channels in equal parts that begin at multiples of MR.
static inline int64_t hidden_step(const Params& c) {
  const int64_t parts = (c.hidden + MOST_HIDDEN - 1) / MOST_HIDDEN;
  return padded((c.hidden + parts - 1) / parts, MR);
}

// The parameters as operands, packed once per call. With SwiGLU there are two first layers: of the gate u and of the value v.
template <class L, class T>
struct Layers {
  const Params& c;
  const Memory memory;
  Weight first[2], second, first_transposed[2], second_transposed;
  float *bias_1[2], *bias_2;

  Layers(const Params& params, bool backward) : c(params), memory(bytes(params, backward)) {
    Arena arena(memory.data());
    const int64_t n = c.channels, h = c.hidden;
    const T *w1 = static_cast<const T*>(c.weight_1), *w2 = static_cast<const T*>(c.weight_2);
    for (int i = 0; i <= c.swiglu; ++i) {
      const T* w = w1 + i * h * n;
      first[i] = pack_weight<L>(w, n, 1, h, n, arena.floats(packed_size<L>(h, n)));
      if (backward) first_transposed[i] = pack_weight<L>(w, 1, n, n, h, arena.floats(packed_size<L>(n, h)));
      bias_1[i] = arena.floats(padded(h, MR));
      if (c.bias_1) std::copy_n(c.bias_1 + i * h, h, bias_1[i]);
    }
    if (backward)
      second_transposed = pack_weight<L>(w2, 1, h, h, n, arena.floats(packed_size<L>(h, n)));
    else
      second = pack_weight<L>(w2, h, 1, n, h, arena.floats(packed_size<L>(n, h)));
    bias_2 = arena.floats(padded(n, MR));
    if (c.bias_2) std::copy_n(c.bias_2, n, bias_2);
  }

  static int64_t bytes(const Params& c, bool backward) {
    const int64_t one = packed_size<L>(c.hidden, c.channels), other = packed_size<L>(c.channels, c.hidden);
    const int64_t weights = (1 + c.swiglu) * (one + (backward ? other : 0)) + (backward ? one : other);
    return 4 * (weights + 2 * padded(c.hidden, MR) + padded(c.channels, MR)) + 64 * 8;
  }
};

// The next block of rows, for Ahead.
template <class L, class T>
static inline void add_block(const Params& c, Ahead& ahead, const void* x, int64_t stride, int64_t row) {
  if (row < c.rows) ahead.add(static_cast<const T*>(x) + row * stride, stride * sizeof(T), BLOCK<L>, c.channels * sizeof(T));
}

// A panel of y, the first layer's input; `scaled`: the normalized rows before weight and bias, or null.
template <class L, class T>
static inline void load_normalized(const Params& c, int64_t row, int rows, PanelNorm& norm, float* scaled, float* y) {
  load_panel(static_cast<const T*>(c.x) + row * c.x_stride, c.x_stride, rows, c.channels, y);
  if (!c.norm_weight) return;
  norm.measure(y, c.channels, c.eps, rows);
  norm.apply(y, c.norm_weight, c.norm_bias, c.channels, scaled, y);
}

}  // namespace DS4SCI_ISA
