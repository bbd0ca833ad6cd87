// Work on several threads: torch's own where it has some. Plain C++, no namespace of an instruction set.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace ds4sci {

// Calls `run()` on `count` threads, of which the caller's is one; `run` takes its share from a counter of its own.
//
// With `team`, GOMP_parallel of the OpenMP that torch runs on, they are torch's: those wait for torch's next operation
// without sleeping, and would keep new threads from the processors.
template <class F>
void on_threads(int64_t count, void* team, F& run) {
  if (count > 1 && team) {
    using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);
    reinterpret_cast<Team>(team)([](void* all) { (*static_cast<F*>(all))(); }, &run, unsigned(count), 0);
    return;
  }
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < count; ++i) {
    try {
      threads.emplace_back([&run] { run(); });
    } catch (const std::system_error&) {
      break;  // no more threads to be had: those that run do all the work
    }
  }
  run();
  for (auto& thread : threads) thread.join();
}

}  // namespace ds4sci
