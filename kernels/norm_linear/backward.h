// Backward pass of the linear layer, some thousand rows at a time: first the gradient of x, in blocks of rows, then the gradients
// of weight and bias, in chunks of outputs, each over all these rows. So no sum is shared between threads, and the sum of a
// chunk stays in the cache of one core.
#pragma once

#include <atomic>

#include "forward.h"

namespace DS4SCI_ISA {

constexpr int64_t MOST_OUTPUTS = 132;                     // of a part, in the gradient of x
constexpr int64_t CHUNK_OUTPUTS = 96;                     // of a chunk, in the gradient of the weight
constexpr int GROUP = 8;                                  // panels whose products are one sum there
constexpr int64_t SLICES_BYTES = 2 * 1024 * 1024;         // of the layer's input, for the gradient of the weight
static_assert(MOST_OUTPUTS % MR == 0 && CHUNK_OUTPUTS % MR == 0 && GROUP % PANELS<LanesOfBf16> == 0);

// How the gradient of the weight is divided into tasks. Narrow layers are divided along the inputs, others along the outputs.
struct Chunks {
  int64_t units, of_outputs, of_inputs;

  explicit Chunks(const Params& c) {
    units = padded(c.outputs, MR) / MR;
    const bool narrow = units * MR <= CHUNK_OUTPUTS / 2;
    of_outputs = narrow ? 1 : std::min(units, padded((units * MR + CHUNK_OUTPUTS - 1) / CHUNK_OUTPUTS, 4));
    of_inputs = narrow ? padded(c.inputs, PANEL) / PANEL : 1;
  }
};

// The panels that are processed at a time: a multiple of GROUP, or all.
static inline int64_t panels_at_a_time(const Params& c) {
  const int64_t most = SLICES_BYTES / (4 * PANEL * padded(c.inputs, PANEL)) / GROUP * GROUP;
  return std::min(std::max<int64_t>(most, GROUP), (c.rows + PANEL - 1) / PANEL);
}

// Buffers that the threads share: the layer's input as RowSlices, and the gradients of the norm's parameters of each block.
template <class L>
struct SharedSpace {
  float* slices;
  double* norm_sums;

  SharedSpace(const Params& c, Arena& a) {
    const int64_t panels = panels_at_a_time(c), blocks = (panels + PANELS<L> - 1) / PANELS<L>;
    slices = a.floats(c.grad_weight ? slices_size(c.inputs, int(panels), L::PER_LANE) : 0);
    norm_sums = reinterpret_cast<double*>(a.floats(c.norm_weight ? 4 * c.inputs * blocks : 0));
  }
};

template <class L>
struct Backward {
  const Params& c;
  const Packed<L>& packed;
  const SharedSpace<L>& shared;
  Forward<L> without_norm;
  Ahead ahead;
  int64_t first_row = 0, last_row = 0;  // processed at a time
  int panels = 0;
  float *scaled, *dy, *part, *g;           // of a thread: for the gradient of x
  float *g_rows, *g_sums, *sum, *scratch;    // for the gradient of the weight

  Backward(const Params& c, const Packed<L>& packed, const SharedSpace<L>& shared, Arena& a)
      : c(c), packed(packed), shared(shared), without_norm(c, packed, a) {
    const int64_t channels = padded_channels(c.inputs) * PANEL, most = c.norm_weight ? PANELS<L> * channels : 0;
    const int64_t part_size = c.norm_weight ? std::min(MOST_OUTPUTS, padded(c.outputs, MR)) * PANEL : 0;
    scaled = a.floats(most), dy = a.floats(most);
    part = a.floats(part_size), g = a.floats(PANELS<L> * part_size / L::PER_LANE);
    g_rows = a.floats(GROUP * CHUNK_OUTPUTS * PANEL / L::PER_LANE), g_sums = a.floats(CHUNK_OUTPUTS);
    sum = a.floats(CHUNK_OUTPUTS * padded(c.inputs, PANEL));
    scratch = a.floats(2 * PANEL * CHUNK_OUTPUTS);
  }

  int rows_of(int64_t panel) const { return int(std::min<int64_t>(PANEL, last_row - first_row - panel * PANEL)); }

  // The gradient of x in one block, and its part of the operand of the gradient of the weight.
  void block(int64_t index) {
    const int64_t first = index * PANELS<L>, row = first_row + first * PANEL;
    const int count = int(std::min<int64_t>(PANELS<L>, panels - first));
    if (c.norm_weight) return normalized_block(index, first, count);
    without_norm.block(row, int(std::min(BLOCK<L>, last_row - row)));
    if (!c.grad_weight) return;
    ahead.clear();
    add_rows<L>(ahead, c.x, row, last_row, 0, c.inputs);
    const int lines = int(ahead.lines() / count) + 1;  // of a panel, while the one before is packed
    ahead.step(lines);
    for (int64_t p = first; p < first + count; ++p) {
      ahead.step(lines);
      pack_input(p, [](Vec x, auto...) { return x; });
    }
  }

  // A panel of f(x), the input of the product, as RowSlices.
  template <class F>
  void pack_input(int64_t p, F f) const {
    constexpr int64_t LANES = PANEL / L::PER_LANE;
    for (int64_t k = 0; k < c.inputs; k += PANEL)
      pack_rows<L>(c.x, first_row + p * PANEL, rows_of(p), k, std::min(k + PANEL, c.inputs), c.inputs, PANEL,
                   shared.slices + (k / PANEL * panels + p) * LANES * PANEL, nullptr, nullptr, f);
  }

  void normalized_block(int64_t index, int64_t first, int count) {
    const int64_t channels = padded_channels(c.inputs) * PANEL;
    const int64_t row = first_row + first * PANEL;
    PanelNorm norms[PANELS<L>];
    for (int p = 0; p < count; ++p) {
      load_normalized(c, row + p * PANEL, rows_of(first + p), norms[p], scaled + p * channels, nullptr);
      float mean[PANEL], rstd[PANEL];
      for (int v = 0; v < 2; ++v) store(mean + v * W, norms[p].mean[v]), store(rstd + v * W, norms[p].rstd[v]);
      if (c.grad_weight)
        pack_input(first + p, [&](Vec x, int r, int64_t k, auto lanes) {
          return add_bias((x - mean[r]) * rstd[r] * read(c.norm_weight + k, lanes), c.norm_bias, k, lanes);
        });
    }
    const int64_t parts = (c.outputs + MOST_OUTPUTS - 1) / MOST_OUTPUTS, step = padded((c.outputs + parts - 1) / parts, MR);
    const int64_t g_panel = step * PANEL / L::PER_LANE;
    for (int64_t from = 0; from < c.outputs; from += step) {
      const int64_t to = std::min(from + step, c.outputs);
      ahead.clear();
      if (to < c.outputs) {
        add_rows<L>(ahead, c.y, row, last_row, to, std::min(to + step, c.outputs));
      } else {
        add_rows<L>(ahead, c.grad_x, row, last_row, 0, c.inputs);
        add_rows<L>(ahead, c.x, row + BLOCK<L>, last_row, 0, c.inputs);
        add_rows<L>(ahead, c.y, row + BLOCK<L>, last_row, 0, std::min(step, c.outputs));
      }
      const int lines = int(ahead.lines() / ((c.inputs + MR - 1) / MR * count)) + 1;
      for (int p = 0; p < count; ++p) {
        load_panel(c.y, row + p * PANEL, rows_of(first + p), from, to, part);
        convert_panel<L>(part, to - from, g + p * g_panel, nullptr);
      }
      product<L>(packed.weight, 0, c.inputs, from, lane_count<L>(to - from), g, g_panel, count, [&](auto& acc, int64_t o, int p) {
        ahead.step(lines);
        float* cell = dy + p * channels + o * PANEL;
        for_each_result(acc, [&](int k, int v, Vec& x) {
          float* const sum = cell + k * PANEL + v * W;
          store(sum, from ? x + load(sum) : x);
        });
      });
    }
    double* const of_norm = shared.norm_sums + 2 * c.inputs * index;
    std::fill_n(of_norm, 2 * c.inputs, 0.0);
    for (int p = 0; p < count; ++p) {
      double* const sums[2] = {c.grad_norm_weight ? of_norm : nullptr, c.grad_norm_bias ? of_norm + c.inputs : nullptr};
      norms[p].backward(dy + p * channels, scaled + p * channels, c.norm_weight, c.inputs, sums);
      store_panel_rows(dy + p * channels, c.grad_x, row + p * PANEL, rows_of(first + p), c.inputs);
    }
  }

  // The gradients of the weight and the bias of one chunk.
  void chunk(const Chunks& chunks, int64_t task) {
    const int64_t i = task / chunks.of_inputs, from = chunks.units * i / chunks.of_outputs * MR;
    const int64_t to = std::min(c.outputs, chunks.units * (i + 1) / chunks.of_outputs * MR), n = to - from, width = padded(n, W);
    const int64_t slices = padded(c.inputs, PANEL) / PANEL, k = task % chunks.of_inputs;
    const int64_t first_slice = slices * k / chunks.of_inputs, last_slice = slices * (k + 1) / chunks.of_inputs;
    constexpr int64_t LANES = PANEL / L::PER_LANE;
    std::fill_n(sum, (last_slice - first_slice) * CHUNK_OUTPUTS * PANEL, 0.0f);
    for (int first = 0; first < panels; first += GROUP) {
      const int count = std::min(GROUP, panels - first);
      float* const sums = c.grad_bias && !k ? g_sums : nullptr;
      for (int p = 0; p < count; ++p) {
        std::fill_n(g_sums, CHUNK_OUTPUTS, 0.0f);
        pack_rows<L>(c.y, first_row + int64_t(first + p) * PANEL, rows_of(first + p), from, to, c.outputs, width,
                     g_rows + p * LANES * width, sums, scratch, [](Vec x, auto...) { return x; });
        for (int64_t o = 0; sums && o < n; ++o) c.grad_bias[from + o] += double(sums[o]);
      }
      ahead.clear();
      for (int p = 0; p < GROUP; p += PANELS<L>)
        add_rows<L>(ahead, c.y, first_row + int64_t(first + GROUP + p) * PANEL, last_row, from, to);
      const int lines = int(ahead.lines() / (last_slice - first_slice)) + 1;
      for (int64_t slice = first_slice; c.grad_weight && slice < last_slice; ++slice) {
        ahead.step(lines);
        add_products(n, width, int(count * LANES), shared.slices + (slice * panels + first) * LANES * PANEL,
                     sum + (slice - first_slice) * CHUNK_OUTPUTS * PANEL);
      }
    }
    for (int64_t slice = first_slice; c.grad_weight && slice < last_slice; ++slice)
      for (int64_t o = 0; o < n; ++o) {
        const float* cells = sum + ((slice - first_slice) * CHUNK_OUTPUTS + o) * PANEL;
        double* total = c.grad_weight + (from + o) * c.inputs + slice * PANEL;
        for (int64_t j = 0; j < std::min<int64_t>(PANEL, c.inputs - slice * PANEL); ++j) total[j] += double(cells[j]);
      }
  }

  // to[o][k] += Σ_r g[r][o] x[r][k] for n outputs and PANEL inputs.
  void add_products(int64_t n, int64_t width, int lanes, const float* x, float* to) const {
    for (int64_t o = 0; o < n; o += MR) {
      const int units = int(padded_channels(std::min<int64_t>(MR, n - o)) / STEP);
      with_height<MR / STEP, STEP>(units, 0, [&](auto height, int) {
        constexpr int M = height;
        Vec acc[M][2] = {};
        accumulate<L, 1>(acc, lanes, g_rows + o, width, x, PANEL);
        for_each_result(acc, [&](int i, int v, Vec& a) {
          float* const cell = to + (o + i) * PANEL + v * W;
          store(cell, load(cell) + a);
        });
      });
    }
  }
};

template <class L>
static void backward(const Params& c) {
  Arena parameters(static_cast<char*>(c.packed)), common(static_cast<char*>(c.workspace)), sizes(nullptr);
  const Packed<L> packed(c, true, parameters);
  const SharedSpace<L> shared(c, common);
  const Backward<L> counted(c, packed, shared, sizes);
  const Chunks chunks(c);
  const int64_t step = panels_at_a_time(c) * PANEL;
  for (int64_t first = 0; first < c.rows; first += step) {
    const int64_t last = std::min(first + step, c.rows), blocks = (last - first + BLOCK<L> - 1) / BLOCK<L>;
    auto in_parallel = [&](int64_t tasks, auto task) {
      std::atomic<int64_t> next{0}, thread{0};
      auto run = [&] {
        Arena arena(static_cast<char*>(c.workspace) + common.used() + sizes.used() * thread++);
        Backward<L> pass(c, packed, shared, arena);
        pass.first_row = first, pass.last_row = last, pass.panels = int((last - first + PANEL - 1) / PANEL);
        for (int64_t i; (i = next++) < tasks;) task(pass, i);
      };
      ds4sci::parallel_for(std::min(c.threads, tasks), c.gomp_parallel, run);
    };
    in_parallel(blocks, [](Backward<L>& pass, int64_t i) { pass.block(i); });
    if (c.grad_weight || c.grad_bias)
      in_parallel(chunks.of_outputs * chunks.of_inputs, [&](Backward<L>& pass, int64_t i) { pass.chunk(chunks, i); });
    for (int64_t i = 0; c.norm_weight && i < blocks; ++i)
      for (int64_t k = 0; k < c.inputs; ++k) {
        const double* sums = shared.norm_sums + 2 * c.inputs * i;
        if (c.grad_norm_weight) c.grad_norm_weight[k] += sums[k];
        if (c.grad_norm_bias) c.grad_norm_bias[k] += sums[c.inputs + k];
      }
  }
}

}  // namespace DS4SCI_ISA
