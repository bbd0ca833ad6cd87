// Arguments of the triangular multiplicative update across the C interface. Plain C types: Python fills the structs through
// ctypes (ds4sci/kernels/triangle_multiplication/native.py).
#pragma once

#include <cstdint>

#include "../simd/array.h"

namespace ds4sci {

// [outer, inner, channels] with stride 1 along the channels.
struct Rows {
  void* data;
  int64_t stride[2];
};

// [channels, outer · inner] with stride 1 along the rows.
struct Columns {
  void* data;
  int64_t stride;
};

// Everything apart from the contraction: c channels of z, h of a, b and their product p.
struct Params {
  int64_t dtype, threads, outer, inner, channels, hidden;
  double eps;
  void* gomp_parallel;  // GOMP_parallel of the OpenMP runtime that torch uses, or null
  Rows z, grad, out;
  Columns ab, p, grad_p;                                  // ab: a, then b; or their gradients
  const float* mask;                                      // of each row, or null
  const void *weight_in, *weight_out, *weight_gate;       // contiguous; rows of weight_in: a, b, the gate of a, the gate of b
  const float *norm_in, *norm_in_bias, *bias_in, *norm_out, *norm_out_bias, *bias_out, *bias_gate;  // null where absent
  // Gradients, to which the functions add; null where not requested.
  double *grad_norm_in, *grad_norm_in_bias, *grad_weight_in, *grad_bias_in, *grad_norm_out, *grad_norm_out_bias, *grad_weight_out,
      *grad_bias_out, *grad_weight_gate, *grad_bias_gate;
};

// The contraction of `channels` pairs of contiguous [n, n] matrices.
struct Contraction {
  int64_t dtype, threads, channels, n;
  int64_t outgoing;  // Σ_k a_ik b_jk, else Σ_k a_ki b_kj
  void* gomp_parallel;
  Columns a, b, p;         // p: the result, or its gradient
  Columns grad_a, grad_b;  // null in the forward pass; may be a and b
};

}  // namespace ds4sci
