// The kernel for one instruction set. Compiled once for each, with
//   -DDS4SCI_ISA=avx2 -DDS4SCI_LANES=8 -DDS4SCI_MR=6 -mavx2 -mfma       and the like (ds4sci/kernels/native.py).
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../simd/team.h"
#include "documents.h"
#include "tasks.h"

namespace DS4SCI_ISA {
#include "../simd/numbers.h"
#include "../simd/vector.h"
#include "../simd/tile.h"
#include "../simd/words.h"
#include "pack.h"
#include "forward.h"
#include "backward.h"

// Tasks are taken from a shared counter; each writes its own part of the results, so who took it does not matter.
template <class N>
static void work_with(const Packed& p, const std::vector<Task>& tasks, bool backward, std::atomic<int64_t>& next) {
  std::unique_ptr<Scratch<N>> scratch;
  const int64_t count = int64_t(tasks.size()) * p.key_heads;
  for (int64_t turn = next++; turn < count; turn = next++) {
    if (!scratch) scratch.reset(new Scratch<N>(p, tasks, backward));
    const Task& task = tasks[turn / p.key_heads];
    const int64_t then = turn + p.threads;  // most likely this thread's next
    const Ahead ahead(p, backward, task, then < count ? &tasks[then / p.key_heads] : nullptr, then % p.key_heads);
    if (backward)
      backward_task(p, task, turn % p.key_heads, ahead, *scratch);
    else
      forward_task(p, task, turn % p.key_heads, ahead, *scratch);
  }
}

static void work(const Packed& p, const std::vector<Task>& tasks, bool backward, std::atomic<int64_t>& next) {
#if defined(__AVX512BF16__)
  if (p.q.type == ds4sci::BFLOAT16) return work_with<Pair>(p, tasks, backward, next);
#endif
  work_with<Single>(p, tasks, backward, next);
}
}  // namespace DS4SCI_ISA

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

// Runs the whole problem on `threads` threads. Returns 0, or 1 when memory ran out.
extern "C" int JOIN(ds4sci_attention, DS4SCI_ISA)(const ds4sci::Packed* problem, int backward) try {
  const std::vector<ds4sci::Task> tasks = ds4sci::tasks_of(*problem, backward != 0);
  std::atomic<int64_t> next{0};
  std::atomic<int> failed{0};
  auto run = [&] {
    try {
      DS4SCI_ISA::work(*problem, tasks, backward != 0, next);
    } catch (const std::bad_alloc&) {
      failed = 1;
    }
  };
  const int64_t count = int64_t(tasks.size()) * problem->key_heads;
  ds4sci::on_threads(std::max<int64_t>(1, std::min(problem->threads, count)), problem->team, run);
  return failed;
} catch (const std::bad_alloc&) {
  return 1;
}
