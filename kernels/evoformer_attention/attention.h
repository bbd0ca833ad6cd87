// What the two sides of the C interface share. Plain C types: Python fills these structures through ctypes.
#pragma once
#include "../simd/array.h"

namespace ds4sci {

// The last dimension of q, k, v, gate, out and their gradients, of lse and rest has stride 1. Strides:
// q, k, v, gate, out: b s n h · mask: b s k – · bias: b h q k · lse, rest: b s h q
//
// ds4sci/kernels/evoformer_attention/native.py has the same fields in the same order.
struct Problem {
  int64_t batch, rows, queries, keys, heads, channels;
  int64_t groups;  // the rows of each (batch, head) are cut into so many tasks, whatever the thread count
  int64_t threads;
  void* team;  // GOMP_parallel of the OpenMP that torch runs on, or null
  double scale;
  Array q, k, v, mask, bias, gate, out;
  Array lse, rest;  // their sum is the exact logarithm: lse alone costs fp32 gradients half a digit; rest may be absent
  Array grad_out, grad_lse, grad_q, grad_k, grad_v, grad_gate;
  float* grad_mask;  // [b, s, h, k], or null
  float* grad_bias;  // [groups, b, h, tile of QB queries, k, QB], zeroed, or null
};

}  // namespace ds4sci
