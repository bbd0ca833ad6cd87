// Backward pass of the transition: recomputes the hidden channels, a part at a time, in the same blocks of rows.
#pragma once

#include <atomic>

#include "layers.h"

namespace DS4SCI_ISA {

// Rows of a task, which sums gradients of the parameters in fp32: a multiple of a block, and the same for any number of threads.
static inline int64_t rows_of_task(const Params& c) {
  constexpr int64_t BLOCK = PANELS * PANEL, TASKS = 32, MOST = 16 * BLOCK;
  return std::min(MOST, padded((c.rows + TASKS - 1) / TASKS, BLOCK));
}

// Buffers of a thread: the operands of a block, and a task's sums of the gradients of the parameters.
template <class L>
struct Workspace {
  float *scaled, *y, *y_rows, *g, *g_rows, *panel, *dy;
  float *hidden, *hidden_plain, *grads, *grads_plain;  // of a part of the hidden channels: lanes and plain, see blocks.h
  float *u, *v;                                        // SwiGLU: the first layer's results in fp32
  float *grad_first[2], *grad_second;
  double *vectors;                                     // gradients of norm weight and bias, bias_1 (u, v), bias_2
  int64_t first_size, vector_size;

  Workspace(const Params& c, Arena& a) {
    const int64_t channels = padded_channels(c.channels), step = hidden_step(c), lanes = lane_count<L>(channels) * PANEL;
    const int64_t part = PANELS * step * PANEL, slices = slices_size(c.channels, PANELS, L::PER_LANE);
    scaled = a.floats(PANELS * channels * PANEL);
    y = a.floats(PANELS * lanes), g = a.floats(PANELS * lanes);
    y_rows = a.floats(slices), g_rows = a.floats(slices);
    panel = a.floats(channels * PANEL), dy = a.floats(PANELS * channels * PANEL);
    hidden = a.floats(part / L::PER_LANE), grads = a.floats((1 + c.swiglu) * part / L::PER_LANE);
    hidden_plain = L::PER_LANE == 1 ? hidden : a.floats(part / 2);
    grads_plain = L::PER_LANE == 1 ? grads : a.floats((1 + c.swiglu) * part / 2);
    u = a.floats(c.swiglu ? part : 0), v = a.floats(c.swiglu ? part : 0);
    first_size = padded(c.hidden, MR) * padded(c.channels, PANEL);
    for (auto& sum : grad_first) sum = a.floats(first_size);
    grad_second = a.floats(first_size);
    vector_size = 3 * padded(c.channels, MR) + 2 * padded(c.hidden, MR);
    vectors = reinterpret_cast<double*>(a.floats(2 * vector_size));
  }
};

template <class L, class T>
struct Backward {
  const Params& c;
  const Layers<L, T>& layers;
  Workspace<L>& w;
  const int64_t channels = padded_channels(c.channels), step = hidden_step(c);
  const int64_t panel_lanes = lane_count<L>(channels) * PANEL, hidden_panel = step * PANEL / L::PER_LANE;
  double *const norm_sums = w.vectors, *const of_bias_2 = norm_sums + 2 * padded(c.channels, MR),
               *const of_bias_1 = of_bias_2 + padded(c.channels, MR);

  void block(int64_t row, int64_t rows) {
    const int panels = int((rows + PANEL - 1) / PANEL);
    PanelNorm norms[PANELS];
    for (int p = 0; p < panels; ++p) load(row + p * PANEL, int(std::min<int64_t>(PANEL, rows - p * PANEL)), p, panels, norms[p]);
    for (int64_t from = 0; from < c.hidden; from += step) part(from, std::min(from + step, c.hidden), panels);
    for (int p = 0; p < panels; ++p) {
      float* dy = w.dy + p * channels * PANEL;
      if (c.norm_weight) {
        double* const sums[2] = {norm_sums, norm_sums + padded(c.channels, MR)};
        norms[p].backward(dy, w.scaled + p * channels * PANEL, c.norm_weight, c.channels, sums);
      }
      store_rows(dy, static_cast<T*>(c.out) + (row + p * PANEL) * c.out_stride, c.out_stride,
                 int(std::min<int64_t>(PANEL, rows - p * PANEL)), c.channels);
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
      const float *of_i = w.grads + i * PANELS * hidden_panel, *plain = w.grads_plain + i * PANELS * hidden_panel;
      if (c.grad_weight_1) add_outer<L>(to - from, c.channels, plain, hidden_panel, panels, w.y_rows, w.grad_first[i] + from * width);
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
      for (int k = 0; k < M; ++k) of_bias_1[o + k] += double(reduce_add(acc[k][0] + acc[k][1]));
    if (!c.swiglu) return;
    store_panel(L{}, of_v, local, lanes + PANELS * hidden_panel, plain + PANELS * hidden_panel);
    if (c.grad_bias_1)
      for (int k = 0; k < M; ++k) of_bias_1[padded(c.hidden, MR) + o + k] += double(reduce_add(of_v[k][0] + of_v[k][1]));
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
    const int64_t width = padded(c.channels, PANEL), narrow = padded(c.channels, MR);
    auto matrix = [&](float* from, double* to) {
      for (int64_t o = 0; to && o < c.hidden; ++o)
        for (int64_t k = 0; k < c.channels; ++k) to[o * c.channels + k] += double(from[o * width + k]);
      std::fill_n(from, w.first_size, 0.0f);
    };
    for (int i = 0; i <= c.swiglu; ++i) matrix(w.grad_first[i], c.grad_weight_1 ? c.grad_weight_1 + i * c.hidden * c.channels : nullptr);
    matrix(w.grad_second, c.grad_weight_2);
    auto vector = [&](const double* from, int64_t n, double* to) {
      for (int64_t k = 0; to && k < n; ++k) to[k] += from[k];
    };
    vector(norm_sums, c.channels, c.grad_norm_weight);
    vector(norm_sums + narrow, c.channels, c.grad_norm_bias);
    vector(of_bias_2, c.channels, c.grad_bias_2);
    for (int i = 0; i <= c.swiglu; ++i)
      vector(of_bias_1 + i * padded(c.hidden, MR), c.hidden, c.grad_bias_1 ? c.grad_bias_1 + i * c.hidden : nullptr);
    std::fill_n(w.vectors, w.vector_size, 0.0);
  }
};

template <class L, class T>
static void backward(const Params& c) {
  const Memory packed(Layers<L, T>::bytes(c, true));
  const Layers<L, T> layers(c, Arena(packed.data()), true);
  const int64_t task_rows = rows_of_task(c), tasks = (c.rows + task_rows - 1) / task_rows;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  Turns turns;
  auto run = [&] {
    Arena sizes(nullptr);
    const Workspace<L> counted(c, sizes);
    const std::unique_ptr<Memory> memory = make_memory(sizes.used());
    if (!memory) failed = true;
    Arena arena(memory ? memory->data() : nullptr);
    Workspace<L> workspace(c, arena);
    Backward<L, T> pass{c, layers, workspace};
    for (int64_t task; (task = next++) < tasks;) {
      const int64_t begin = task * task_rows, end = std::min(begin + task_rows, c.rows);
      for (int64_t row = begin; row < end && !failed; row += PANELS * PANEL) pass.block(row, std::min<int64_t>(PANELS * PANEL, end - row));
      turns.in_order(task, [&] {
        if (!failed) pass.flush();
      });
    }
  };
  ds4sci::parallel_for(std::min(c.threads, tasks), c.gomp_parallel, run);
  if (failed) throw std::bad_alloc();
}

}  // namespace DS4SCI_ISA
