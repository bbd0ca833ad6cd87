// Forward pass of the linear layer: blocks of rows, from the layer norm to the result.
#pragma once

#include <atomic>

#include "layer.h"

namespace DS4SCI_ISA {

// The layer in one direction: forward, or without a layer norm also backward, from the gradient of the result to that of x.
template <class L>
struct Forward {
  const Params& c;
  const Packed<L>& packed;
  const Matrix &from, &to;
  const int64_t inputs, outputs, lanes = lane_count<L>(inputs), y_panel = lane_count<L>(padded_channels(inputs)) * PANEL;
  float *panel, *y;  // of a thread

  Forward(const Params& c, const Packed<L>& packed, Arena& a)
      : c(c), packed(packed), from(packed.transposed ? c.y : c.x), to(packed.transposed ? c.grad_x : c.y),
        inputs(packed.transposed ? c.outputs : c.inputs), outputs(packed.transposed ? c.inputs : c.outputs) {
    const bool used = !packed.transposed || !c.norm_weight;
    panel = a.floats(used ? padded_channels(inputs) * PANEL : 0);
    y = a.floats(used ? PANELS * y_panel : 0);
  }

  void block(int64_t row, int rows) const {
    const int panels = (rows + PANEL - 1) / PANEL;
    for (int p = 0; p < panels; ++p) {
      const int64_t first = row + p * PANEL;
      const int count = std::min(PANEL, rows - p * PANEL);
      PanelNorm norm;
      if (c.norm_weight) {
        load_normalized(c, first, count, norm, panel);
        scale_panel(panel, c.norm_weight, c.norm_bias, inputs, panel);
      } else {
        prefetch_rows(from, first + PANEL, std::min(c.rows, first + 2 * PANEL), 0, inputs);
        load_panel(from, first, count, 0, inputs, panel);
      }
      convert_panel<L>(panel, inputs, y + p * y_panel, nullptr);
    }
    for_dtype(to.dtype, [&](auto zero) {
      auto* data = static_cast<decltype(zero)*>(to.data);
      packed.wide ? row_major(row, rows, panels, data) : channels_first(row, rows, panels, data);
    });
  }

  template <class T>
  void row_major(int64_t row, int rows, int panels, T* data) const {
    int64_t at[BLOCK];
    for (int p = 0; p < panels; ++p) {
      const RowOffsets offsets(to, row + p * PANEL, std::min(PANEL, rows - p * PANEL));
      std::copy_n(offsets.at, PANEL, at + p * PANEL);
    }
    for (int64_t o = 0; o < outputs; o += PANEL) {
      const Vec bias[2] = {load(packed.bias + o), load(packed.bias + o + W)};
      const int width = int(std::min<int64_t>(PANEL, outputs - o));
      auto prefetch = [&](int p, int first, int height) {
        for (int i = 0; i < height; ++i) {
          const char* cell = reinterpret_cast<const char*>(data + at[p * PANEL + first + i] + o);
          __builtin_prefetch(cell, 1);
          if (sizeof(T) * PANEL > 64) __builtin_prefetch(cell + 64, 1);
        }
      };
      product_rows<L>(packed.wide + o * lanes, lanes, y, y_panel, panels, prefetch, [&](auto& acc, int p, int first) {
        for_each_result(acc, [&](int i, int v, Vec& x) {
          const int r = p * PANEL + first + i, rest = width - v * W;
          if (r >= rows) return;
          T* cell = data + at[r] + o + v * W;
          if (rest >= W)
            write(cell, x + bias[v]);
          else if (rest > 0)
            write(cell, x + bias[v], Partial{rest});
        });
      });
    }
  }

  template <class T>
  void channels_first(int64_t row, int rows, int panels, T* data) const {
    product<L>(packed.weight, 0, outputs, 0, lanes, y, y_panel, panels, [&](auto& acc, int64_t o, int p) {
      for_each_result(acc, [&](int i, int v, Vec& x) {
        const int r = p * PANEL + v * W, rest = rows - r;
        if (o + i >= outputs) return;
        T* cell = data + (o + i) * to.channel_stride + row + r;
        if (rest >= W)
          write(cell, x + packed.bias[o + i]);
        else if (rest > 0)
          write(cell, x + packed.bias[o + i], Partial{rest});
      });
    });
  }
};

template <class L>
static void forward(const Params& c) {
  Arena parameters(static_cast<char*>(c.packed)), sizes(nullptr);
  const Packed<L> packed(c, false, parameters);
  const Forward<L> counted(c, packed, sizes);
  std::atomic<int64_t> next{0}, thread{0};
  auto run = [&] {
    Arena arena(static_cast<char*>(c.workspace) + sizes.used() * thread++);
    const Forward<L> pass(c, packed, arena);
    for (int64_t row; (row = BLOCK * next++) < c.rows;) pass.block(row, int(std::min(BLOCK, c.rows - row)));
  };
  ds4sci::parallel_for(std::min(c.threads, (c.rows + BLOCK - 1) / BLOCK), c.gomp_parallel, run);
}

}  // namespace DS4SCI_ISA
