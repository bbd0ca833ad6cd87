// Pointwise functions on tiles of columns, [channels, columns], and the loops over the columns.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "rows.h"

namespace DS4SCI_ISA {

constexpr int PANEL = 2 * W;  // columns that are processed together: two vectors per channel

// Loads a panel's columns as fp32, channel by channel. Columns beyond the last one are 0.
template <class T>
static inline void load_columns(const Tile& t, int64_t channels, int64_t first, int count, float* to) {
  const T* from = static_cast<const T*>(t.data) + first;
  for (int64_t k = 0; k < channels; ++k, from += t.stride[1])
    for (int v = 0; v < PANEL; v += W) {
      const int left = count - v;
      store(to + k * PANEL + v, left >= W ? read(from + v) : left > 0 ? read(from + v, Partial{left}) : Vec{});
    }
}

// Loads up to W rows of up to W channels, transposed: to[channel][row]. Rows beyond `rows` are 0.
template <class T>
static inline void load_transposed(const T* from, int64_t step, int rows, int channels, float* to) {
  float square[W * W];
  for (int r = 0; r < W; ++r)
    store(square + r * W, r >= rows ? Vec{} : channels == W ? read(from + r * step) : read(from + r * step, Partial{channels}));
  transpose(square, W, to, PANEL, channels);
}

// The inverse of load_transposed.
template <class T>
static inline void store_transposed(const float* from, T* to, int64_t step, int rows, int channels) {
  float square[W * W], transposed[W * W];
  for (int k = 0; k < W; ++k) store(square + k * W, k < channels ? load(from + k * PANEL) : Vec{});
  transpose(square, W, transposed, W);
  for (int r = 0; r < rows; ++r) {
    if (channels == W)
      write(to + r * step, load(transposed + r * W));
    else
      write(to + r * step, load(transposed + r * W), Partial{channels});
  }
}

struct Moments { Vec mean, rstd; };
static inline Moments moments(const float* panel, int64_t channels, double eps) {
  Vec sum = {}, square = {};
  for (int64_t k = 0; k < channels; ++k) sum += load(panel + k * PANEL);
  const Vec mean = sum / float(channels);
  for (int64_t k = 0; k < channels; ++k) {
    const Vec d = load(panel + k * PANEL) - mean;
    square += d * d;
  }
  Vec rstd = square / float(channels) + float(eps);
  for (int i = 0; i < W; ++i) rstd[i] = 1.0f / std::sqrt(rstd[i]);
  return {mean, rstd + (square - square)};  // NaN if the sum of squares overflows, see NormForward
}

template <class T>
struct NormColumns {
  static constexpr int SUMS = 0;
  const Params& c;
  void operator()(int64_t first, int count, float* panel, float*) const {
    load_columns<T>(c.tile[0], c.channels, first, count, panel);
    for (int v = 0; v < count; v += W) {
      const Moments m = moments(panel + v, c.channels, c.eps);
      for (int64_t k = 0; k < c.channels; ++k) {
        float* dst = panel + v + k * PANEL;
        const Vec y = (load(dst) - m.mean) * m.rstd * c.vector[0][k];
        store(dst, c.vector[1] ? y + c.vector[1][k] : y);
      }
      const int rows = std::min(W, count - v);
      for (int r = 0; r < rows; ++r) {
        c.stats[0][first + v + r] = m.mean[r];
        c.stats[1][first + v + r] = m.rstd[r];
      }
      T* out = static_cast<T*>(c.tile[1].data) + (first + v) * c.tile[1].stride[1];
      for (int64_t k = 0; k < c.channels; k += W)
        store_transposed(panel + v + k * PANEL, out + k, c.tile[1].stride[1], rows, int(std::min<int64_t>(W, c.channels - k)));
    }
  }
};

template <class T>
struct NormColumnsBackward {
  static constexpr int SUMS = 2;
  const Params& c;
  void operator()(int64_t first, int count, float* panel, float* sums) const {
    const int64_t n = c.channels, step = c.tile[0].stride[1];
    float* grads = panel + n * PANEL;
    load_columns<T>(c.tile[1], n, first, count, panel);
    for (int v = 0; v < count; v += W) {
      const int rows = std::min(W, count - v);
      const T* g = static_cast<const T*>(c.tile[0].data) + (first + v) * step;
      for (int64_t k = 0; k < n; k += W)
        load_transposed(g + k, step, rows, int(std::min<int64_t>(W, n - k)), grads + v + k * PANEL);
      float m[W] = {}, s[W] = {};
      for (int r = 0; r < rows; ++r) m[r] = c.stats[0][first + v + r], s[r] = c.stats[1][first + v + r];
      const Vec mean = load(m), rstd = load(s);
      Vec sum = {}, inner = {};
      for (int64_t k = 0; k < n; ++k) {
        const Vec scaled = (load(panel + v + k * PANEL) - mean) * rstd, grad = load(grads + v + k * PANEL);
        const Vec a = grad * c.vector[0][k];
        sum += a;
        inner += a * scaled;
        if (sums) {
          sums[k] += reduce_add(grad * scaled);
          sums[n + k] += reduce_add(grad);
        }
      }
      sum /= float(n);
      inner /= float(n);
      for (int64_t k = 0; k < n; ++k) {
        const Vec scaled = (load(panel + v + k * PANEL) - mean) * rstd;
        store(panel + v + k * PANEL, (load(grads + v + k * PANEL) * c.vector[0][k] - sum - scaled * inner) * rstd);
      }
    }
    T* out = static_cast<T*>(c.tile[2].data) + first;
    for (int64_t k = 0; k < n; ++k, out += c.tile[2].stride[1])
      for (int v = 0; v < count; v += W) {
        const Vec x = load(panel + v + k * PANEL);
        if (count - v >= W)
          write(out + v, x);
        else
          write(out + v, x, Partial{count - v});
      }
  }
};

// Applies F to all columns, panel by panel. Panels are split into blocks as in run_rows.
template <class F>
static void run_columns(const Params& c) {
  const int64_t panels = (c.rows + PANEL - 1) / PANEL, blocks = std::max<int64_t>(1, std::min<int64_t>(32, panels));
  const int64_t size = F::SUMS && (c.sums[0] || c.sums[1]) ? F::SUMS * c.channels : 0;
  std::vector<double> block_sums(blocks * size);
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto run = [&] {
    const std::unique_ptr<float[]> panel(new (std::nothrow) float[2 * c.channels * PANEL]);
    const std::unique_ptr<float[]> fp32(new (std::nothrow) float[size]());
    if (!panel || !fp32) failed = true;
    for (int64_t b; panel && fp32 && (b = next++) < blocks;) {
      const SumBuffer sums{fp32.get(), size ? block_sums.data() + b * size : nullptr, size};
      const int64_t from = panels * b / blocks, to = panels * (b + 1) / blocks;
      for (int64_t i = from; i < to; ++i) {
        F{c}(i * PANEL, int(std::min<int64_t>(PANEL, c.rows - i * PANEL)), panel.get(), size ? sums.fp32 : nullptr);
        sums.flush(PANEL / W * (i + 1 - from), i + 1 == to);
      }
    }
  };
  parallel_for(std::min(c.threads, blocks), c.gomp_parallel, run);
  if (failed) throw std::bad_alloc();
  for (int64_t b = 0; size && b < blocks; ++b) add_sums(c, block_sums.data() + b * size, F::SUMS, c.channels);
}

// Applies F to each channel. The gated linear unit needs no panels: channels are independent, and one task is one channel.
template <class F>
static void run_channels(const Params& c) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t k; (k = next++) < c.channels;) F{c}(k);
  };
  parallel_for(std::min(c.threads, c.channels), c.gomp_parallel, run);
}

template <class T>
struct Glu {
  const Params& c;
  void operator()(int64_t k) const {
    const T* joint = static_cast<const T*>(c.tile[0].data);
    const T *u = joint + k * c.tile[0].stride[1], *v = joint + (c.channels + k) * c.tile[0].stride[1];
    T* out = static_cast<T*>(c.tile[1].data) + k * c.tile[1].stride[1];
    const float bias = c.vector[0] ? c.vector[0][k] : 0.0f, gate_bias = c.vector[0] ? c.vector[0][c.channels + k] : 0.0f;
    for_each_vector(c.rows, [&](int64_t i, auto lanes) {
      const Vec x = (read(u + i, lanes) + bias) * sigmoid(read(v + i, lanes) + gate_bias).value;
      write(out + i, c.vector[1] ? x * read(c.vector[1] + i, lanes) : x, lanes);
    });
  }
};

template <class T>
struct GluBackward {
  const Params& c;
  void operator()(int64_t k) const {
    T* joint = static_cast<T*>(c.tile[1].data);
    const T* g = static_cast<const T*>(c.tile[0].data) + k * c.tile[0].stride[1];
    T *u = joint + k * c.tile[1].stride[1], *v = joint + (c.channels + k) * c.tile[1].stride[1];
    const float bias = c.vector[0] ? c.vector[0][k] : 0.0f, gate_bias = c.vector[0] ? c.vector[0][c.channels + k] : 0.0f;
    double first = 0, second = 0;
    for_each_chunk(c.rows, [&](int64_t begin, int64_t end) {
      Vec of_u = {}, of_v = {};
      for_each_vector(end - begin, [&](int64_t j, auto lanes) {
        const int64_t i = begin + j;
        Vec grad = read(g + i, lanes);
        if (c.vector[1]) grad = grad * read(c.vector[1] + i, lanes);
        const Sigmoid gate = sigmoid(read(v + i, lanes) + gate_bias);
        const Vec du = grad * gate.value, dv = du * (read(u + i, lanes) + bias) * gate.complement;
        write(u + i, du, lanes);
        write(v + i, dv, lanes);
        of_u += du;  // beyond the last column the gradient is read as 0
        of_v += dv;
      });
      first += reduce_add(of_u);
      second += reduce_add(of_v);
    });
    if (c.sums[0]) {
      c.sums[0][k] += first;
      c.sums[0][c.channels + k] += second;
    }
  }
};

}  // namespace DS4SCI_ISA
