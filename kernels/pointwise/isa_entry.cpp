// The pointwise functions between matrix products, for one instruction set (see simd/isa.h).
#include <new>

#include "../simd/abi.h"
#include "../simd/isa.h"
#include "columns.h"
#include "params.h"
#include "rows.h"

namespace DS4SCI_ISA {

// The order is that of FUNCTIONS in ds4sci/kernels/pointwise/native.py.
template <class T>
static void dispatch(int function, const Params& c) {
  switch (function) {
    case 0: return run_rows<NormForward<T>>(c);
    case 1: return run_rows<NormBackward<T>>(c);
    case 2: return run_columns<NormColumns<T>>(c);
    case 3: return run_columns<NormColumnsBackward<T>>(c);
    case 4: return run_channels<Glu<T>>(c);
    case 5: return run_channels<GluBackward<T>>(c);
    case 6: return run_rows<GateForward<T>>(c);
    case 7: return run_rows<GateBackward<T>>(c);
    case 8: return run_rows<Relu<T>>(c);
    case 9: return run_rows<ReluBackward<T>>(c);
    case 10: return run_rows<Swiglu<T>>(c);
    case 11: return run_rows<SwigluBackward<T>>(c);
    case 12: return run_rows<ColumnSums<T>>(c);
  }
}

}  // namespace DS4SCI_ISA

// Applies function number `function`. Returns 0, or 1 if memory ran out.
extern "C" int DS4SCI_SYMBOL(ds4sci_pointwise)(const ds4sci::Params* params, int function) {
  using namespace DS4SCI_ISA;
  try {
    switch (params->dtype) {
      case ds4sci::FLOAT32: dispatch<float>(function, *params); break;
      case ds4sci::BFLOAT16: dispatch<BFloat16>(function, *params); break;
      default: dispatch<Half>(function, *params);
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

static const ds4sci::AbiField ABI_FIELDS[] = {
    DS4SCI_ABI_STRUCT(Tile), DS4SCI_ABI_FIELD(Tile, data), DS4SCI_ABI_FIELD(Tile, stride),
    DS4SCI_ABI_STRUCT(Params), DS4SCI_ABI_FIELD(Params, dtype), DS4SCI_ABI_FIELD(Params, threads),
    DS4SCI_ABI_FIELD(Params, gomp_parallel), DS4SCI_ABI_FIELD(Params, outer), DS4SCI_ABI_FIELD(Params, rows),
    DS4SCI_ABI_FIELD(Params, channels), DS4SCI_ABI_FIELD(Params, eps), DS4SCI_ABI_FIELD(Params, tile),
    DS4SCI_ABI_FIELD(Params, vector), DS4SCI_ABI_FIELD(Params, stats), DS4SCI_ABI_FIELD(Params, sums),
    {nullptr, 0, 0},
};
DS4SCI_EXPORT_ABI(ABI_FIELDS)
