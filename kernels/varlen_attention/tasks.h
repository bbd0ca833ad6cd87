// What one thread does at a time, the same whatever the number of threads. Plain C++, no namespace of an instruction set.
#pragma once
#include <algorithm>
#include <vector>

#include "documents.h"

namespace ds4sci {

// Queries `from` to `to` of the document of tokens `start` to `stop`, for the heads of one group of key heads.
struct Task {
  int64_t start, stop, from, to;

  int64_t queries() const { return to - from; }
  int64_t keys(bool causal) const { return (causal ? to : stop) - start; }  // that any of the queries sees
};

// A document with more queries than this, those of a group's heads taken together, is cut into several tasks of the
// forward. Each packs its keys anew: some tile's work, beside that of the hundred of a task. The backward sums over all
// queries and is not cut.
constexpr int64_t MOST_QUERIES = 4096, LEAST_QUERIES = 256;

// The longest first, so that no thread begins with them when the others have finished.
inline std::vector<Task> tasks_of(const Packed& p, bool backward) {
  std::vector<Task> tasks;
  const int64_t cut = std::max(MOST_QUERIES * p.key_heads / p.heads / LEAST_QUERIES, int64_t(1)) * LEAST_QUERIES;
  for (int64_t i = 0; i < p.documents; ++i) {
    const int64_t start = p.spans[2 * i], stop = p.spans[2 * i + 1], most = backward ? stop - start : cut;
    for (int64_t from = start; from < stop; from += most) tasks.push_back({start, stop, from, std::min(stop, from + most)});
  }
  const bool causal = p.causal;
  std::stable_sort(tasks.begin(), tasks.end(), [causal](const Task& a, const Task& b) {
    return double(a.queries()) * double(a.keys(causal)) > double(b.queries()) * double(b.keys(causal));
  });
  return tasks;
}

}  // namespace ds4sci
