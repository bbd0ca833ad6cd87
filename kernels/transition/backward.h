// Backward pass of the transition: recomputes the hidden channels, a part at a time, in the same blocks of rows.
#pragma once

#include "layers.h"

namespace DS4SCI_ISA {

// Buffers of a thread: the operands of a block, and a task's sums of the gradients of the parameters.
template <class L>
struct Workspace {
  float *scaled, *y, *y_rows, *g, *g_rows, *panel, *dy;
  float *hidden, *hidden_plain, *grads, *grads_plain;  // of a part of the hidden channels: lanes and plain, see blocks.h
  float *u, *v;                                        // SwiGLU: the first layer's results in fp32
  float *grad_first[2], *grad_second;
  float *of_bias_1;                                    // lanes of the gradients of bias_1 (u, v)
  double *vectors;                                     // gradients of norm weight and bias, bias_2
  int64_t first_size;

  Workspace(const Params& c, Arena& a) {
    const int64_t channels = padded_channels(c.channels), step = hidden_step(c), lanes = lane_count<L>(channels) * PANEL;
    const int64_t part = PANELS<L> * step * PANEL, slices = slices_size(c.channels, PANELS<L>, L::PER_LANE);
    scaled = a.floats(PANELS<L> * channels * PANEL);
    y = a.floats(PANELS<L> * lanes), g = a.floats(PANELS<L> * lanes);
    y_rows = a.floats(slices), g_rows = a.floats(slices);
    panel = a.floats(channels * PANEL), dy = a.floats(PANELS<L> * channels * PANEL);
    hidden = a.floats(part / L::PER_LANE), grads = a.floats((1 + c.swiglu) * part / L::PER_LANE);
    hidden_plain = L::PER_LANE == 1 ? hidden : a.floats(part / 2);
    grads_plain = L::PER_LANE == 1 ? grads : a.floats((1 + c.swiglu) * part / 2);
    u = a.floats(c.swiglu ? part : 0), v = a.floats(c.swiglu ? part : 0);
    first_size = padded(c.hidden, MR) * padded(c.channels, PANEL);
    for (auto& sum : grad_first) sum = a.floats(first_size);
    grad_second = a.floats(first_size);
    of_bias_1 = a.floats(2 * padded(c.hidden, MR) * W);
    vectors = reinterpret_cast<double*>(a.floats(6 * padded(c.channels, MR)));
  }
};

template <class L, class T>
struct Backward {
  const Layers<L, T>& layers;
  const Params& c = layers.c;
  Workspace<L> w;
  Ahead ahead;
  const int64_t channels = padded_channels(c.channels), step = hidden_step(c);
  const int64_t panel_lanes = lane_count<L>(channels) * PANEL, hidden_panel = step * PANEL / L::PER_LANE;
  double *const norm_sums = w.vectors, *const of_bias_2 = norm_sums + 2 * padded(c.channels, MR);

  Backward(const Layers<L, T>& of_call, Arena& arena) : layers(of_call), w(of_call.c, arena) {}

  void block(int64_t row, int64_t rows) {
    const int panels = panels_of(rows);
    PanelNorm norms[PANELS<L>];
    ahead.clear();
    add_block<L, T>(c, ahead, c.x, c.x_stride, row + BLOCK<L>);
    add_block<L, T>(c, ahead, c.grad, c.grad_stride, row + BLOCK<L>);
    for (int p = 0; p < panels; ++p) load(row + p * PANEL, rows_of_panel(rows, p), p, panels, norms[p]);
    for (int64_t from = 0; from < c.hidden; from += step) part(from, std::min(from + step, c.hidden), panels);
    for (int p = 0; p < panels; ++p) {
      float* dy = w.dy + p * channels * PANEL;
      if (c.norm_weight) {
        double* const sums[2] = {norm_sums, norm_sums + padded(c.channels, MR)};
        norms[p].backward(dy, w.scaled + p * channels * PANEL, c.norm_weight, c.channels, sums);
      }
      store_rows(dy, static_cast<T*>(c.out) + (row + p * PANEL) * c.out_stride, c.out_stride,
                 rows_of_panel(rows, p), c.channels);
    }
  }

  void load(int64_t row, int rows, int p, int panels, PanelNorm& norm) {
    float* scaled = w.scaled + p * channels * PANEL;
    load_normalized<L, T>(c, row, rows, norm, scaled, w.panel);
    convert_panel<L>(w.panel, c.channels, w.y + p * panel_lanes, nullptr);
    if (c.grad_weight_1) slice_rows<L>(w.panel, c.channels, p, panels, w.y_rows);
    load_panel(static_cast<const T*>(c.grad) + row * c.grad_stride, c.grad_stride, rows, c.channels, w.panel);
    convert_panel<L>(w.panel, c.channels, w.g + p * panel_lanes, nullptr);
    if (c.grad_weight_2) slice_rows<L>(w.panel, c.channels, p, panels, w.g_rows);
    if (c.grad_bias_2) add_row_sums(w.panel, c.channels, of_bias_2);
  }

  // The hidden channels from `from` to `to` of the block: their gradients, those of the weights, and their part of dy.
  void part(int64_t from, int64_t to, int panels) {
    const int64_t lanes = lane_count<L>(c.channels), width = padded(c.channels, PANEL);
    for (int i = 0; i <= c.swiglu; ++i)
      product<L>(layers.first[i], from, to, 0, lanes, w.y, panel_lanes, panels, [&](auto& acc, int64_t o, int p) {
        ahead.step(8);
        const int64_t cell = (p * step + o - from) * PANEL;
        for_each_result(acc, [&](int k, int x, Vec& a) {
          a += layers.bias_1[i][o + k];
          if (!c.swiglu)
            a = a < 0.0f ? Vec{} : a;
          else
            store((i ? w.v : w.u) + cell + k * PANEL + x * W, a);
          if (i) {
            const Vec u = ::DS4SCI_ISA::load(w.u + cell + k * PANEL + x * W);
            a *= u * sigmoid(u).value;
          }
        });
        if (i == c.swiglu) store_panel(L{}, acc, o - from, w.hidden + p * hidden_panel, w.hidden_plain + p * hidden_panel);
      });
    if (c.grad_weight_2)
      add_outer<L>(to - from, c.channels, w.hidden_plain, hidden_panel, panels, w.g_rows, w.grad_second + from * width);
    product<L>(layers.second_transposed, from, to, 0, lanes, w.g, panel_lanes, panels, [&](auto& acc, int64_t o, int p) {
      hidden_gradients(acc, o, o - from, p);
    });
    for (int i = 0; i <= c.swiglu; ++i) {
      const float *of_i = w.grads + i * PANELS<L> * hidden_panel, *plain = w.grads_plain + i * PANELS<L> * hidden_panel;
      if (c.grad_weight_1)
        add_outer<L>(to - from, c.channels, plain, hidden_panel, panels, w.y_rows, w.grad_first[i] + from * width);
      product<L>(layers.first_transposed[i], 0, c.channels, from, lane_count<L>(to - from), of_i, hidden_panel, panels,
                 [&](auto& acc, int64_t o, int p) {
                   float* cell = w.dy + (p * channels + o) * PANEL;
                   for_each_result(acc, [&](int k, int x, Vec& a) {
                     float* const sum = cell + k * PANEL + x * W;
                     store(sum, from || i ? a + ::DS4SCI_ISA::load(sum) : a);
                   });
                 });
    }
  }

  // From the gradient of the activation: that of the first layer's results, stored in w.grads, and of its bias.
  template <int M>
  void hidden_gradients(Vec (&acc)[M][2], int64_t o, int64_t local, int p) {
    const int64_t cell = (p * step + local) * PANEL;
    Vec of_v[M][2];
    for_each_result(acc, [&](int k, int x, Vec& a) {
      const int64_t at = cell + k * PANEL + x * W;
      if (c.swiglu) {
        const Vec u = ::DS4SCI_ISA::load(w.u + at), v = ::DS4SCI_ISA::load(w.v + at);
        const Sigmoid gate = sigmoid(u);
        of_v[k][x] = a * u * gate.value;
        a *= v * gate.value * (1.0f + u * gate.complement);
      } else {
        a = positive(p, local + k, x) ? a : Vec{};
      }
    });
    float *lanes = w.grads + p * hidden_panel, *plain = w.grads_plain + p * hidden_panel;
    store_panel(L{}, acc, local, lanes, plain);
    if (c.grad_bias_1)
      DS4SCI_UNROLL for (int k = 0; k < M; ++k) add_lanes(w.of_bias_1, o + k, acc[k][0] + acc[k][1]);
    if (!c.swiglu) return;
    store_panel(L{}, of_v, local, lanes + PANELS<L> * hidden_panel, plain + PANELS<L> * hidden_panel);
    if (c.grad_bias_1)
      DS4SCI_UNROLL for (int k = 0; k < M; ++k) add_lanes(w.of_bias_1, padded(c.hidden, MR) + o + k, of_v[k][0] + of_v[k][1]);
  }

  // Lanes where the activation of a hidden channel is positive.
  auto positive(int p, int64_t channel, int x) const {
    const float* plain = w.hidden_plain + p * hidden_panel;
    if constexpr (L::PER_LANE == 1) {
      return ::DS4SCI_ISA::load(plain + channel * PANEL + x * W) > 0.0f;
    } else {
      return read(reinterpret_cast<const BFloat16*>(plain + channel * W) + x * W) > 0.0f;
    }
  }

  // Adds a task's sums to the caller's and clears them.
  void flush() {
    auto same = [](int64_t o) { return o; };
    for (int i = 0; i <= c.swiglu; ++i) {
      const int64_t rows = i * c.hidden;
      flush_matrix(w.grad_first[i], c.hidden, c.channels, c.grad_weight_1 ? c.grad_weight_1 + rows * c.channels : nullptr, same);
      flush_lanes(w.of_bias_1 + i * padded(c.hidden, MR) * W, c.hidden, c.grad_bias_1 ? c.grad_bias_1 + rows : nullptr, same);
    }
    flush_matrix(w.grad_second, c.hidden, c.channels, c.grad_weight_2, same);
    flush_vector(norm_sums, c.channels, c.grad_norm_weight);
    flush_vector(norm_sums + padded(c.channels, MR), c.channels, c.grad_norm_bias);
    flush_vector(of_bias_2, c.channels, c.grad_bias_2);
  }
};

}  // namespace DS4SCI_ISA
