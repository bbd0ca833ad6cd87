// Arguments of the transition across the C interface. Plain C types: Python fills the struct through ctypes
// (ds4sci/kernels/transition/native.py).
#pragma once

#include <cstdint>

#include "../simd/array.h"

namespace ds4sci {

struct Params {
  int64_t dtype, threads, rows, channels, hidden;
  int64_t swiglu;  // 0: ReLU
  double eps;
  void* gomp_parallel;  // GOMP_parallel of the OpenMP runtime that torch uses, or null
  const void *x, *weight_1, *weight_2, *grad;  // x and grad [rows, channels]; weights contiguous
  void* out;                                   // the result, or the gradient of x
  int64_t x_stride, grad_stride, out_stride;   // of the rows, in elements
  const float *norm_weight, *norm_bias, *bias_1, *bias_2;  // null where absent
  // Gradients, to which the function adds; null where not requested. That of weight_2 is transposed, [hidden, channels].
  double *grad_norm_weight, *grad_norm_bias, *grad_weight_1, *grad_bias_1, *grad_weight_2, *grad_bias_2;
};

}  // namespace ds4sci
