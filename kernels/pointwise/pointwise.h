// What the two sides of the C interface share. Plain C types: Python fills these structures through ctypes.
#pragma once
#include <cstdint>

namespace ds4sci {

enum Type : int64_t { FLOAT = 0, BFLOAT16 = 1, HALF = 2 };

// A matrix, or some of them one after another: the last dimension has stride 1.
struct Tile {
  void* data;
  int64_t stride[2];  // of the outer dimension and of the rows, in elements
};

// One function on one tile. ds4sci/kernels/pointwise/native.py has the same fields in the same order.
struct Call {
  int64_t type;     // of the tiles
  int64_t threads;
  void* team;       // GOMP_parallel of the OpenMP that torch runs on, or null
  int64_t outer, rows, channels;  // rows of each of `outer` matrices; of a tile of columns: 1, the columns, the channels
  double eps;
  Tile tile[3];
  const float* vector[2];  // weights, biases, a mask
  float* stats[2];         // mean and rstd of each row
  double* sums[2];         // added to; null where nobody asks
};

}  // namespace ds4sci
