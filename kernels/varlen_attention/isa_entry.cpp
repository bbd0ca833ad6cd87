// Varlen attention (attention within the documents of a packed sequence) for one instruction set (see simd/isa.h).
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "../simd/abi.h"
#include "../simd/isa.h"
#include "../simd/parallel_for.h"
#include "backward.h"
#include "forward.h"
#include "params.h"
#include "tasks.h"

namespace DS4SCI_ISA {

// Takes tasks from the shared counter `next` until none is left. Each task writes its own part of the results, so the results
// do not depend on which thread takes it.
template <class L>
static void work_with(const Params& p, const std::vector<Task>& tasks, bool backward, std::atomic<int64_t>& next) {
  std::unique_ptr<Workspace<L>> workspace;
  const int64_t count = int64_t(tasks.size()) * p.key_heads;
  for (int64_t index = next++; index < count; index = next++) {
    if (!workspace) workspace.reset(new Workspace<L>(p, tasks, backward));
    const Task& task = tasks[index / p.key_heads];
    const int64_t following = index + p.threads;  // most likely the next one of this thread
    const Prefetcher prefetcher(p, backward, task, following < count ? &tasks[following / p.key_heads] : nullptr,
                                following % p.key_heads);
    if (backward)
      backward_task(p, task, index % p.key_heads, prefetcher, *workspace);
    else
      forward_task(p, task, index % p.key_heads, prefetcher, *workspace);
  }
}

static void work(const Params& p, const std::vector<Task>& tasks, bool backward, std::atomic<int64_t>& next) {
#if defined(__AVX512BF16__)
  if (p.q.dtype == ds4sci::BFLOAT16) return work_with<Bf16Lanes>(p, tasks, backward, next);
#endif
  work_with<Fp32Lanes>(p, tasks, backward, next);
}

}  // namespace DS4SCI_ISA

// Computes the forward or the backward on `threads` threads. Returns 0, or 1 if memory ran out.
extern "C" int DS4SCI_SYMBOL(ds4sci_varlen_attention)(const ds4sci::Params* params, int backward) try {
  const std::vector<ds4sci::Task> tasks = ds4sci::make_tasks(*params, backward != 0);
  std::atomic<int64_t> next{0};
  std::atomic<int> failed{0};
  auto worker = [&] {
    try {
      DS4SCI_ISA::work(*params, tasks, backward != 0, next);
    } catch (const std::bad_alloc&) {
      failed = 1;
    }
  };
  const int64_t count = int64_t(tasks.size()) * params->key_heads;
  ds4sci::parallel_for(std::max<int64_t>(1, std::min(params->threads, count)), params->gomp_parallel, worker);
  return failed;
} catch (const std::bad_alloc&) {
  return 1;
}

static const ds4sci::AbiField ABI_FIELDS[] = {
    DS4SCI_ABI_STRUCT(Array), DS4SCI_ABI_FIELD(Array, data), DS4SCI_ABI_FIELD(Array, dtype),
    DS4SCI_ABI_FIELD(Array, stride),
    DS4SCI_ABI_STRUCT(Params), DS4SCI_ABI_FIELD(Params, tokens), DS4SCI_ABI_FIELD(Params, heads),
    DS4SCI_ABI_FIELD(Params, key_heads), DS4SCI_ABI_FIELD(Params, channels), DS4SCI_ABI_FIELD(Params, first_query),
    DS4SCI_ABI_FIELD(Params, queries), DS4SCI_ABI_FIELD(Params, documents), DS4SCI_ABI_FIELD(Params, doc_spans),
    DS4SCI_ABI_FIELD(Params, causal), DS4SCI_ABI_FIELD(Params, adds), DS4SCI_ABI_FIELD(Params, threads),
    DS4SCI_ABI_FIELD(Params, gomp_parallel), DS4SCI_ABI_FIELD(Params, scale), DS4SCI_ABI_FIELD(Params, q),
    DS4SCI_ABI_FIELD(Params, k), DS4SCI_ABI_FIELD(Params, v), DS4SCI_ABI_FIELD(Params, out),
    DS4SCI_ABI_FIELD(Params, lse), DS4SCI_ABI_FIELD(Params, lse_low), DS4SCI_ABI_FIELD(Params, grad_out),
    DS4SCI_ABI_FIELD(Params, grad_q), DS4SCI_ABI_FIELD(Params, grad_k), DS4SCI_ABI_FIELD(Params, grad_v),
    {nullptr, 0, 0},
};
DS4SCI_EXPORT_ABI(ABI_FIELDS)
