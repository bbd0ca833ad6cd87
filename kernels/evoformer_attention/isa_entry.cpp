// Evoformer attention for one instruction set (see simd/isa.h): tasks and their distribution to threads.
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

namespace DS4SCI_ISA {

// Adds `partial` to `sums` and sets it to 0; the rounding error of the addition is added to `lost` (Knuth's TwoSum).
static inline void flush_partial(std::vector<float>& partial, float* sums, std::vector<float>& lost) {
  for (size_t i = 0; i < partial.size(); i += W) {
    const Vec a = load(sums + i), b = load(&partial[i]), whole = a + b, part = whole - a;
    store(sums + i, whole);
    store(&lost[i], load(&lost[i]) + ((a - (whole - part)) + (b - part)));
    store(&partial[i], Vec{});
  }
}

// One task: a group of rows of one (batch, head), which share the packed pair bias.
template <class L>
static void run_task(const Params& p, int64_t task, bool backward, Workspace<L>& w) {
  const int64_t group = task % p.groups, h = task / p.groups % p.heads, b = task / p.groups / p.heads;
  const int64_t from = p.rows * group / p.groups, to = p.rows * (group + 1) / p.groups;
  pack_bias(p, b, h, w);
  float* grad_bias =
      p.grad_bias ? p.grad_bias + ((group * p.batch + b) * p.heads + h) * w.tiles * p.keys * QB : nullptr;
  // With many rows, the gradient of the pair bias is summed over ROWS_PER_PARTIAL rows at a time; the partial sums are added
  // with compensation.
  const bool uses_partial = grad_bias && to - from > ROWS_PER_PARTIAL;
  if (uses_partial)
    for (auto* x : {&w.bias_partial, &w.bias_lost}) x->assign(w.tiles * p.keys * QB, 0.0f);
  for (int64_t s = from; s < to; ++s) {
    if (backward)
      backward_row(p, b, s, h, s + 1 < to, uses_partial ? w.bias_partial.data() : grad_bias, w);
    else
      forward_row(p, b, s, h, s + 1 < to, w);
    if (uses_partial && ((s + 1 - from) % ROWS_PER_PARTIAL == 0 || s + 1 == to))
      flush_partial(w.bias_partial, grad_bias, w.bias_lost);
  }
  if (uses_partial)
    for (size_t i = 0; i < w.bias_lost.size(); ++i) grad_bias[i] += w.bias_lost[i];
}

// Takes tasks from the shared counter `next` until none is left. Each task writes its own part of the results, so the results
// do not depend on which thread takes it. Consecutive counts are far apart among the tasks: neighboring narrow heads share
// cache lines and should not be written at the same time.
template <class L>
static void work_with(const Params& p, bool backward, std::atomic<int64_t>& next) {
  const int64_t tasks = p.batch * p.heads * p.groups;
  const int64_t parts = std::max<int64_t>(1, std::min(p.threads, tasks)), part = (tasks + parts - 1) / parts;
  std::unique_ptr<Workspace<L>> workspace;
  for (int64_t index = next++; index < part * parts; index = next++) {
    const int64_t task = index % parts * part + index / parts;
    if (task >= tasks) continue;
    if (!workspace) workspace.reset(new Workspace<L>(p, backward));
    run_task(p, task, backward, *workspace);
  }
}

static void work(const Params& p, bool backward, std::atomic<int64_t>& next) {
#if defined(__AVX512BF16__)
  if (p.q.dtype == ds4sci::BFLOAT16) return work_with<Bf16Lanes>(p, backward, next);
#endif
  work_with<Fp32Lanes>(p, backward, next);
}

}  // namespace DS4SCI_ISA

// Computes the forward or the backward on `threads` threads. Returns 0, or 1 if memory ran out.
extern "C" int DS4SCI_SYMBOL(ds4sci_evoformer_attention)(const ds4sci::Params* params, int backward) {
  std::atomic<int64_t> next{0};
  std::atomic<int> failed{0};
  auto worker = [&] {
    try {
      DS4SCI_ISA::work(*params, backward != 0, next);
    } catch (const std::bad_alloc&) {
      failed = 1;
    }
  };
  const int64_t tasks = params->batch * params->heads * params->groups;
  ds4sci::parallel_for(std::max<int64_t>(1, std::min(params->threads, tasks)), params->gomp_parallel, worker);
  return failed;
}

static const ds4sci::AbiField ABI_FIELDS[] = {
    DS4SCI_ABI_STRUCT(Array), DS4SCI_ABI_FIELD(Array, data), DS4SCI_ABI_FIELD(Array, dtype),
    DS4SCI_ABI_FIELD(Array, stride),
    DS4SCI_ABI_STRUCT(Params), DS4SCI_ABI_FIELD(Params, batch), DS4SCI_ABI_FIELD(Params, rows),
    DS4SCI_ABI_FIELD(Params, queries), DS4SCI_ABI_FIELD(Params, keys), DS4SCI_ABI_FIELD(Params, heads),
    DS4SCI_ABI_FIELD(Params, channels), DS4SCI_ABI_FIELD(Params, groups), DS4SCI_ABI_FIELD(Params, threads),
    DS4SCI_ABI_FIELD(Params, gomp_parallel), DS4SCI_ABI_FIELD(Params, scale), DS4SCI_ABI_FIELD(Params, q),
    DS4SCI_ABI_FIELD(Params, k), DS4SCI_ABI_FIELD(Params, v), DS4SCI_ABI_FIELD(Params, mask),
    DS4SCI_ABI_FIELD(Params, bias), DS4SCI_ABI_FIELD(Params, gate), DS4SCI_ABI_FIELD(Params, out),
    DS4SCI_ABI_FIELD(Params, lse), DS4SCI_ABI_FIELD(Params, lse_low), DS4SCI_ABI_FIELD(Params, grad_out),
    DS4SCI_ABI_FIELD(Params, grad_lse), DS4SCI_ABI_FIELD(Params, grad_q), DS4SCI_ABI_FIELD(Params, grad_k),
    DS4SCI_ABI_FIELD(Params, grad_v), DS4SCI_ABI_FIELD(Params, grad_gate), DS4SCI_ABI_FIELD(Params, grad_mask),
    DS4SCI_ABI_FIELD(Params, grad_bias),
    {nullptr, 0, 0},
};
DS4SCI_EXPORT_ABI(ABI_FIELDS)
