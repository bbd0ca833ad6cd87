// Backward pass: gradients of p and of the output's parameters, then of z and of the projections' parameters.
#pragma once

#include "rows.h"

namespace DS4SCI_ISA {

// From the gradient of the update: that of p, and the gate's part of the gradient of LN(z), written to `out`.
template <class L, class T>
struct OutputBackward {
  struct Call {
    const Params& c;
    Memory memory;
    Weight value, gate, value_transposed, gate_transposed;
    float *bias, *gate_bias;

    static int64_t bytes(const Params& c) {
      const int64_t weights = packed_size<L>(c.channels, c.hidden) + packed_size<L>(c.hidden, c.channels);
      return 4 * (weights + 2 * packed_size<L>(c.channels, c.channels) + 2 * padded(c.channels, MR)) + 64 * 6;
    }

    explicit Call(const Params& params) : c(params), memory(bytes(params)) {
      Arena arena(memory.data());
      const T *w = static_cast<const T*>(c.weight_out), *g = static_cast<const T*>(c.weight_gate);
      const int64_t n = c.channels, h = c.hidden;
      value = pack_weight<L>(w, h, 1, n, h, arena.floats(packed_size<L>(n, h)));
      value_transposed = pack_weight<L>(w, 1, h, h, n, arena.floats(packed_size<L>(h, n)));
      gate = pack_weight<L>(g, n, 1, n, n, arena.floats(packed_size<L>(n, n)));
      gate_transposed = pack_weight<L>(g, 1, n, n, n, arena.floats(packed_size<L>(n, n)));
      bias = arena.floats(padded(n, MR)), gate_bias = arena.floats(padded(n, MR));
      fill_bias(c.bias_out, n, bias);
      fill_bias(c.bias_gate, n, gate_bias);
    }
  };

  const Call& call;
  const Params& c = call.c;
  const int64_t channels = padded_channels(c.channels), hidden = padded_channels(c.hidden), width = padded(c.channels, MR);
  const int64_t y_panel = lane_count<L>(channels) * PANEL, mixed_panel = lane_count<L>(hidden) * PANEL;
  float *panel, *y, *y_rows, *mixed, *mixed_rows, *scaled, *g, *value;
  float *grads, *grads_plain, *gate_grads, *gate_grads_plain;  // of value and of the gate's logits
  float *grad_value, *grad_gate;                               // a task's sums of the gradients of the weights
  float *of_bias, *of_gate_bias;  // lanes
  double* of_norm;
  Ahead ahead;

  OutputBackward(const Call& of_call, Arena& a) : call(of_call) {
    panel = a.floats(std::max(channels, hidden) * PANEL);
    y = a.floats(PANELS<L> * y_panel), mixed = a.floats(PANELS<L> * mixed_panel);
    y_rows = a.floats(slices_size(c.channels, PANELS<L>, L::PER_LANE));
    mixed_rows = a.floats(slices_size(c.hidden, PANELS<L>, L::PER_LANE));
    scaled = a.floats(PANELS<L> * hidden * PANEL);
    g = a.floats(PANELS<L> * channels * PANEL), value = a.floats(PANELS<L> * channels * PANEL);
    grads = a.floats(PANELS<L> * y_panel), gate_grads = a.floats(PANELS<L> * y_panel);
    grads_plain = L::PER_LANE == 1 ? grads : a.floats(PANELS<L> * y_panel);
    gate_grads_plain = L::PER_LANE == 1 ? gate_grads : a.floats(PANELS<L> * y_panel);
    grad_value = a.floats(channels * padded(c.hidden, PANEL)), grad_gate = a.floats(channels * padded(c.channels, PANEL));
    of_bias = a.floats(width * W), of_gate_bias = a.floats(width * W);
    of_norm = reinterpret_cast<double*>(a.floats(4 * c.hidden));
  }

  void block(int64_t row, int64_t rows) {
    const int panels = panels_of(rows);
    PanelNorm norms[PANELS<L>];
    ahead.clear();
    add_rows<L, T>(c, ahead, c.z, row + BLOCK<L>);
    add_columns<L, T>(c, ahead, c.p, c.hidden, row + BLOCK<L>);
    add_rows<L, T>(c, ahead, c.grad, row + BLOCK<L>);
    for (int p = 0; p < panels; ++p) load_operands(row + p * PANEL, rows_of_panel(rows, p), p, panels, norms[p]);
    product<L>(call.value, 0, c.channels, 0, lane_count<L>(c.hidden), mixed, mixed_panel, panels,
               [&](auto& acc, int64_t o, int p) {
      ahead.step(32);
      for_each_result(acc, [&](int k, int, Vec& x) { x += call.bias[o + k]; });
      store_panel(Fp32Lanes{}, acc, o, value + p * channels * PANEL, nullptr);
    });
    product<L>(call.gate, 0, c.channels, 0, lane_count<L>(c.channels), y, y_panel, panels, [&](auto& acc, int64_t o, int p) {
      ahead.step(32);
      gate_gradients(acc, o, p);
    });
    if (c.grad_weight_out) add_outer<L>(c.channels, c.hidden, grads_plain, y_panel, panels, mixed_rows, grad_value);
    if (c.grad_weight_gate) add_outer<L>(c.channels, c.channels, gate_grads_plain, y_panel, panels, y_rows, grad_gate);
    // `value` is not needed any more
    product<L>(call.gate_transposed, 0, c.channels, 0, lane_count<L>(c.channels), gate_grads, y_panel, panels,
               [&](auto& acc, int64_t o, int p) {
      ahead.step(32);
      store_panel(Fp32Lanes{}, acc, o, value + p * channels * PANEL, nullptr);
    });
    for (int p = 0; p < panels; ++p) {
      store_rows_of<T>(c, value + p * channels * PANEL, c.out, row + p * PANEL, rows_of_panel(rows, p));
      product<L>(call.value_transposed, 0, c.hidden, 0, lane_count<L>(c.channels), grads + p * y_panel, 0, 1,
                 [&](auto& acc, int64_t o, int) {
        store_panel(Fp32Lanes{}, acc, o, panel, nullptr);
      });
      double* const sums[2] = {of_norm, of_norm + c.hidden};
      norms[p].backward(panel, scaled + p * hidden * PANEL, c.norm_out, c.hidden, sums);
      store_columns(panel, columns_at<T>(c.grad_p, row + p * PANEL), c.grad_p.stride, rows_of_panel(rows, p), c.hidden);
    }
  }

  void load_operands(int64_t row, int rows, int p, int panels, PanelNorm& norm) {
    load_normalized<T>(c, row, rows, norm, nullptr, panel);
    convert_panel<L>(panel, c.channels, y + p * y_panel, nullptr);
    if (c.grad_weight_gate) slice_rows<L>(panel, c.channels, p, panels, y_rows);
    load_normalized_p<T>(c, row, rows, norm, scaled + p * hidden * PANEL, panel);
    convert_panel<L>(panel, c.hidden, mixed + p * mixed_panel, nullptr);
    if (c.grad_weight_out) slice_rows<L>(panel, c.hidden, p, panels, mixed_rows);
    load_rows<T>(c, c.grad, row, rows, g + p * channels * PANEL);
  }

  template <int M>
  void gate_gradients(Vec (&acc)[M][2], int64_t o, int p) {
    const int64_t cell = (p * channels + o) * PANEL;
    Vec of_value[M][2];
    for_each_result(acc, [&](int k, int v, Vec& x) {
      const int64_t at = cell + k * PANEL + v * W;
      const Sigmoid gate = sigmoid(x + call.gate_bias[o + k]);
      of_value[k][v] = load(g + at) * gate.value;
      x = of_value[k][v] * load(value + at) * gate.complement;
    });
    store_panel(L{}, of_value, o, grads + p * y_panel, grads_plain + p * y_panel);
    store_panel(L{}, acc, o, gate_grads + p * y_panel, gate_grads_plain + p * y_panel);
    DS4SCI_UNROLL for (int k = 0; k < M; ++k) {
      if (c.grad_bias_out) add_lanes(of_bias, o + k, of_value[k][0] + of_value[k][1]);
      if (c.grad_bias_gate) add_lanes(of_gate_bias, o + k, acc[k][0] + acc[k][1]);
    }
  }

  void flush() {
    auto same = [](int64_t o) { return o; };
    flush_matrix(grad_value, c.channels, c.hidden, c.grad_weight_out, same);
    flush_matrix(grad_gate, c.channels, c.channels, c.grad_weight_gate, same);
    flush_lanes(of_bias, c.channels, c.grad_bias_out, same);
    flush_lanes(of_gate_bias, c.channels, c.grad_bias_gate, same);
    flush_vector(of_norm, c.hidden, c.grad_norm_out);
    flush_vector(of_norm + c.hidden, c.hidden, c.grad_norm_out_bias);
  }
};

// From the gradients of a and b: that of z. `out` holds the gate's part of the gradient of LN(z) and is replaced.
template <class L, class T>
struct ProjectBackward {
  static constexpr int64_t MOST = 132;  // projections that exist at a time
  static_assert(MOST % MR == 0);

  struct Call {
    const Params& c;
    Memory memory;
    Weight weight, transposed;
    float* bias;

    static int64_t bytes(const Params& c) {
      const int64_t n = glu_outputs(c);
      return 4 * (packed_size<L>(n, c.channels) + packed_size<L>(c.channels, n) + n) + 64 * 3;
    }

    explicit Call(const Params& params) : c(params), memory(bytes(params)) {
      Arena arena(memory.data());
      const T* w = static_cast<const T*>(c.weight_in);
      const int64_t n = glu_outputs(c);
      auto row = [&](int64_t o) { return glu_row(c, o) < 0 ? nullptr : w + glu_row(c, o) * c.channels; };
      weight = pack_rows<L, T>(row, 1, n, c.channels, arena.floats(packed_size<L>(n, c.channels)));
      Memory turned(n * c.channels * int64_t(sizeof(T)));  // [c][n], in the order of the outputs
      T* to = reinterpret_cast<T*>(turned.data());
      for (int64_t o = 0; o < n; ++o)
        for (int64_t k = 0; row(o) && k < c.channels; ++k) to[k * n + o] = row(o)[k];
      transposed = pack_weight<L>(static_cast<const T*>(to), n, 1, c.channels, n, arena.floats(packed_size<L>(c.channels, n)));
      bias = arena.floats(n);
      fill_glu_bias(c, bias);
    }
  };

  const Call& call;
  const Params& c = call.c;
  const int64_t channels = padded_channels(c.channels), outputs = glu_outputs(c);
  const int64_t y_panel = lane_count<L>(channels) * PANEL, grads_panel = MOST * PANEL / L::PER_LANE;
  float *scaled, *y, *y_rows, *panel, *dy, *grads, *grads_plain, *grad_weight, *of_bias;
  double* of_norm;
  Vec mask[PANELS<L>][2];
  Ahead ahead;

  ProjectBackward(const Call& of_call, Arena& a) : call(of_call) {
    scaled = a.floats(PANELS<L> * channels * PANEL), y = a.floats(PANELS<L> * y_panel);
    y_rows = a.floats(slices_size(c.channels, PANELS<L>, L::PER_LANE));
    panel = a.floats(channels * PANEL), dy = a.floats(PANELS<L> * channels * PANEL);
    grads = a.floats(PANELS<L> * grads_panel);
    grads_plain = L::PER_LANE == 1 ? grads : a.floats(PANELS<L> * grads_panel);
    grad_weight = a.floats(outputs * padded(c.channels, PANEL));
    of_bias = a.floats(outputs * W), of_norm = reinterpret_cast<double*>(a.floats(4 * c.channels));
  }

  void block(int64_t row, int64_t rows) {
    const int panels = panels_of(rows);
    PanelNorm norms[PANELS<L>];
    ahead.clear();
    add_rows<L, T>(c, ahead, c.z, row + BLOCK<L>);
    add_rows<L, T>(c, ahead, c.out, row + BLOCK<L>);
    add_columns<L, T>(c, ahead, c.ab, 2 * c.hidden, row + BLOCK<L>);
    for (int p = 0; p < panels; ++p) {
      load_normalized<T>(c, row + p * PANEL, rows_of_panel(rows, p), norms[p], scaled + p * channels * PANEL, panel);
      convert_panel<L>(panel, c.channels, y + p * y_panel, nullptr);
      if (c.grad_weight_in) slice_rows<L>(panel, c.channels, p, panels, y_rows);
      load_rows<T>(c, c.out, row + p * PANEL, rows_of_panel(rows, p), dy + p * channels * PANEL);
      load_mask(c, row + p * PANEL, rows_of_panel(rows, p), mask[p]);
    }
    for (int64_t from = 0; from < outputs; from += MOST) part(row, rows, from, std::min(from + MOST, outputs), panels);
    for (int p = 0; p < panels; ++p) {
      double* const sums[2] = {of_norm, of_norm + c.channels};
      norms[p].backward(dy + p * channels * PANEL, scaled + p * channels * PANEL, c.norm_in, c.channels, sums);
      store_rows_of<T>(c, dy + p * channels * PANEL, c.out, row + p * PANEL, rows_of_panel(rows, p));
    }
  }

  void part(int64_t row, int64_t rows, int64_t from, int64_t to, int panels) {
    product<L>(call.weight, from, to, 0, lane_count<L>(c.channels), y, y_panel, panels, [&](auto& acc, int64_t o, int p) {
      ahead.step(32);
      if constexpr (sizeof acc == sizeof(Vec[MR][2])) glu_gradients(acc, o, o - from, row, rows, p);
    });
    if (c.grad_weight_in)
      add_outer<L>(to - from, c.channels, grads_plain, grads_panel, panels, y_rows,
                   grad_weight + from * padded(c.channels, PANEL));
    product<L>(call.transposed, 0, c.channels, from, lane_count<L>(to - from), grads, grads_panel, panels,
               [&](auto& acc, int64_t o, int p) {
      float* cell = dy + (p * channels + o) * PANEL;
      for_each_result(acc, [&](int k, int v, Vec& x) {
        float* const sum = cell + k * PANEL + v * W;
        store(sum, load(sum) + x);
      });
    });
  }

  // Replaces values and gates by their gradients.
  void glu_gradients(Vec (&acc)[MR][2], int64_t o, int64_t local, int64_t row, int64_t rows, int p) {
    const int64_t channel = o / 2;
    const T* g = columns_at<const T>(c.ab, row + p * PANEL) + channel * c.ab.stride;
    const int count = int(std::min<int64_t>(HALF, 2 * c.hidden - channel)), lanes = int(rows - p * PANEL);
    DS4SCI_UNROLL for (int k = 0; k < HALF; ++k)
      DS4SCI_UNROLL for (int v = 0; v < 2; ++v) {
        const Vec grad = k < count ? read_lanes(g + k * c.ab.stride + v * W, lanes - v * W) * mask[p][v] : Vec{};
        const Sigmoid gate = sigmoid(acc[HALF + k][v] + call.bias[o + HALF + k]);
        const Vec of_value = grad * gate.value;
        acc[HALF + k][v] = of_value * (acc[k][v] + call.bias[o + k]) * gate.complement;
        acc[k][v] = of_value;
      }
    store_panel(L{}, acc, local, grads + p * grads_panel, grads_plain + p * grads_panel);
    if (!c.grad_bias_in) return;
    DS4SCI_UNROLL for (int k = 0; k < MR; ++k) add_lanes(of_bias, o + k, acc[k][0] + acc[k][1]);
  }

  void flush() {
    flush_matrix(grad_weight, outputs, c.channels, c.grad_weight_in, [&](int64_t o) { return glu_row(c, o); });
    flush_lanes(of_bias, outputs, c.grad_bias_in, [&](int64_t o) { return glu_row(c, o); });
    flush_vector(of_norm, c.channels, c.grad_norm_in);
    flush_vector(of_norm + c.channels, c.channels, c.grad_norm_in_bias);
  }
};

}  // namespace DS4SCI_ISA
