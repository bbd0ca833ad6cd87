// Functions of Taylor series for one instruction set (see simd/isa.h).
#include <new>

#include "../simd/abi.h"
#include "../simd/isa.h"
#include "params.h"
#include "series.h"

// Forward pass, or with `grad` the gradient. Returns 0, or 1 if memory ran out.
extern "C" int DS4SCI_SYMBOL(ds4sci_taylor_series)(const ds4sci::Params* params) {
  using namespace DS4SCI_ISA;
  try {
    params->is_double ? run<double>(*params) : run<float>(*params);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

static const ds4sci::AbiField ABI_FIELDS[] = {
    DS4SCI_ABI_STRUCT(Product), DS4SCI_ABI_FIELD(Product, left), DS4SCI_ABI_FIELD(Product, right),
    DS4SCI_ABI_STRUCT(Group), DS4SCI_ABI_FIELD(Group, out), DS4SCI_ABI_FIELD(Group, derivative),
    DS4SCI_ABI_FIELD(Group, begin), DS4SCI_ABI_FIELD(Group, end),
    DS4SCI_ABI_STRUCT(Term), DS4SCI_ABI_FIELD(Term, monomial), DS4SCI_ABI_FIELD(Term, factor),
    DS4SCI_ABI_STRUCT(Pair), DS4SCI_ABI_FIELD(Pair, sum), DS4SCI_ABI_FIELD(Pair, first), DS4SCI_ABI_FIELD(Pair, second),
    DS4SCI_ABI_STRUCT(Params), DS4SCI_ABI_FIELD(Params, threads), DS4SCI_ABI_FIELD(Params, is_double),
    DS4SCI_ABI_FIELD(Params, elements), DS4SCI_ABI_FIELD(Params, coefficients),
    DS4SCI_ABI_FIELD(Params, products), DS4SCI_ABI_FIELD(Params, groups), DS4SCI_ABI_FIELD(Params, terms),
    DS4SCI_ABI_FIELD(Params, pairs), DS4SCI_ABI_FIELD(Params, gomp_parallel), DS4SCI_ABI_FIELD(Params, product),
    DS4SCI_ABI_FIELD(Params, group), DS4SCI_ABI_FIELD(Params, term), DS4SCI_ABI_FIELD(Params, pair),
    DS4SCI_ABI_FIELD(Params, u), DS4SCI_ABI_FIELD(Params, derivative), DS4SCI_ABI_FIELD(Params, grad),
    DS4SCI_ABI_FIELD(Params, out), {nullptr, 0, 0},
};
DS4SCI_EXPORT_ABI(ABI_FIELDS)
