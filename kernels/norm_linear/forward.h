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
  Ahead ahead;

  Forward(const Params& c, const Packed<L>& packed, Arena& a)
      : c(c), packed(packed), from(packed.transposed ? c.y : c.x), to(packed.transposed ? c.grad_x : c.y),
        inputs(packed.transposed ? c.outputs : c.inputs), outputs(packed.transposed ? c.inputs : c.outputs) {
    const bool used = !packed.transposed || !c.norm_weight;
    panel = a.floats(used ? padded_channels(inputs) * PANEL : 0);
    y = a.floats(used ? PANELS<L> * y_panel : 0);
  }

  void block(int64_t row, int rows) {
    const int panels = panels_of(rows);
    ahead.clear();
    add_rows<L>(ahead, from, row + PANEL, c.rows, 0, inputs);
    const int lines = int(ahead.lines() / panels) + 1;  // of a panel: a wide weight would evict more before it is read
    for (int p = 0; p < panels; ++p) {
      const int64_t first = row + p * PANEL;
      ahead.step(lines);
      PanelNorm norm;
      if (c.norm_weight)
        load_normalized(c, first, rows_of_panel(rows, p), norm, nullptr, panel);
      else
        load_panel(from, first, rows_of_panel(rows, p), 0, inputs, panel);
      convert_panel<L>(panel, inputs, y + p * y_panel, nullptr);
    }
    with_element(to.dtype, [&](auto zero) {
      auto* data = static_cast<decltype(zero)*>(to.data);
      packed.wide ? row_major(row, rows, panels, data) : channels_first(row, rows, panels, data);
    });
  }

  template <class T>
  void row_major(int64_t row, int rows, int panels, T* data) {
    int64_t at[BLOCK<L>];
    for (int p = 0; p < panels; ++p) {
      const RowOffsets offsets(to.inner, to.stride, row + p * PANEL, rows_of_panel(rows, p));
      std::copy_n(offsets.at, PANEL, at + p * PANEL);
    }
    for (int64_t o = 0; o < outputs; o += PANEL) {
      const int width = int(std::min<int64_t>(PANEL, outputs - o));  // not a member: stores might change it
      const Vec bias[2] = {load(packed.bias + o), load(packed.bias + o + W)};
      auto prefetch = [&](int p, int first, int height) {
        for (int i = 0; i < height; ++i) {
          const char* cell = reinterpret_cast<const char*>(data + at[p * PANEL + first + i] + o);
          __builtin_prefetch(cell, 1);
          if (sizeof(T) * PANEL > 64) __builtin_prefetch(cell + 64, 1);
        }
      };
      product_rows<L>(packed.wide + o * lanes, lanes, y, y_panel, panels, prefetch, [&](auto& acc, int p, int first) {
        for_each_result(acc, [&](int i, int v, Vec& x) {
          const int r = p * PANEL + first + i;
          if (r < rows) write_lanes(data + at[r] + o + v * W, x + bias[v], width - v * W);
        });
      });
    }
  }

  template <class T>
  void channels_first(int64_t row, int rows, int panels, T* data) {
    product<L>(packed.weight, 0, outputs, 0, lanes, y, y_panel, panels, [&](auto& acc, int64_t o, int p) {
      for_each_result(acc, [&](int i, int v, Vec& x) {
        const int r = p * PANEL + v * W;
        if (o + i < outputs) write_lanes(data + (o + i) * to.channel_stride + row + r, x + packed.bias[o + i], rows - r);
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
    Forward<L> pass(c, packed, arena);
    for (int64_t row; (row = BLOCK<L> * next++) < c.rows;) pass.block(row, int(std::min(BLOCK<L>, c.rows - row)));
  };
  ds4sci::parallel_for(std::min(c.threads, (c.rows + BLOCK<L> - 1) / BLOCK<L>), c.gomp_parallel, run);
}

}  // namespace DS4SCI_ISA
