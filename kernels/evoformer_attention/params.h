// Arguments of Evoformer attention across the C interface. Plain C types: Python fills the struct through ctypes
// (ds4sci/kernels/evoformer_attention/native.py).
#pragma once

#include <cstdint>

#include "../simd/array.h"

namespace ds4sci {

// The last dimension of q, k, v, gate, out and their gradients, and of lse and lse_low, has stride 1. Strides:
// q, k, v, gate, out: b s n h · mask: b s k – · bias: b h q k · lse, lse_low: b s h q
struct Params {
  int64_t batch, rows, queries, keys, heads, channels;
  int64_t groups;  // tasks into which the rows of each (batch, head) are split, independent of the number of threads
  int64_t threads;
  void* gomp_parallel;  // GOMP_parallel of the OpenMP runtime that torch uses, or null
  double scale;
  Array q, k, v, mask, bias, gate, out;
  Array lse, lse_low;  // their sum is the log-sum-exp to more than fp32 (lse alone costs fp32 gradients half a digit);
                       // lse_low may be absent
  Array grad_out, grad_lse, grad_q, grad_k, grad_v, grad_gate;
  float* grad_mask;  // [b, s, h, k], or null
  float* grad_bias;  // [groups, b, h, tile of QB queries, k, QB], zero-initialized, or null
};

}  // namespace ds4sci
