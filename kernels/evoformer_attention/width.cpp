// The kernel for one instruction set. Compiled once for each, with
//   -DDS4SCI_ISA=avx2 -DDS4SCI_LANES=8 -DDS4SCI_MR=6 -mavx2 -mfma       and the like (ds4sci/kernels/native.py).
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../simd/team.h"
#include "attention.h"

namespace DS4SCI_ISA {
#include "../simd/numbers.h"
#include "../simd/vector.h"
#include "../simd/tile.h"
#include "../simd/words.h"
#include "pack.h"
#include "rows.h"
}  // namespace DS4SCI_ISA

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

// Runs the whole problem on `threads` threads. Returns 0, or 1 when memory ran out.
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
  ds4sci::on_threads(std::max<int64_t>(1, std::min(problem->threads, tasks)), problem->team, run);
  return failed;
}
