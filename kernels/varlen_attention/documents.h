// What the two sides of the C interface share. Plain C types: Python fills these structures through ctypes.
#pragma once
#include "../simd/array.h"

namespace ds4sci {

// ds4sci/kernels/varlen_attention/native.py has the same fields in the same order.
struct Packed {
  int64_t tokens, heads, key_heads, channels;
  int64_t documents;
  const int64_t* spans;  // [documents][2]: start and stop, rising and disjoint
  int64_t causal;
  int64_t threads;
  void* team;  // GOMP_parallel of the OpenMP that torch runs on, or null
  double scale;
  Array q, k, v, out;  // strides: – – t h
  float *lse, *rest;   // [heads][tokens]; their sum is the exact logarithm of the softmax's denominator; rest may be null
  Array grad_out, grad_q, grad_k, grad_v;
};

}  // namespace ds4sci
