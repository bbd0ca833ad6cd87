// What the forward and the backward pass of the transition share: packed parameters, blocks of rows and their hidden channels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../simd/blocks.h"
#include "../simd/parallel_for.h"
#include "params.h"

namespace DS4SCI_ISA {

using ds4sci::Params;

constexpr int PANELS = 4;                      // panels of a block
constexpr int64_t MOST_HIDDEN = 132;           // hidden channels that exist at a time
static_assert(MOST_HIDDEN % MR == 0);

// The hidden channels in equal parts that begin at multiples of MR.
static inline int64_t hidden_step(const Params& c) {
  const int64_t parts = (c.hidden + MOST_HIDDEN - 1) / MOST_HIDDEN;
  return padded((c.hidden + parts - 1) / parts, MR);
}

// The parameters as operands, packed once per call. With SwiGLU there are two first layers: of the gate u and of the value v.
template <class L, class T>
struct Layers {
  Weight first[2], second, first_transposed[2], second_transposed;
  float *bias_1[2], *bias_2;

  Layers(const Params& c, Arena arena, bool backward) {
    const T *w1 = static_cast<const T*>(c.weight_1), *w2 = static_cast<const T*>(c.weight_2);
    for (int i = 0; i <= c.swiglu; ++i) {
      const T* w = w1 + i * c.hidden * c.channels;
      first[i] = pack_weight<L>(w, c.channels, 1, c.hidden, c.channels, arena.floats(packed_size<L>(c.hidden, c.channels)));
      if (backward)
        first_transposed[i] = pack_weight<L>(w, 1, c.channels, c.channels, c.hidden, arena.floats(packed_size<L>(c.channels, c.hidden)));
      bias_1[i] = arena.floats(padded(c.hidden, MR));
      if (c.bias_1) std::copy_n(c.bias_1 + i * c.hidden, c.hidden, bias_1[i]);
    }
    if (backward)
      second_transposed = pack_weight<L>(w2, 1, c.hidden, c.hidden, c.channels, arena.floats(packed_size<L>(c.hidden, c.channels)));
    else
      second = pack_weight<L>(w2, c.hidden, 1, c.channels, c.hidden, arena.floats(packed_size<L>(c.channels, c.hidden)));
    bias_2 = arena.floats(padded(c.channels, MR));
    if (c.bias_2) std::copy_n(c.bias_2, c.channels, bias_2);
  }

  static int64_t bytes(const Params& c, bool backward) {
    const int64_t one = packed_size<L>(c.hidden, c.channels), other = packed_size<L>(c.channels, c.hidden);
    const int64_t weights = (1 + c.swiglu) * (one + (backward ? other : 0)) + (backward ? one : other);
    return 4 * (weights + 2 * padded(c.hidden, MR) + padded(c.channels, MR)) + 64 * 8;
  }
};

// A layer norm's input as panels: y is the operand of the first layer, `scaled` the normalized rows before weight and bias.
template <class L, class T>
static inline void load_normalized(const Params& c, int64_t row, int rows, PanelNorm& norm, float* scaled, float* y) {
  load_panel(static_cast<const T*>(c.x) + row * c.x_stride, c.x_stride, rows, c.channels, scaled);
  if (!c.norm_weight) {
    if (y != scaled) std::copy_n(scaled, c.channels * PANEL, y);
    return;
  }
  norm.normalize(scaled, c.channels, c.eps);
  scale_panel(scaled, c.norm_weight, c.norm_bias, c.channels, y);
}

}  // namespace DS4SCI_ISA
