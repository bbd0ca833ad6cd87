// The outer product mean for one instruction set (see simd/isa.h).
#include "../simd/abi.h"
#include "../simd/isa.h"
#include "params.h"
#include "products.h"

// Forward or backward pass. Returns 0, or 1 if memory ran out.
extern "C" int DS4SCI_SYMBOL(ds4sci_outer_product_mean)(const ds4sci::Params* params, int backward) {
  using namespace DS4SCI_ISA;
  return with_dtype(params->dtype, [&](auto lanes, auto element) {
    run<decltype(lanes), decltype(element)>(*params, backward);
  });
}

#define DS4SCI_FIELD(name) DS4SCI_ABI_FIELD(Params, name)
static const ds4sci::AbiField ABI_FIELDS[] = {
    DS4SCI_ABI_STRUCT(Params),   DS4SCI_FIELD(dtype),        DS4SCI_FIELD(threads),   DS4SCI_FIELD(batch),
    DS4SCI_FIELD(rows),          DS4SCI_FIELD(n_a),          DS4SCI_FIELD(n_b),       DS4SCI_FIELD(channels),
    DS4SCI_FIELD(outputs),       DS4SCI_FIELD(gomp_parallel), DS4SCI_FIELD(a),        DS4SCI_FIELD(a_channels),
    DS4SCI_FIELD(b),             DS4SCI_FIELD(b_rows),       DS4SCI_FIELD(weight),    DS4SCI_FIELD(weight_transposed),
    DS4SCI_FIELD(bias),          DS4SCI_FIELD(divisor),      DS4SCI_FIELD(z),         DS4SCI_FIELD(z_batch),
    DS4SCI_FIELD(z_i),           DS4SCI_FIELD(z_j),          DS4SCI_FIELD(grad_a),    DS4SCI_FIELD(grad_b),
    DS4SCI_FIELD(grad_weight),   DS4SCI_FIELD(grad_bias),    {nullptr, 0, 0},
};
DS4SCI_EXPORT_ABI(ABI_FIELDS)
