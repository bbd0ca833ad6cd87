// Arguments of the linear layer across the C interface. Plain C types: Python fills the structs through ctypes
// (ds4sci/kernels/norm_linear.py).
#pragma once

#include <cstdint>

#include "../simd/array.h"

namespace ds4sci {

// A strided matrix [rows, channels]. Row i begins at i / inner · stride[0] + i % inner · stride[1], in elements. Where
// `channel_stride` is not 0, the matrix is channels first: rows have stride 1.
struct Matrix {
  void* data;
  int64_t dtype, inner, stride[2], channel_stride;
};

struct Params {
  int64_t dtype, threads, rows, inputs, outputs;  // dtype: of the weight
  double eps;
  void* gomp_parallel;  // GOMP_parallel of the OpenMP runtime that torch uses, or null
  const void* weight;   // [outputs, inputs], contiguous
  const float *norm_weight, *norm_bias, *bias;  // null where absent
  void *packed, *workspace;                     // memory of the sizes that ds4sci_norm_linear_bytes returns
  Matrix x, y, grad_x;                          // y: the result, or its gradient
  // Gradients of the parameters, to which the function adds; null where not requested.
  double *grad_norm_weight, *grad_norm_bias, *grad_weight, *grad_bias;
};

}  // namespace ds4sci
