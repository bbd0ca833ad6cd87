// The contraction of a and b over the third residue, one product of [n, n] matrices for each channel, and its gradients.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "../simd/block_tasks.h"
#include "params.h"

namespace DS4SCI_ISA {

using ds4sci::Contraction;

// One [n, n] matrix as an operand: panels of PANEL outputs, [contracted index][PANEL].
template <class L, class T>
class Operand {
 public:
  Operand(int64_t n, Arena& arena) : n_(n), panel_(lane_count<L>(n) * PANEL) {
    data_ = arena.floats(panel_ * ((n + PANEL - 1) / PANEL));
    scratch_ = L::PER_LANE == 1 ? nullptr : arena.floats(n * PANEL);
  }

  // Output o, contracted index k is from[o][k] with `contiguous`, else from[k][o].
  void pack(const T* from, bool contiguous) {
    for (int64_t o = 0; o < n_; o += PANEL) {
      float* to = data_ + o / PANEL * panel_;
      float* values = scratch_ ? scratch_ : to;
      const int count = int(std::min<int64_t>(PANEL, n_ - o));
      if (contiguous)
        load_panel(from + o * n_, n_, count, n_, values);
      else
        load_columns(from + o, n_, count, n_, values);
      if (scratch_) convert_panel<L>(values, n_, to, nullptr);
    }
  }

  const float* panel(int64_t o) const { return data_ + o / PANEL * panel_; }

 private:
  int64_t n_, panel_;
  float *data_, *scratch_;
};

// to[i][j] = Σ_k left(i, k) right(j, k).
template <class L, class T>
static void multiply(int64_t n, const Operand<L, T>& left, const Operand<L, T>& right, T* to, Ahead& ahead) {
  const int64_t tiles = (n + PANEL - 1) / PANEL;
  const int lines = int(ahead.lines() / (tiles * tiles * (PANEL / MR))) + 1;
  for (int64_t j = 0; j < n; j += PANEL)
    for (int64_t i = 0; i < n; i += PANEL) {
      const int rows = int(std::min<int64_t>(PANEL, n - i)), count = int(std::min<int64_t>(PANEL, n - j));
      for_each_block<MR, 1>(rows, [&](auto height, int first) {
        constexpr int M = height;
        ahead.step(lines);
        Vec acc[M][2] = {};
        sum_products<L, 1>(acc, lane_count<L>(n), left.panel(i) + first, PANEL, right.panel(j), PANEL);
        for (int r = 0; r < M; ++r)
          for (int v = 0; v < 2; ++v) write_lanes(to + (i + first + r) * n + j + v * W, acc[r][v], count - v * W);
      });
    }
}

template <class L, class T>
static void contract(const Contraction& c) {
  const bool backward = c.grad_a.data;
  auto matrix = [](const ds4sci::Columns& x, int64_t channel) { return static_cast<T*>(x.data) + channel * x.stride; };
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto run = [&] {
    Arena counted(nullptr);
    for (int i = 0; i < 3; ++i) Operand<L, T>(c.n, counted);
    const std::unique_ptr<Memory> memory = make_memory(counted.used());
    if (!memory) {
      failed = true;
      return;
    }
    Arena arena(memory->data());
    Operand<L, T> left(c.n, arena), right(c.n, arena), kept(c.n, arena);
    Ahead ahead;
    for (int64_t k = next++, following; k < c.channels; k = following) {
      following = next++;
      ahead.clear();
      for (const ds4sci::Columns* x : {&c.a, &c.b, backward ? &c.p : nullptr})
        if (x && following < c.channels) ahead.add(matrix(*x, following), c.n * sizeof(T), c.n, c.n * sizeof(T));
      const T *a = matrix(c.a, k), *b = matrix(c.b, k);
      T *p = matrix(c.p, k), *grad_a = matrix(c.grad_a, k), *grad_b = matrix(c.grad_b, k);
      if (!backward) {
        left.pack(a, c.outgoing), right.pack(b, c.outgoing);
        multiply(c.n, left, right, p, ahead);
      } else if (c.outgoing) {  // da_ik = Σ_j g_ij b_jk, db_jk = Σ_i g_ij a_ik
        left.pack(p, true), right.pack(b, false), kept.pack(a, false);
        multiply(c.n, left, right, grad_a, ahead);
        left.pack(p, false);
        multiply(c.n, left, kept, grad_b, ahead);
      } else {  // da_ki = Σ_j b_kj g_ij, db_kj = Σ_i a_ki g_ij
        left.pack(b, true), right.pack(p, true), kept.pack(a, true);
        multiply(c.n, left, right, grad_a, ahead);
        right.pack(p, false);
        multiply(c.n, kept, right, grad_b, ahead);
      }
    }
  };
  ds4sci::parallel_for(std::min(c.threads, c.channels), c.gomp_parallel, run);
  if (failed) throw std::bad_alloc();
}

}  // namespace DS4SCI_ISA
