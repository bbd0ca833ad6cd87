// Arguments of varlen attention across the C interface. Plain C types: Python fills the struct through ctypes
// (ds4sci/kernels/varlen_attention/native.py).
#pragma once

#include <cstdint>

#include "../simd/array.h"

namespace ds4sci {

struct Params {
  int64_t tokens, heads, key_heads, channels;
  int64_t first_query, queries;  // the tokens whose queries are given: rows of q, out, lse, grad_out and grad_q
  int64_t documents;
  const int64_t* doc_spans;  // [documents][2]: start and stop, ascending and disjoint
  int64_t causal;
  int64_t adds;  // whether the gradients of keys and values are added to grad_k and grad_v
  int64_t threads;
  void* gomp_parallel;  // GOMP_parallel of the OpenMP runtime that torch uses, or null
  double scale;
  Array q, k, v, out;     // strides: – – t h
  float *lse, *lse_low;   // [heads][queries]; their sum is the log-sum-exp to more than fp32; lse_low may be null
  Array grad_out, grad_q, grad_k, grad_v;
};

}  // namespace ds4sci
