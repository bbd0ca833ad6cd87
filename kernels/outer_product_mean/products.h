// Forward and backward pass of the outer product mean. For a few residues i and a panel of residues j, a part of the
// c · c channels of the outer products at a time: they are the operand of the next product, in the cache of one core.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../simd/blocks.h"
#include "../simd/parallel_for.h"
#include "params.h"

namespace DS4SCI_ISA {

using ds4sci::Params;

constexpr int COLUMNS = 4;     // residues i of a block
constexpr int64_t PART = 256;  // channels of the outer products that exist at a time; lanes of rows that are one sum

// Where a block is: its first residue i and its panel, counted over the batch, and its rows of z and of the divisor.
template <class T>
struct Place {
  int64_t first, panel;
  int count, in_panel;  // residues i, and j of the panel
  T* z;
  const float* divisor;
};

template <class L, class T>
struct Block {
  const Params& c;
  const int64_t channels = padded_channels(c.channels), rows = padded_channels(c.rows), lanes = lane_count<L>(c.rows);
  const int64_t outputs = padded(c.outputs, MR), width = padded(c.outputs, PANEL);
  const int64_t slices = (c.rows + PANEL - 1) / PANEL, panels = (c.n_b + PANEL - 1) / PANEL;
  const int64_t step = std::max<int64_t>(1, PART / channels);  // channels of b in a part
  const int64_t one = channels * PANEL / L::PER_LANE, part = step * one;  // outer products of a channel of b, of a part
  const int64_t z_panel = padded(c.outputs, 2) / L::PER_LANE * PANEL;
  const int64_t a_size = slices * channels * PANEL, b_size = c.channels * rows * PANEL;
  float *outer, *outer_plain, *out, *z, *z_rows, *grads, *grads_plain, *grad_a, *grad_b, *grad_weight;
  double* grad_bias;

  Block(const Params& params, Arena& memory, bool backward) : c(params) {
    auto pair = [&](float*& of_lanes, float*& plain) {
      of_lanes = memory.floats(COLUMNS * part);
      plain = L::PER_LANE == 1 ? of_lanes : memory.floats(COLUMNS * part);
    };
    pair(outer, outer_plain);
    out = memory.floats(COLUMNS * outputs * PANEL);
    if (!backward) return;
    pair(grads, grads_plain);
    z = memory.floats(COLUMNS * z_panel), z_rows = memory.floats(slices_size(c.outputs, COLUMNS, L::PER_LANE));
    grad_a = memory.floats(COLUMNS * a_size), grad_b = memory.floats(b_size);
    grad_weight = memory.floats(c.grad_weight ? c.channels * channels * width : 0);
    grad_bias = reinterpret_cast<double*>(memory.floats(2 * outputs));
  }

  // Σ_s a_si b_sj for the channels of b from `from` to `to`, [b][a][PANEL] for each i.
  void products(const Place<T>& at, int64_t from, int64_t to, float* plain) {
    alignas(64) float sums[MR * PANEL];
    for (int64_t d = from; d < to; ++d)
      for (int n = 0; n < at.count; ++n)
        for (int64_t o = 0; o < c.channels; o += MR)
          for (int64_t k = 0; k < std::max<int64_t>(lanes, 1); k += PART) {
            const Weight a{c.a + (at.first + n) * packed_size<L>(c.channels, c.rows), c.channels, lanes};
            const float* b = c.b + ((at.panel * c.channels + d) * lanes + k) * PANEL;
            const int64_t end = std::min(o + MR, c.channels), steps = std::min(PART, lanes - k);
            product<L>(a, o, end, k * L::PER_LANE, steps, b, 0, 1, [&](auto& acc, int64_t, int) {
              for_each_result(acc, [&](int m, int v, Vec& x) {
                if (k) x += load(sums + m * PANEL + v * W);
                if (k + PART < lanes) store(sums + m * PANEL + v * W, x);
              });
              const int64_t to_part = n * part + (d - from) * one;
              if (k + PART >= lanes) store_panel(L{}, acc, o, outer + to_part, plain ? plain + to_part : nullptr);
            });
          }
  }

  void forward(const Place<T>& at) {
    const Weight weight{c.weight, c.outputs, lane_count<L>(c.channels * channels)};
    for (int64_t from = 0; from < c.channels; from += step) {
      const int64_t to = std::min(from + step, c.channels), k = (to - from) * channels / L::PER_LANE;
      products(at, from, to, nullptr);
      product<L>(weight, 0, c.outputs, from * channels, k, outer, part, at.count, [&](auto& acc, int64_t o, int n) {
        for_each_result(acc, [&](int m, int v, Vec& x) {
          float* const sum = out + (n * outputs + o + m) * PANEL + v * W;
          if (from) x += load(sum);
          store(sum, to < c.channels ? x : (x + c.bias[o + m]) / load(at.divisor + n * panels * PANEL + v * W));
        });
      });
    }
    for (int n = 0; n < at.count; ++n)
      store_rows(out + n * outputs * PANEL, at.z + n * c.z_i, c.z_j, at.in_panel, c.outputs);
  }

  void backward(const Place<T>& at) {
    for (int n = 0; n < at.count; ++n) {
      load_panel(at.z + n * c.z_i, c.z_j, at.in_panel, c.outputs, out);
      for (int64_t x = 0; x < c.outputs * PANEL; x += W)
        store(out + x, load(out + x) / load(at.divisor + n * panels * PANEL + x % PANEL));
      convert_panel<L>(out, c.outputs, z + n * z_panel, nullptr);
      if (c.grad_weight) slice_rows<L>(out, c.outputs, n, at.count, z_rows);
      if (c.grad_bias) add_row_sums(out, c.outputs, grad_bias);
    }
    for (int64_t from = 0; from < c.channels; from += step) {
      const int64_t to = std::min(from + step, c.channels);
      if (c.grad_weight) {
        products(at, from, to, outer_plain);
        float* const sum = grad_weight + from * channels * width;
        add_outer<L>((to - from) * channels, c.outputs, outer_plain, part, at.count, z_rows, sum);
      }
      for (int64_t d = from; d < to; ++d) {
        const float* transposed = c.weight_transposed + d * packed_size<L>(c.channels, c.outputs);
        const Weight weight{transposed, c.channels, lane_count<L>(c.outputs)};
        product<L>(weight, 0, c.channels, 0, weight.lanes, z, z_panel, at.count, [&](auto& acc, int64_t o, int n) {
          const int64_t to_part = n * part + (d - from) * one;
          store_panel(L{}, acc, o, grads + to_part, grads_plain + to_part);
        });
        add_grad_b(at, grads + (d - from) * one, grad_b + d * rows * PANEL);
      }
      for (int n = 0; n < at.count; ++n)
        for (int64_t s = 0; s < slices; ++s)
          add_outer<L>(c.channels, PANEL, grads_plain + n * part, one, int(to - from),
                       c.b_rows + ((at.panel * slices + s) * c.channels + from) * PANEL * PANEL / L::PER_LANE,
                       grad_a + (n * slices + s) * channels * PANEL);
    }
  }

  // The gradient of a channel of b, [rows][PANEL]: Σ_i Σ_a of a times the gradients of the outer products.
  void add_grad_b(const Place<T>& at, const float* grads_of_b, float* to) {
    const int64_t size = packed_size<L>(c.rows, c.channels), steps = lane_count<L>(c.channels);
    for (int64_t s = 0; s < c.rows; s += MR) {
      const int units = int(padded_channels(std::min<int64_t>(MR, c.rows - s)) / STEP);
      with_height<MR / STEP, STEP>(units, 0, [&](auto height, int) {
        constexpr int M = height;
        Vec acc[M][2] = {};
        const float* a = c.a_channels + at.first * size + s * steps;
        for (int n = 0; n < at.count; ++n)
          accumulate<L, 1>(acc, int(steps), a + n * size, MR, grads_of_b + n * part, PANEL);
        for_each_result(acc, [&](int m, int v, Vec& x) {
          float* const sum = to + (s + m) * PANEL + v * W;
          store(sum, load(sum) + x);
        });
      });
    }
  }
};

// Adds `n` sums of a thread to those of the call and clears them.
template <class From, class To>
static inline void flush(From* from, int64_t n, To* to) {
  for (int64_t x = 0; x < n; ++x) to[x] += To(from[x]);
  std::fill_n(from, n, From(0));
}

// Tasks are a panel and a range of residues i, the same for any number of threads. Tasks that run at the same time have
// different i where there are enough, so that they rarely wait for each other to add to the gradient of a.
template <class L, class T>
static void run(const Params& c, bool backward) {
  Arena sizes(nullptr);
  const Block<L, T> shape(c, sizes, backward);
  const int64_t panels = shape.panels, blocks = (c.n_a + COLUMNS - 1) / COLUMNS;
  const int64_t columns = std::min<int64_t>(64, padded((c.n_a * panels * c.batch + 31) / 32, COLUMNS));
  const int64_t ranges = (c.n_a + columns - 1) / columns, tasks = c.batch * panels * ranges;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  Turns turns;
  const std::unique_ptr<Turns[]> of_blocks(new Turns[c.batch * blocks]);
  auto worker = [&] {
    const std::unique_ptr<Memory> memory = make_memory(sizes.used());
    if (!memory) failed = true;
    Arena arena(memory ? memory->data() : nullptr);
    Block<L, T> block(c, arena, backward);
    for (int64_t task; (task = next++) < tasks;) {
      const int64_t batch = task / (panels * ranges), j = task / ranges % panels, begin = task % ranges * columns;
      for (int64_t i = begin; i < std::min(begin + columns, c.n_a); i += COLUMNS) {
        const int64_t first = batch * c.n_a + i;
        const Place<T> at{first, batch * panels + j, int(std::min<int64_t>(COLUMNS, c.n_a - i)),
                          int(std::min<int64_t>(PANEL, c.n_b - j * PANEL)),
                          static_cast<T*>(c.z) + batch * c.z_batch + i * c.z_i + j * PANEL * c.z_j,
                          c.divisor + (first * panels + j) * PANEL};
        if (!failed) backward ? block.backward(at) : block.forward(at);
        if (backward)
          of_blocks[batch * blocks + i / COLUMNS].in_order(j, [&] {
            if (!failed) flush(block.grad_a, at.count * block.a_size, c.grad_a + first * block.a_size);
          });
      }
      if (backward)
        turns.in_order(task, [&] {
          if (failed) return;
          flush(block.grad_b, block.b_size, c.grad_b + (batch * panels + j) * block.b_size);
          if (c.grad_bias) flush(block.grad_bias, c.outputs, c.grad_bias);
          for (int64_t k = 0; c.grad_weight && k < c.channels * block.channels; ++k)
            flush(block.grad_weight + k * block.width, c.outputs, c.grad_weight + k * c.outputs);
        });
    }
  };
  ds4sci::parallel_for(std::min(c.threads, tasks), c.gomp_parallel, worker);
  if (failed) throw std::bad_alloc();
}

}  // namespace DS4SCI_ISA
