// Functions of truncated Taylor series: ds4sci/physics/taylor.py has the formulas and the same sums in torch.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "../simd/parallel_for.h"
#include "params.h"

namespace DS4SCI_ISA {

// Elements that a thread takes through all sums before the next ones: monomials stay in the nearest cache.
constexpr int64_t CHUNK = 128;

// One chunk of every coefficient and monomial.
template <class T>
struct Chunk {
  explicit Chunk(const ds4sci::Params& c)
      : c(c), memory((c.products + 2 * c.coefficients) * CHUNK), slots(c.coefficients + c.products), sums(c.coefficients) {
    T* free = memory.data();
    for (int64_t i = 0; i < c.products; ++i, free += CHUNK) slots[c.coefficients + i] = free;
    for (int64_t i = 0; i < c.coefficients; ++i, free += CHUNK) sums[i] = free;
    inner = free;
  }

  // f(u) of elements begin … begin + n in `out`, one pointer per coefficient, where `first` is the derivative that takes the place of f.
  void compose(int64_t begin, int64_t n, int64_t first, T* const* out) {
    const T* u = static_cast<const T*>(c.u);
    for (int64_t i = 0; i < c.coefficients; ++i) slots[i] = u + i * c.elements + begin;
    for (int64_t i = 0; i < c.products; ++i) {
      const T *a = slots[c.product[i].left], *b = slots[c.product[i].right];
      T* to = const_cast<T*>(slots[c.coefficients + i]);
      for (int64_t j = 0; j < n; ++j) to[j] = a[j] * b[j];
    }
    const T* value = static_cast<const T*>(c.derivative[first]) + begin;
    std::copy(value, value + n, out[0]);
    int64_t before = 0;
    for (int64_t i = 0; i < c.groups; ++i) {
      const ds4sci::Group& group = c.group[i];
      const T* slope = static_cast<const T*>(c.derivative[first + group.derivative]) + begin;
      const T* sum = slots[c.term[group.begin].monomial];
      if (group.end - group.begin > 1 || c.term[group.begin].factor != 1) {
        const T factor = T(c.term[group.begin].factor);
        for (int64_t j = 0; j < n; ++j) inner[j] = factor * sum[j];
        for (int64_t t = group.begin + 1; t < group.end; ++t) {
          const T more = T(c.term[t].factor), *monomial = slots[c.term[t].monomial];
          for (int64_t j = 0; j < n; ++j) inner[j] += more * monomial[j];
        }
        sum = inner;
      }
      T* total = out[group.out];
      if (group.out != before)
        for (int64_t j = 0; j < n; ++j) total[j] = slope[j] * sum[j];
      else
        for (int64_t j = 0; j < n; ++j) total[j] += slope[j] * sum[j];
      before = group.out;
    }
  }

  // The gradient of u: Σ grad_γ · f′(u)_β over α + β = γ.
  void backward(int64_t begin, int64_t n, T* const* out) {
    compose(begin, n, 1, sums.data());
    const T* grad = static_cast<const T*>(c.grad);
    for (int64_t i = 0; i < c.coefficients; ++i) std::fill_n(out[i], n, T(0));
    for (int64_t i = 0; i < c.pairs; ++i) {
      const ds4sci::Pair& pair = c.pair[i];
      const T *slope = sums[pair.second], *from = grad + pair.sum * c.elements + begin;
      T* to = out[pair.first];
      for (int64_t j = 0; j < n; ++j) to[j] += from[j] * slope[j];
    }
  }

  const ds4sci::Params& c;
  std::vector<T> memory;
  std::vector<const T*> slots;
  std::vector<T*> sums;
  T* inner;
};

template <class T>
static void run(const ds4sci::Params& c) {
  constexpr int64_t TASK = 16 * CHUNK;
  const int64_t tasks = (c.elements + TASK - 1) / TASK;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto worker = [&] {
    try {
      Chunk<T> chunk(c);
      std::vector<T*> out(c.coefficients);
      for (int64_t task; (task = next++) < tasks;)
        for (int64_t begin = task * TASK; begin < std::min(c.elements, (task + 1) * TASK); begin += CHUNK) {
          const int64_t n = std::min(CHUNK, c.elements - begin);
          for (int64_t i = 0; i < c.coefficients; ++i) out[i] = static_cast<T*>(c.out) + i * c.elements + begin;
          if (c.grad)
            chunk.backward(begin, n, out.data());
          else
            chunk.compose(begin, n, 0, out.data());
        }
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  };
  ds4sci::parallel_for(std::min(tasks, c.threads), c.gomp_parallel, worker);
  if (failed) throw std::bad_alloc();
}

}  // namespace DS4SCI_ISA
