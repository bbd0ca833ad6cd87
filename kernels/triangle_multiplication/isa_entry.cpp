// The triangular multiplicative update for one instruction set (see simd/isa.h).
#include "../simd/abi.h"
#include "../simd/isa.h"
#include "backward.h"
#include "contraction.h"
#include "forward.h"
#include "params.h"

namespace DS4SCI_ISA {

template <template <class, class> class Pass, class L, class T>
static void run_pass(const Params& c, bool sums) {
  const typename Pass<L, T>::Call call(c);
  run_blocks<Pass, L, T>(call, c.outer * c.inner, c.threads, c.gomp_parallel, sums);
}

// The order is that of FUNCTIONS in ds4sci/kernels/triangle_multiplication/native.py.
template <class L, class T>
static void dispatch(int function, const Params& c) {
  switch (function) {
    case 0: return run_pass<Project, L, T>(c, false);
    case 1: return run_pass<Output, L, T>(c, false);
    case 2: return run_pass<OutputBackward, L, T>(c, true);
    case 3: return run_pass<ProjectBackward, L, T>(c, true);
  }
}

}  // namespace DS4SCI_ISA

// Applies function number `function`. Both return 0, or 1 if memory ran out.
extern "C" int DS4SCI_SYMBOL(ds4sci_triangle_multiplication)(const ds4sci::Params* params, int function) {
  using namespace DS4SCI_ISA;
  return with_dtype(params->dtype, [&](auto lanes, auto element) {
    dispatch<decltype(lanes), decltype(element)>(function, *params);
  });
}

extern "C" int DS4SCI_SYMBOL(ds4sci_triangle_contraction)(const ds4sci::Contraction* params) {
  using namespace DS4SCI_ISA;
  return with_dtype(params->dtype, [&](auto lanes, auto element) { contract<decltype(lanes), decltype(element)>(*params); });
}

static const ds4sci::AbiField ABI_FIELDS[] = {
    DS4SCI_ABI_STRUCT(Rows), DS4SCI_ABI_FIELD(Rows, data), DS4SCI_ABI_FIELD(Rows, stride),
    DS4SCI_ABI_STRUCT(Columns), DS4SCI_ABI_FIELD(Columns, data), DS4SCI_ABI_FIELD(Columns, stride),
    DS4SCI_ABI_STRUCT(Params), DS4SCI_ABI_FIELD(Params, dtype), DS4SCI_ABI_FIELD(Params, threads),
    DS4SCI_ABI_FIELD(Params, outer), DS4SCI_ABI_FIELD(Params, inner), DS4SCI_ABI_FIELD(Params, channels),
    DS4SCI_ABI_FIELD(Params, hidden), DS4SCI_ABI_FIELD(Params, eps), DS4SCI_ABI_FIELD(Params, gomp_parallel),
    DS4SCI_ABI_FIELD(Params, z), DS4SCI_ABI_FIELD(Params, grad), DS4SCI_ABI_FIELD(Params, out), DS4SCI_ABI_FIELD(Params, ab),
    DS4SCI_ABI_FIELD(Params, p), DS4SCI_ABI_FIELD(Params, grad_p), DS4SCI_ABI_FIELD(Params, mask),
    DS4SCI_ABI_FIELD(Params, weight_in), DS4SCI_ABI_FIELD(Params, weight_out), DS4SCI_ABI_FIELD(Params, weight_gate),
    DS4SCI_ABI_FIELD(Params, norm_in), DS4SCI_ABI_FIELD(Params, norm_in_bias), DS4SCI_ABI_FIELD(Params, bias_in),
    DS4SCI_ABI_FIELD(Params, norm_out), DS4SCI_ABI_FIELD(Params, norm_out_bias), DS4SCI_ABI_FIELD(Params, bias_out),
    DS4SCI_ABI_FIELD(Params, bias_gate), DS4SCI_ABI_FIELD(Params, grad_norm_in), DS4SCI_ABI_FIELD(Params, grad_norm_in_bias),
    DS4SCI_ABI_FIELD(Params, grad_weight_in), DS4SCI_ABI_FIELD(Params, grad_bias_in), DS4SCI_ABI_FIELD(Params, grad_norm_out),
    DS4SCI_ABI_FIELD(Params, grad_norm_out_bias), DS4SCI_ABI_FIELD(Params, grad_weight_out),
    DS4SCI_ABI_FIELD(Params, grad_bias_out), DS4SCI_ABI_FIELD(Params, grad_weight_gate), DS4SCI_ABI_FIELD(Params, grad_bias_gate),
    DS4SCI_ABI_STRUCT(Contraction), DS4SCI_ABI_FIELD(Contraction, dtype), DS4SCI_ABI_FIELD(Contraction, threads),
    DS4SCI_ABI_FIELD(Contraction, channels), DS4SCI_ABI_FIELD(Contraction, n), DS4SCI_ABI_FIELD(Contraction, outgoing),
    DS4SCI_ABI_FIELD(Contraction, gomp_parallel), DS4SCI_ABI_FIELD(Contraction, a), DS4SCI_ABI_FIELD(Contraction, b),
    DS4SCI_ABI_FIELD(Contraction, p), DS4SCI_ABI_FIELD(Contraction, grad_a), DS4SCI_ABI_FIELD(Contraction, grad_b),
    {nullptr, 0, 0},
};
DS4SCI_EXPORT_ABI(ABI_FIELDS)
