// Forward pass: a and b from z, and the update from z and the result of the contraction.
#pragma once

#include "rows.h"

namespace DS4SCI_ISA {

// a, b = (W_p LN(z) + b_p) ⊙ sigmoid(W_g LN(z) + b_g) ⊙ mask, channels first.
template <class L, class T>
struct Project {
  struct Call {
    const Params& c;
    Memory memory;
    Weight weight;
    float* bias;

    explicit Call(const Params& params)
        : c(params), memory(4 * (packed_size<L>(glu_outputs(c), c.channels) + glu_outputs(c)) + 128) {
      Arena arena(memory.data());
      const T* w = static_cast<const T*>(c.weight_in);
      auto row = [&](int64_t o) { return glu_row(c, o) < 0 ? nullptr : w + glu_row(c, o) * c.channels; };
      weight = pack_rows<L, T>(row, 1, glu_outputs(c), c.channels, arena.floats(packed_size<L>(glu_outputs(c), c.channels)));
      bias = arena.floats(glu_outputs(c));
      fill_glu_bias(c, bias);
    }
  };

  const Call& call;
  const Params& c = call.c;
  const int64_t y_panel = lane_count<L>(padded_channels(c.channels)) * PANEL;
  float *panel, *y;
  Ahead ahead;

  Project(const Call& of_call, Arena& arena) : call(of_call) {
    panel = arena.floats(padded_channels(c.channels) * PANEL);
    y = arena.floats(PANELS<L> * y_panel);
  }

  void block(int64_t row, int64_t rows) {
    Vec mask[PANELS<L>][2];
    ahead.clear();
    add_rows<L, T>(c, ahead, c.z, row + BLOCK<L>);
    for (int p = 0; p < panels_of(rows); ++p) {
      PanelNorm norm;
      load_normalized<T>(c, row + p * PANEL, rows_of_panel(rows, p), norm, nullptr, panel);
      convert_panel<L>(panel, c.channels, y + p * y_panel, nullptr);
      load_mask(c, row + p * PANEL, rows_of_panel(rows, p), mask[p]);
    }
    product<L>(call.weight, 0, glu_outputs(c), 0, lane_count<L>(c.channels), y, y_panel, panels_of(rows),
               [&](auto& acc, int64_t o, int p) {
      if constexpr (sizeof acc == sizeof(Vec[MR][2])) {  // all blocks have MR outputs
        ahead.step(8);
        const int64_t channel = o / 2;
        T* to = columns_at<T>(c.ab, row + p * PANEL) + channel * c.ab.stride;
        DS4SCI_UNROLL for (int k = 0; k < HALF; ++k)
          DS4SCI_UNROLL for (int v = 0; v < 2; ++v) {
            const Vec gate = sigmoid(acc[HALF + k][v] + call.bias[o + HALF + k]).value;
            acc[k][v] = (acc[k][v] + call.bias[o + k]) * gate * mask[p][v];
          }
        const int count = int(std::min<int64_t>(HALF, 2 * c.hidden - channel)), lanes = int(rows - p * PANEL);
        DS4SCI_UNROLL for (int k = 0; k < HALF; ++k)
          if (k < count)
            DS4SCI_UNROLL for (int v = 0; v < 2; ++v) write_lanes(to + k * c.ab.stride + v * W, acc[k][v], lanes - v * W);
      }
    });
  }

  void flush() {}
};

// out = (W_z LN(p) + b_z) ⊙ sigmoid(W_g LN(z) + b_g).
template <class L, class T>
struct Output {
  struct Call {
    const Params& c;
    Memory memory;
    Weight value, gate;
    float *bias, *gate_bias;

    static int64_t bytes(const Params& c) {
      return 4 * (packed_size<L>(c.channels, c.hidden) + packed_size<L>(c.channels, c.channels) + 2 * padded(c.channels, MR)) + 256;
    }

    explicit Call(const Params& params) : c(params), memory(bytes(params)) {
      Arena arena(memory.data());
      const T *w = static_cast<const T*>(c.weight_out), *g = static_cast<const T*>(c.weight_gate);
      value = pack_weight<L>(w, c.hidden, 1, c.channels, c.hidden, arena.floats(packed_size<L>(c.channels, c.hidden)));
      gate = pack_weight<L>(g, c.channels, 1, c.channels, c.channels, arena.floats(packed_size<L>(c.channels, c.channels)));
      bias = arena.floats(padded(c.channels, MR)), gate_bias = arena.floats(padded(c.channels, MR));
      fill_bias(c.bias_out, c.channels, bias);
      fill_bias(c.bias_gate, c.channels, gate_bias);
    }
  };

  const Call& call;
  const Params& c = call.c;
  const int64_t channels = padded_channels(c.channels), hidden = padded_channels(c.hidden);
  const int64_t y_panel = lane_count<L>(channels) * PANEL, mixed_panel = lane_count<L>(hidden) * PANEL;
  float *panel, *y, *mixed, *value;
  Ahead ahead;

  Output(const Call& of_call, Arena& arena) : call(of_call) {
    panel = arena.floats(std::max(channels, hidden) * PANEL);
    y = arena.floats(PANELS<L> * y_panel), mixed = arena.floats(PANELS<L> * mixed_panel);
    value = arena.floats(PANELS<L> * channels * PANEL);
  }

  void block(int64_t row, int64_t rows) {
    ahead.clear();
    add_rows<L, T>(c, ahead, c.z, row + BLOCK<L>);
    add_columns<L, T>(c, ahead, c.p, c.hidden, row + BLOCK<L>);
    for (int p = 0; p < panels_of(rows); ++p) {
      PanelNorm norm;
      load_normalized<T>(c, row + p * PANEL, rows_of_panel(rows, p), norm, nullptr, panel);
      convert_panel<L>(panel, c.channels, y + p * y_panel, nullptr);
      load_normalized_p<T>(c, row + p * PANEL, rows_of_panel(rows, p), norm, nullptr, panel);
      convert_panel<L>(panel, c.hidden, mixed + p * mixed_panel, nullptr);
    }
    product<L>(call.value, 0, c.channels, 0, lane_count<L>(c.hidden), mixed, mixed_panel, panels_of(rows),
               [&](auto& acc, int64_t o, int p) {
      ahead.step(32);
      for_each_result(acc, [&](int k, int, Vec& x) { x += call.bias[o + k]; });
      store_panel(Fp32Lanes{}, acc, o, value + p * channels * PANEL, nullptr);
    });
    product<L>(call.gate, 0, c.channels, 0, lane_count<L>(c.channels), y, y_panel, panels_of(rows),
               [&](auto& acc, int64_t o, int p) {
      ahead.step(32);
      float* cell = value + (p * channels + o) * PANEL;
      for_each_result(acc, [&](int k, int v, Vec& x) {
        float* const to = cell + k * PANEL + v * W;
        store(to, load(to) * sigmoid(x + call.gate_bias[o + k]).value);
      });
    });
    for (int p = 0; p < panels_of(rows); ++p)
      store_rows_of<T>(c, value + p * channels * PANEL, c.out, row + p * PANEL, rows_of_panel(rows, p));
  }

  void flush() {}
};

}  // namespace DS4SCI_ISA
