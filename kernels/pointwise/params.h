// Arguments of the pointwise functions across the C interface. Plain C types: Python fills the structs through ctypes
// (ds4sci/kernels/pointwise/native.py).
#pragma once

#include <cstdint>

#include "../simd/array.h"

namespace ds4sci {

// One matrix or a batch of matrices whose last dimension has stride 1.
struct Tile {
  void* data;
  int64_t stride[2];  // of the outer dimension and of the rows, in elements
};

// One function applied to one tile.
struct Params {
  int64_t dtype;  // of the tiles
  int64_t threads;
  void* gomp_parallel;            // GOMP_parallel of the OpenMP runtime that torch uses, or null
  int64_t outer, rows, channels;  // `outer` matrices of [rows, channels]; a tile of columns: 1, columns, channels
  double eps;
  Tile tile[3];
  const float* vector[2];  // weight, bias, mask
  float* stats[2];         // mean and rstd of each row
  double* sums[2];         // gradients of the vectors, accumulated; null where not requested
};

}  // namespace ds4sci
