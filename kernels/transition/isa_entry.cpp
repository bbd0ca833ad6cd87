// The transition for one instruction set (see simd/isa.h).
#include "../simd/abi.h"
#include "../simd/isa.h"
#include "backward.h"
#include "forward.h"
#include "params.h"

namespace DS4SCI_ISA {

template <class L, class T>
static void run(const Params& c, bool backward) {
  const Layers<L, T> layers(c, backward);
  if (backward)
    run_blocks<Backward, L, T>(layers, c.rows, c.threads, c.gomp_parallel, true);
  else
    run_blocks<Forward, L, T>(layers, c.rows, c.threads, c.gomp_parallel, false);
}

}  // namespace DS4SCI_ISA

// Forward or backward pass. Returns 0, or 1 if memory ran out.
extern "C" int DS4SCI_SYMBOL(ds4sci_transition)(const ds4sci::Params* params, int backward) {
  using namespace DS4SCI_ISA;
  return with_dtype(params->dtype, [&](auto lanes, auto element) {
    run<decltype(lanes), decltype(element)>(*params, backward);
  });
}

static const ds4sci::AbiField ABI_FIELDS[] = {
    DS4SCI_ABI_STRUCT(Params),
    DS4SCI_ABI_FIELD(Params, dtype),
    DS4SCI_ABI_FIELD(Params, threads),
    DS4SCI_ABI_FIELD(Params, rows),
    DS4SCI_ABI_FIELD(Params, channels),
    DS4SCI_ABI_FIELD(Params, hidden),
    DS4SCI_ABI_FIELD(Params, swiglu),
    DS4SCI_ABI_FIELD(Params, eps),
    DS4SCI_ABI_FIELD(Params, gomp_parallel),
    DS4SCI_ABI_FIELD(Params, x),
    DS4SCI_ABI_FIELD(Params, weight_1),
    DS4SCI_ABI_FIELD(Params, weight_2),
    DS4SCI_ABI_FIELD(Params, grad),
    DS4SCI_ABI_FIELD(Params, out),
    DS4SCI_ABI_FIELD(Params, x_stride),
    DS4SCI_ABI_FIELD(Params, grad_stride),
    DS4SCI_ABI_FIELD(Params, out_stride),
    DS4SCI_ABI_FIELD(Params, norm_weight),
    DS4SCI_ABI_FIELD(Params, norm_bias),
    DS4SCI_ABI_FIELD(Params, bias_1),
    DS4SCI_ABI_FIELD(Params, bias_2),
    DS4SCI_ABI_FIELD(Params, grad_norm_weight),
    DS4SCI_ABI_FIELD(Params, grad_norm_bias),
    DS4SCI_ABI_FIELD(Params, grad_weight_1),
    DS4SCI_ABI_FIELD(Params, grad_bias_1),
    DS4SCI_ABI_FIELD(Params, grad_weight_2),
    DS4SCI_ABI_FIELD(Params, grad_bias_2),
    {nullptr, 0, 0},
};
DS4SCI_EXPORT_ABI(ABI_FIELDS)
