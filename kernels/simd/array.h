// A tensor as C sees it. Plain C types: Python fills the structure through ctypes (ds4sci/kernels/arrays.py).
#pragma once
#include <cstdint>

namespace ds4sci {

enum Type : int64_t { FLOAT = 0, BFLOAT16 = 1, HALF = 2, BOOL = 3 };

// A strided array; channels, the last dimension, have stride 1. No data = absent.
struct Array {
  void* data;
  int64_t type;
  int64_t stride[4];  // rows of channels: b s n h
};

}  // namespace ds4sci
