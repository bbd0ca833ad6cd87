// Arguments of the outer product mean across the C interface. Plain C types: Python fills the struct through ctypes
// (ds4sci/kernels/outer_product_mean/native.py).
#pragma once

#include <cstdint>

#include "../simd/array.h"

namespace ds4sci {

// Operands are packed, [..., blocks of n][lanes of k][n of a block]: as a Weight of blocks.h (blocks of MR) or as the
// lanes of panels (blocks of PANEL). `panels`: panels of residues j. `padded`: c padded to a multiple of STEP.
struct Params {
  int64_t dtype, threads, batch, rows, n_a, n_b, channels, outputs;
  void* gomp_parallel;            // GOMP_parallel of the OpenMP runtime that torch uses, or null
  const float *a, *a_channels;    // [batch][n_a], n = channels, k = rows; the same, n = rows, k = channels
  const float* b;                 // [batch][panels][c], n = j, k = rows
  const float* b_rows;            // [batch][panels][blocks of rows][c], n = rows, k = j
  const float* weight;            // n = outputs, k = c · padded, the channel of b first
  const float* weight_transposed; // [channel of b], n = channels of a, k = outputs
  const float *bias, *divisor;    // [outputs, padded to MR]; [batch][n_a][panels · PANEL]
  void* z;                        // the result, or its gradient, [batch][n_a][n_b][outputs]
  int64_t z_batch, z_i, z_j;      // its strides in elements
  // Gradients, to which the function adds. The last two are null where not requested.
  float* grad_a;                    // [batch][n_a][blocks of rows][padded][PANEL]
  float* grad_b;                    // [batch][panels][c][rows padded to a multiple of STEP][PANEL]
  double *grad_weight, *grad_bias;  // [channel of b][padded][outputs]; [outputs]
};

}  // namespace ds4sci
