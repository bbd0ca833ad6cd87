// The work between matrix products for one instruction set; flags as for evoformer_attention/width.cpp.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../simd/team.h"
#include "pointwise.h"

namespace DS4SCI_ISA {
using ds4sci::Call;
using ds4sci::Tile;
using ds4sci::on_threads;
#include "../simd/numbers.h"
#include "../simd/vector.h"
#include "access.h"
#include "rows.h"
#include "columns.h"

// ds4sci/kernels/pointwise/native.py has the same names in the same order.
template <class T>
static void dispatch(int function, const Call& c) {
  switch (function) {
    case 0: return run_rows<NormForward<T>>(c);
    case 1: return run_rows<NormBackward<T>>(c);
    case 2: return run_columns<NormColumns<T>>(c);
    case 3: return run_columns<NormColumnsBackward<T>>(c);
    case 4: return run_channels<Glu<T>>(c);
    case 5: return run_channels<GluBackward<T>>(c);
    case 6: return run_rows<Gated<T>>(c);
    case 7: return run_rows<GatedBackward<T>>(c);
    case 8: return run_rows<Relu<T>>(c);
    case 9: return run_rows<ReluBackward<T>>(c);
    case 10: return run_rows<Swiglu<T>>(c);
    case 11: return run_rows<SwigluBackward<T>>(c);
    case 12: return run_rows<ColumnSums<T>>(c);
  }
}
}  // namespace DS4SCI_ISA

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)

// Returns 0, or 1 when memory ran out.
extern "C" int JOIN(ds4sci_pointwise, DS4SCI_ISA)(const ds4sci::Call* call, int function) {
  using namespace DS4SCI_ISA;
  try {
    switch (call->type) {
      case ds4sci::FLOAT: dispatch<float>(function, *call); break;
      case ds4sci::BFLOAT16: dispatch<Brain>(function, *call); break;
      default: dispatch<Half>(function, *call);
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
