// Blocks of rows shared among threads, and sums over all rows that do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

#include "blocks.h"
#include "parallel_for.h"

namespace DS4SCI_ISA {

// Panels and rows of a block, of the same bytes for each kind of lanes.
template <class L>
constexpr int PANELS = 4 * L::PER_LANE;
template <class L>
constexpr int64_t BLOCK = PANELS<L> * PANEL;

// Memory that the next block reads. A few lines at a time are fetched into the second-level cache between products: waiting for
// them took a fifth of the time of operations with few products per row.
class Ahead {
 public:
  void clear() { count_ = at_ = row_ = line_ = 0; }

  // `rows` rows of `bytes`, `stride` bytes apart. Addresses outside of memory do no harm.
  void add(const void* base, int64_t stride, int64_t rows, int64_t bytes) {
    if (count_ < MOST) ranges_[count_++] = {static_cast<const char*>(base), stride, rows, (bytes + LINE - 1) / LINE};
  }

  // Lines of all that was added.
  int64_t lines() const {
    int64_t all = 0;
    for (int i = 0; i < count_; ++i) all += ranges_[i].rows * ranges_[i].lines;
    return all;
  }

  void step(int lines) {
    while (lines > 0 && at_ < count_) {
      const Range& range = ranges_[at_];
      const char* row = range.base + row_ * range.stride;
      const int64_t end = std::min(range.lines, line_ + lines);
      lines -= int(end - line_);
#if defined(__x86_64__)  // not the builtin: GCC removes calls of functions that only prefetch
      for (int64_t i = line_; i < end; ++i) asm volatile("prefetcht1 %0" ::"m"(row[i * LINE]));
#endif
      line_ = end;
      if (line_ < range.lines) return;
      line_ = 0;
      if (++row_ < range.rows) continue;
      row_ = 0, ++at_;
    }
  }

 private:
  static constexpr int MOST = 4;
  static constexpr int64_t LINE = 64;
  struct Range { const char* base; int64_t stride, rows, lines; };
  Range ranges_[MOST];
  int count_ = 0, at_ = 0;
  int64_t row_ = 0, line_ = 0;
};

// Creates a Pass(call, arena) for each thread and calls its block(row, rows) for all blocks of rows.
//
// Consecutive blocks are a task. With `sums`, a pass sums gradients of parameters over a task in fp32; its flush() adds them to
// the caller's fp64 sums and clears them, in the order of the tasks. Tasks depend on the number of rows only.
template <template <class, class> class Pass, class L, class T, class Call>
static void run_blocks(const Call& call, int64_t rows, int64_t threads, void* gomp_parallel, bool sums) {
  constexpr int64_t TASKS = 32, BLOCK_ROWS = BLOCK<L>, MOST = FP32_ADDITIONS * PANEL;
  const int64_t task_rows = std::min(MOST, padded((rows + TASKS - 1) / TASKS, BLOCK_ROWS));
  const int64_t tasks = (rows + task_rows - 1) / task_rows;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  Turns turns;
  auto run = [&] {
    Arena counted(nullptr);
    const Pass<L, T> sizes(call, counted);
    const std::unique_ptr<Memory> memory = make_memory(counted.used());
    if (!memory) failed = true;
    Arena arena(memory ? memory->data() : nullptr);
    Pass<L, T> pass(call, arena);
    for (int64_t task; (task = next++) < tasks;) {
      const int64_t end = std::min((task + 1) * task_rows, rows);
      for (int64_t row = task * task_rows; row < end && !failed; row += BLOCK_ROWS)
        pass.block(row, std::min(BLOCK_ROWS, end - row));
      if (sums)
        turns.in_order(task, [&] {
          if (!failed) pass.flush();
        });
    }
  };
  ds4sci::parallel_for(std::min(threads, tasks), gomp_parallel, run);
  if (failed) throw std::bad_alloc();
}

static inline int panels_of(int64_t rows) { return int((rows + PANEL - 1) / PANEL); }
static inline int rows_of_panel(int64_t rows, int p) { return int(std::min<int64_t>(PANEL, rows - int64_t(p) * PANEL)); }

// Adds a vector to sums of output o, of which there are W, one per lane: the lanes are added when the task is flushed. At most
// FP32_ADDITIONS panels are added in fp32.
static inline void add_lanes(float* sums, int64_t o, Vec x) { store(sums + o * W, load(sums + o * W) + x); }

// Adds the sums of n outputs to the caller's and clears them. The caller's place of output o is to[row(o)], none if row(o) < 0.
template <class Row>
static inline void flush_lanes(float* from, int64_t n, double* to, Row row) {
  for (int64_t o = 0; to && o < n; ++o)
    if (row(o) >= 0) to[row(o)] += double(reduce_add(load(from + o * W)));
  std::fill_n(from, n * W, 0.0f);
}

// Adds sums of n values to the caller's, unless these are null, and clears them.
static inline void flush_vector(double* from, int64_t n, double* to) {
  for (int64_t k = 0; k < n; ++k) {
    if (to) to[k] += from[k];
    from[k] = 0;
  }
}

// The same for a matrix of rows of padded(k, PANEL) values. Row o of the caller's is `row(o)`, or is skipped if that is negative.
template <class Row>
static inline void flush_matrix(float* from, int64_t n, int64_t k, double* to, Row row) {
  const int64_t width = padded(k, PANEL);
  for (int64_t o = 0; o < n; ++o) {
    const int64_t at = row(o);
    for (int64_t i = 0; to && at >= 0 && i < k; ++i) to[at * k + i] += double(from[o * width + i]);
  }
  std::fill_n(from, n * width, 0.0f);
}

}  // namespace DS4SCI_ISA
