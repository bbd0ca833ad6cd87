// The kernel for one instruction set. Compiled once for each, with
//   -DDS4SCI_ISA=avx2 -DDS4SCI_LANES=8 -DDS4SCI_MR=6 -mavx2 -mfma       and the like (ds4sci/kernels/native.py).
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "attention.h"

namespace DS4SCI_ISA {
#include "numbers.h"
#include "vector.h"
#include "tile.h"
#include "pack.h"
#include "rows.h"
}  // namespace DS4SCI_ISA

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

// Runs the whole problem on `threads` threads; the caller's is one of them. Returns 0, or 1 when memory ran out.
//
// They are torch's own where it has some (`team`): those wait for torch's next operation without sleeping, and would keep
// new threads from the processors.
extern "C" int JOIN(ds4sci_evoformer_attention, DS4SCI_ISA)(const ds4sci::Problem* problem, int backward) {
  std::atomic<int64_t> next{0};
  std::atomic<int> failed{0};
  auto run = [&] {
    try {
      DS4SCI_ISA::work(*problem, backward != 0, next);
    } catch (const std::bad_alloc&) {
      failed = 1;
    }
  };
  const int64_t tasks = problem->batch * problem->heads * problem->groups;
  const int64_t count = std::max<int64_t>(1, std::min(problem->threads, tasks));
  if (count > 1 && problem->team) {
    using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);
    reinterpret_cast<Team>(problem->team)([](void* all) { (*static_cast<decltype(run)*>(all))(); }, &run, unsigned(count), 0);
    return failed;
  }
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < count; ++i) {
    try {
      threads.emplace_back(run);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: those that run do all the work
    }
  }
  run();
  for (auto& thread : threads) thread.join();
  return failed;
}
