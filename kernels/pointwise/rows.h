// Pointwise functions on tiles of rows, and the loop over the rows.
//
// A function object processes one row. It adds the row's contribution to the gradients of the vectors to `sums`, in fp32:
// `sums` covers few rows, see SumBuffer. SUMS is the number of such gradients.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "../simd/parallel_for.h"
#include "../simd/access.h"
#include "params.h"

namespace DS4SCI_ISA {

using ds4sci::Params;
using ds4sci::Tile;
using ds4sci::parallel_for;

template <class T>
static inline T* row_pointer(const Tile& t, int64_t rows, int64_t i) {
  return static_cast<T*>(t.data) + i / rows * t.stride[0] + i % rows * t.stride[1];
}

template <class T>
struct NormForward {
  static constexpr int SUMS = 0;
  const Params& c;
  void operator()(int64_t i, float*) const {
    const int64_t n = c.channels;
    const T* x = row_pointer<T>(c.tile[0], c.rows, i);
    T* y = row_pointer<T>(c.tile[1], c.rows * c.outer, i);
    const float mean = reduce_sum(n, [&](int64_t k, auto lanes) { return read(x + k, lanes); }) / float(n);
    const float square = reduce_sum(n, [&](int64_t k, auto lanes) {
      const Vec d = (read(x + k, lanes) - mean) * lane_mask(lanes);
      return d * d;
    });
    // A sum of squares that overflows gives NaN, which is visible; 1 / inf would silently make every y equal to the bias.
    const float rstd = 1.0f / std::sqrt(square / float(n) + float(c.eps)) + (square - square);
    for_each_vector(n, [&](int64_t k, auto lanes) {
      write(y + k, add_bias((read(x + k, lanes) - mean) * rstd * read(c.vector[0] + k, lanes), c.vector[1], k, lanes), lanes);
    });
    c.stats[0][i] = mean;
    c.stats[1][i] = rstd;
  }
};

template <class T>
struct NormBackward {
  static constexpr int SUMS = 2;
  const Params& c;
  void operator()(int64_t i, float* sums) const {
    const int64_t n = c.channels;
    const T* g = row_pointer<T>(c.tile[0], c.rows * c.outer, i);
    const T* x = row_pointer<T>(c.tile[1], c.rows, i);
    T* out = row_pointer<T>(c.tile[2], c.rows, i);
    const float mean = c.stats[0][i], rstd = c.stats[1][i];
    double totals[2] = {};
    for_each_chunk(n, [&](int64_t begin, int64_t end) {
      Vec sum = {}, inner = {};
      for_each_vector(end - begin, [&](int64_t j, auto lanes) {
        const int64_t k = begin + j;
        const Vec grad = read(g + k, lanes), scaled = (read(x + k, lanes) - mean) * rstd;
        const Vec a = grad * read(c.vector[0] + k, lanes);
        sum += a;
        inner += a * scaled;
        if (sums) {
          write(sums + k, read(sums + k, lanes) + grad * scaled, lanes);
          write(sums + n + k, read(sums + n + k, lanes) + grad, lanes);
        }
      });
      totals[0] += reduce_add(sum), totals[1] += reduce_add(inner);
    });
    const float first = float(totals[0] / double(n)), second = float(totals[1] / double(n));
    for_each_vector(n, [&](int64_t k, auto lanes) {
      const Vec scaled = (read(x + k, lanes) - mean) * rstd, a = read(g + k, lanes) * read(c.vector[0] + k, lanes);
      write(out + k, (a - first - scaled * second) * rstd, lanes);
    });
  }
};

template <class T>
struct GateForward {
  static constexpr int SUMS = 0;
  const Params& c;
  void operator()(int64_t i, float*) const {
    const T *value = row_pointer<T>(c.tile[0], c.rows, i), *logits = row_pointer<T>(c.tile[1], c.rows, i);
    T* out = row_pointer<T>(c.tile[2], c.rows, i);
    for_each_vector(c.channels, [&](int64_t k, auto lanes) {
      const Vec v = add_bias(read(value + k, lanes), c.vector[0], k, lanes);
      const Vec l = add_bias(read(logits + k, lanes), c.vector[1], k, lanes);
      write(out + k, v * sigmoid(l).value, lanes);
    });
  }
};

template <class T>
struct GateBackward {
  static constexpr int SUMS = 2;
  const Params& c;
  void operator()(int64_t i, float* sums) const {
    const int64_t n = c.channels;
    const T* g = row_pointer<T>(c.tile[0], c.rows, i);
    T *value = row_pointer<T>(c.tile[1], c.rows, i), *logits = row_pointer<T>(c.tile[2], c.rows, i);
    for_each_vector(n, [&](int64_t k, auto lanes) {
      const Vec grad = read(g + k, lanes), v = add_bias(read(value + k, lanes), c.vector[0], k, lanes);
      const Sigmoid gate = sigmoid(add_bias(read(logits + k, lanes), c.vector[1], k, lanes));
      const Vec dv = grad * gate.value, dl = dv * v * gate.complement;
      write(value + k, dv, lanes);
      write(logits + k, dl, lanes);
      if (sums) {
        write(sums + k, read(sums + k, lanes) + dv, lanes);
        write(sums + n + k, read(sums + n + k, lanes) + dl, lanes);
      }
    });
  }
};

template <class T>
struct Relu {
  static constexpr int SUMS = 0;
  const Params& c;
  void operator()(int64_t i, float*) const {
    T* x = row_pointer<T>(c.tile[0], c.rows, i);
    for_each_vector(c.channels, [&](int64_t k, auto lanes) {
      const Vec v = add_bias(read(x + k, lanes), c.vector[0], k, lanes);
      write(x + k, v < 0.0f ? Vec{} : v, lanes);  // NaN stays NaN
    });
  }
};

template <class T>
struct ReluBackward {
  static constexpr int SUMS = 1;
  const Params& c;
  void operator()(int64_t i, float* sums) const {
    T* g = row_pointer<T>(c.tile[0], c.rows, i);
    const T* hidden = row_pointer<T>(c.tile[1], c.rows, i);
    for_each_vector(c.channels, [&](int64_t k, auto lanes) {
      const Vec grad = read(hidden + k, lanes) > 0.0f ? read(g + k, lanes) : Vec{};
      write(g + k, grad, lanes);
      if (sums) write(sums + k, read(sums + k, lanes) + grad, lanes);
    });
  }
};

template <class T>
struct Swiglu {  // c.channels is the number of channels of the result
  static constexpr int SUMS = 0;
  const Params& c;
  void operator()(int64_t i, float*) const {
    const int64_t n = c.channels;
    const T* joint = row_pointer<T>(c.tile[0], c.rows, i);
    T* out = row_pointer<T>(c.tile[1], c.rows, i);
    for_each_vector(n, [&](int64_t k, auto lanes) {
      const Vec u = add_bias(read(joint + k, lanes), c.vector[0], k, lanes);
      const Vec v = add_bias(read(joint + n + k, lanes), c.vector[0], n + k, lanes);
      write(out + k, u * sigmoid(u).value * v, lanes);
    });
  }
};

template <class T>
struct SwigluBackward {
  static constexpr int SUMS = 2;
  const Params& c;
  void operator()(int64_t i, float* sums) const {
    const int64_t n = c.channels;
    const T* g = row_pointer<T>(c.tile[0], c.rows, i);
    T* joint = row_pointer<T>(c.tile[1], c.rows, i);
    for_each_vector(n, [&](int64_t k, auto lanes) {
      const Vec grad = read(g + k, lanes), u = add_bias(read(joint + k, lanes), c.vector[0], k, lanes);
      const Vec v = add_bias(read(joint + n + k, lanes), c.vector[0], n + k, lanes);
      const Sigmoid gate = sigmoid(u);
      const Vec du = grad * v * gate.value * (1.0f + u * gate.complement), dv = grad * u * gate.value;
      write(joint + k, du, lanes);
      write(joint + n + k, dv, lanes);
      if (sums) {
        write(sums + k, read(sums + k, lanes) + du, lanes);
        write(sums + n + k, read(sums + n + k, lanes) + dv, lanes);
      }
    });
  }
};

template <class T>
struct ColumnSums {
  static constexpr int SUMS = 1;
  const Params& c;
  void operator()(int64_t i, float* sums) const {
    const T* x = row_pointer<T>(c.tile[0], c.rows, i);
    for_each_vector(c.channels, [&](int64_t k, auto lanes) {
      write(sums + k, read(sums + k, lanes) + read(x + k, lanes), lanes);
    });
  }
};

// The sums of a block of rows: at most FP32_ADDITIONS additions in fp32, then the result is added in fp64. The rounding
// error therefore does not grow with the number of rows.
struct SumBuffer {
  float* fp32;
  double* fp64;
  int64_t size;

  // Adds fp32 to fp64 if `done`, the number of additions so far, is a multiple of FP32_ADDITIONS or the last one.
  void flush(int64_t done, bool last) const {
    if (!fp64 || (done % FP32_ADDITIONS && !last)) return;
    for (int64_t i = 0; i < size; ++i) fp64[i] += double(fp32[i]), fp32[i] = 0.0f;
  }
};

// Adds a block's sums, `count` vectors of `n` numbers, to the caller's. Gradients that were not requested are skipped.
static inline void add_sums(const Params& c, const double* block_sums, int count, int64_t n) {
  for (int s = 0; s < count; ++s)
    for (int64_t k = 0; c.sums[s] && k < n; ++k) c.sums[s][k] += block_sums[s * n + k];
}

// Applies F to all rows. The rows are split into blocks whose number depends on the shape only, and the blocks' sums are
// added in order: the result does not depend on the number of threads.
template <class F>
static void run_rows(const Params& c) {
  const int64_t rows = c.rows * c.outer, blocks = std::max<int64_t>(1, std::min<int64_t>(32, rows / 16));
  const int64_t size = F::SUMS && (c.sums[0] || c.sums[1]) ? F::SUMS * c.channels : 0;
  std::vector<double> block_sums(blocks * size);
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto run = [&] {
    const std::unique_ptr<float[]> fp32(new (std::nothrow) float[size]());
    if (!fp32) failed = true;
    for (int64_t b; fp32 && (b = next++) < blocks;) {
      const F f{c};
      const SumBuffer sums{fp32.get(), size ? block_sums.data() + b * size : nullptr, size};
      const int64_t from = rows * b / blocks, to = rows * (b + 1) / blocks;
      for (int64_t i = from; i < to; ++i) {
        f(i, size ? sums.fp32 : nullptr);
        sums.flush(i + 1 - from, i + 1 == to);
      }
    }
  };
  parallel_for(std::min(c.threads, blocks), c.gomp_parallel, run);
  if (failed) throw std::bad_alloc();
  for (int64_t b = 0; size && b < blocks; ++b) add_sums(c, block_sums.data() + b * size, F::SUMS, c.channels);
}

}  // namespace DS4SCI_ISA
