// Tasks: the units of work that threads take. They depend on the problem only, not on the number of threads. Plain C++: they
// do not depend on the instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "params.h"

namespace ds4sci {

// Queries [query_begin, query_end) of the document of tokens [start, stop), for the heads of one group of key heads.
struct Task {
  int64_t start, stop, query_begin, query_end;

  int64_t queries() const { return query_end - query_begin; }
  int64_t keys(bool causal) const { return (causal ? query_end : stop) - start; }  // that at least one query attends to
};

// A document whose queries, times the heads of a group, exceed MAX_TASK_QUERIES is split into several tasks of the forward.
// Each task packs its keys again, which costs as much as one tile in about a hundred. The backward sums over all queries of
// a document that are given, and is not split.
constexpr int64_t MAX_TASK_QUERIES = 4096, MIN_TASK_QUERIES = 256;

// The tasks of all documents, largest first, so that no thread starts a large one when the others have finished.
inline std::vector<Task> make_tasks(const Params& p, bool backward) {
  std::vector<Task> tasks;
  const int64_t split = std::max(MAX_TASK_QUERIES * p.key_heads / p.heads / MIN_TASK_QUERIES, int64_t(1)) * MIN_TASK_QUERIES;
  for (int64_t i = 0; i < p.documents; ++i) {
    const int64_t start = p.doc_spans[2 * i], stop = p.doc_spans[2 * i + 1];
    const int64_t first = std::max(start, p.first_query), last = std::min(stop, p.first_query + p.queries);
    const int64_t step = backward ? std::max(last - first, int64_t(1)) : split;
    for (int64_t q = first; q < last; q += step) tasks.push_back({start, stop, q, std::min(last, q + step)});
  }
  const bool causal = p.causal;
  std::stable_sort(tasks.begin(), tasks.end(), [causal](const Task& a, const Task& b) {
    return double(a.queries()) * double(a.keys(causal)) > double(b.queries()) * double(b.keys(causal));
  });
  return tasks;
}

}  // namespace ds4sci
