// Forward pass of the transition: for each block of rows, a part of the hidden channels at a time.
#pragma once

#include <atomic>

#include "layers.h"

namespace DS4SCI_ISA {

template <class L, class T>
static void forward(const Params& c) {
  const Memory packed(Layers<L, T>::bytes(c, false));
  const Layers<L, T> layers(c, Arena(packed.data()), false);
  const int64_t channels = padded_channels(c.channels), step = hidden_step(c), block_rows = PANELS * PANEL;
  const int64_t y_panel = lane_count<L>(channels) * PANEL, h_panel = lane_count<L>(step) * PANEL, out_panel = channels * PANEL;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto run = [&] {
    try {
      const Memory memory(4 * (PANELS * (y_panel + h_panel + out_panel + step * PANEL) + out_panel) + 64 * 8);
      Arena arena(memory.data());
      float *y = arena.floats(PANELS * y_panel), *h = arena.floats(PANELS * h_panel), *out = arena.floats(PANELS * out_panel);
      float *panel = arena.floats(out_panel), *gate = arena.floats(c.swiglu ? PANELS * step * PANEL : 0);
      for (int64_t row; (row = block_rows * next++) < c.rows;) {
        const int64_t rows = std::min(block_rows, c.rows - row);
        const int panels = int((rows + PANEL - 1) / PANEL);
        for (int p = 0; p < panels; ++p) {
          PanelNorm norm;
          load_normalized<L, T>(c, row + p * PANEL, int(std::min<int64_t>(PANEL, rows - p * PANEL)), norm, panel, panel);
          convert_panel<L>(panel, c.channels, y + p * y_panel, nullptr);
        }
        for (int64_t from = 0; from < c.hidden; from += step) {
          const int64_t to = std::min(from + step, c.hidden);
          for (int i = 0; i <= c.swiglu; ++i) {
            product<L>(layers.first[i], from, to, 0, lane_count<L>(c.channels), y, y_panel, panels, [&](auto& acc, int64_t o, int p) {
              float* of_gate = gate + p * step * PANEL + (o - from) * PANEL;
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
          }
          product<L>(layers.second, 0, c.channels, from, lane_count<L>(to - from), h, h_panel, panels, [&](auto& acc, int64_t o, int p) {
            float* cell = out + p * out_panel + o * PANEL;
            for_each_result(acc, [&](int k, int v, Vec& x) {
              float* const sum = cell + k * PANEL + v * W;
              store(sum, x + (from ? load(sum) : set1(layers.bias_2[o + k])));
            });
          });
        }
        for (int p = 0; p < panels; ++p)
          store_rows(out + p * out_panel, static_cast<T*>(c.out) + (row + p * PANEL) * c.out_stride, c.out_stride,
                     int(std::min<int64_t>(PANEL, rows - p * PANEL)), c.channels);
      }
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  };
  ds4sci::parallel_for(std::min(c.threads, (c.rows + block_rows - 1) / block_rows), c.gomp_parallel, run);
  if (failed) throw std::bad_alloc();
}

}  // namespace DS4SCI_ISA
