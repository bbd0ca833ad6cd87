// The linear layer with an optional layer norm for one instruction set (see simd/isa.h).
#include "../simd/abi.h"
#include "../simd/isa.h"
#include "backward.h"
#include "forward.h"
#include "params.h"

// Sets sizes[0] and sizes[1] to the bytes of `packed` and `workspace`. Needs the sizes, and what is not null.
extern "C" void DS4SCI_SYMBOL(ds4sci_norm_linear_bytes)(const ds4sci::Params* params, int backward, int64_t* sizes) {
  using namespace DS4SCI_ISA;
  const Params& c = *params;
  with_dtype(c.dtype, [&](auto lanes, auto) {
    using L = decltype(lanes);
    Arena parameters(nullptr), common(nullptr), thread(nullptr);
    const Packed<L> packed(c, backward, parameters);
    if (backward)
      Backward<L>(c, packed, SharedSpace<L>(c, common), thread);
    else
      Forward<L>(c, packed, thread);
    sizes[0] = parameters.used();
    sizes[1] = common.used() + c.threads * thread.used();
  });
}

// Packs the parameters, for any number of calls of the same pass.
extern "C" void DS4SCI_SYMBOL(ds4sci_norm_linear_pack)(const ds4sci::Params* params, int backward) {
  using namespace DS4SCI_ISA;
  with_dtype(params->dtype, [&](auto lanes, auto) {
    Arena parameters(static_cast<char*>(params->packed));
    Packed<decltype(lanes)>(*params, backward, parameters).fill(*params);
  });
}

// Forward or backward pass.
extern "C" void DS4SCI_SYMBOL(ds4sci_norm_linear)(const ds4sci::Params* params, int backward) {
  using namespace DS4SCI_ISA;
  with_dtype(params->dtype, [&](auto lanes, auto) {
    using L = decltype(lanes);
    backward ? DS4SCI_ISA::backward<L>(*params) : forward<L>(*params);
  });
}

static const ds4sci::AbiField ABI_FIELDS[] = {
    DS4SCI_ABI_STRUCT(Matrix),
    DS4SCI_ABI_FIELD(Matrix, data),
    DS4SCI_ABI_FIELD(Matrix, dtype),
    DS4SCI_ABI_FIELD(Matrix, inner),
    DS4SCI_ABI_FIELD(Matrix, stride),
    DS4SCI_ABI_FIELD(Matrix, channel_stride),
    DS4SCI_ABI_STRUCT(Params),
    DS4SCI_ABI_FIELD(Params, dtype),
    DS4SCI_ABI_FIELD(Params, threads),
    DS4SCI_ABI_FIELD(Params, rows),
    DS4SCI_ABI_FIELD(Params, inputs),
    DS4SCI_ABI_FIELD(Params, outputs),
    DS4SCI_ABI_FIELD(Params, eps),
    DS4SCI_ABI_FIELD(Params, gomp_parallel),
    DS4SCI_ABI_FIELD(Params, weight),
    DS4SCI_ABI_FIELD(Params, norm_weight),
    DS4SCI_ABI_FIELD(Params, norm_bias),
    DS4SCI_ABI_FIELD(Params, bias),
    DS4SCI_ABI_FIELD(Params, packed),
    DS4SCI_ABI_FIELD(Params, workspace),
    DS4SCI_ABI_FIELD(Params, x),
    DS4SCI_ABI_FIELD(Params, y),
    DS4SCI_ABI_FIELD(Params, grad_x),
    DS4SCI_ABI_FIELD(Params, grad_norm_weight),
    DS4SCI_ABI_FIELD(Params, grad_norm_bias),
    DS4SCI_ABI_FIELD(Params, grad_weight),
    DS4SCI_ABI_FIELD(Params, grad_bias),
    {nullptr, 0, 0},
};
DS4SCI_EXPORT_ABI(ABI_FIELDS)
