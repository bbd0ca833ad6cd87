// A loop whose iterations are shared among threads, torch's own threads where possible. Plain C++: it does not depend on
// the instruction set.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace ds4sci {

// Calls `worker()` on `count` threads, one of which is the caller's; each worker takes iterations from a shared counter.
//
// `gomp_parallel` is GOMP_parallel of the OpenMP runtime that torch uses, or null. With it the work runs on torch's
// threads: they spin while they wait for torch's next operation and would keep new threads off the cores.
template <class F>
void parallel_for(int64_t count, void* gomp_parallel, F& worker) {
  if (count > 1 && gomp_parallel) {
    using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
    reinterpret_cast<GompParallel>(gomp_parallel)([](void* all) { (*static_cast<F*>(all))(); }, &worker, unsigned(count), 0);
    return;
  }
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < count; ++i) {
    try {
      threads.emplace_back([&worker] { worker(); });
    } catch (const std::system_error&) {
      break;  // no more threads available: those that run do all the work
    }
  }
  worker();
  for (auto& thread : threads) thread.join();
}

}  // namespace ds4sci
