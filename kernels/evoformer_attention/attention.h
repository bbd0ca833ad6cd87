// What the two sides of the C interface share. Plain C types: Python fills these structures through ctypes.
#pragma once
#include <cstdint>

namespace ds4sci {

enum Type : int64_t { FLOAT = 0, BFLOAT16 = 1, HALF = 2, BOOL = 3 };

// A strided array; the last dimension of q, k, v, gate, out and their gradients, of lse and rest has stride 1. No data = absent.
struct Array {
  void* data;
  int64_t type;
  int64_t stride[4];  // q, k, v, gate, out: b s n h · mask: b s k – · bias: b h q k · lse, rest: b s h q
};

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
