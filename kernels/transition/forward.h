// Forward pass of the transition: for each block of rows, a part of the hidden channels at a time.
#pragma once

#include "layers.h"

namespace DS4SCI_ISA {

template <class L, class T>
struct Forward {
  const Layers<L, T>& layers;
  const Params& c = layers.c;
  const int64_t channels = padded_channels(c.channels), step = hidden_step(c), out_panel = channels * PANEL;
  const int64_t y_panel = lane_count<L>(channels) * PANEL, h_panel = lane_count<L>(step) * PANEL;
  float *y, *h, *out, *panel, *gate;
  Ahead ahead;

  Forward(const Layers<L, T>& of_call, Arena& arena) : layers(of_call) {
    y = arena.floats(PANELS<L> * y_panel), h = arena.floats(PANELS<L> * h_panel), out = arena.floats(PANELS<L> * out_panel);
    panel = arena.floats(out_panel), gate = arena.floats(c.swiglu ? PANELS<L> * step * PANEL : 0);
  }

  void block(int64_t row, int64_t rows) {
    const int panels = panels_of(rows);
    ahead.clear();
    add_block<L, T>(c, ahead, c.x, c.x_stride, row + BLOCK<L>);
    for (int p = 0; p < panels; ++p) {
      PanelNorm norm;
      load_normalized<L, T>(c, row + p * PANEL, rows_of_panel(rows, p), norm, nullptr, panel);
      convert_panel<L>(panel, c.channels, y + p * y_panel, nullptr);
    }
    for (int64_t from = 0; from < c.hidden; from += step) part(from, std::min(from + step, c.hidden), panels);
    for (int p = 0; p < panels; ++p)
      store_rows(out + p * out_panel, static_cast<T*>(c.out) + (row + p * PANEL) * c.out_stride, c.out_stride,
                 rows_of_panel(rows, p), c.channels);
  }

  // Adds to `out` what the hidden channels from `from` to `to` contribute.
  void part(int64_t from, int64_t to, int panels) {
    const int64_t lanes = lane_count<L>(c.channels);
    for (int i = 0; i <= c.swiglu; ++i)
      product<L>(layers.first[i], from, to, 0, lanes, y, y_panel, panels, [&](auto& acc, int64_t o, int p) {
        ahead.step(8);
        float* of_gate = gate + (p * step + o - from) * PANEL;
        for_each_result(acc, [&](int k, int v, Vec& x) {
          x += layers.bias_1[i][o + k];
          if (!c.swiglu)
            x = x < 0.0f ? Vec{} : x;  // NaN stays NaN
          else if (i == 0)
            store(of_gate + k * PANEL + v * W, x * sigmoid(x).value);
          else
            x *= load(of_gate + k * PANEL + v * W);
        });
        if (i == c.swiglu) store_panel(L{}, acc, o - from, h + p * h_panel, nullptr);
      });
    product<L>(layers.second, 0, c.channels, from, lane_count<L>(to - from), h, h_panel, panels,
               [&](auto& acc, int64_t o, int p) {
      float* cell = out + p * out_panel + o * PANEL;
      for_each_result(acc, [&](int k, int v, Vec& x) {
        float* const sum = cell + k * PANEL + v * W;
        store(sum, x + (from ? load(sum) : set1(layers.bias_2[o + k])));
      });
    });
  }

  void flush() {}
};

}  // namespace DS4SCI_ISA
