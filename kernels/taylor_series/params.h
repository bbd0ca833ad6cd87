// Arguments of functions of Taylor series across the C interface. Plain C types: Python fills the struct through ctypes
// (ds4sci/kernels/taylor_series.py).
#pragma once

#include <cstdint>

namespace ds4sci {

// f(u)_γ = Σ f⁽ᵏ⁾ · Σ factor · monomial. Positions of coefficients come first, then those of the monomials.
struct Product { int64_t left, right; };                  // a monomial: a coefficient or an earlier monomial, times a coefficient
struct Group { int64_t out, derivative, begin, end; };    // f⁽ᵏ⁾ · Σ over terms begin … end of f(u)_out
struct Term { int64_t monomial; double factor; };
struct Pair { int64_t sum, first, second; };              // α + β = γ as positions γ, α, β

struct Params {
  int64_t threads, is_double;
  int64_t elements, coefficients, products, groups, terms, pairs;
  void* gomp_parallel;  // GOMP_parallel of the OpenMP runtime that torch uses, or null
  const Product* product;
  const Group* group;
  const Term* term;
  const Pair* pair;
  const void* u;                  // [coefficients, elements]
  const void* const* derivative;  // f, f′, … at the value of u: pointers to [elements]
  const void* grad;               // [coefficients, elements], null in the forward pass
  void* out;                      // [coefficients, elements]
};

}  // namespace ds4sci
