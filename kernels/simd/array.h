// A strided tensor as the C interface passes it. Plain C types: Python fills the struct through ctypes
// (ds4sci/kernels/arrays.py).
#pragma once

#include <cstdint>

namespace ds4sci {

enum DType : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, BOOL = 3 };

// A strided array whose last dimension, the channels, has stride 1. A null `data` means that the array is absent.
struct Array {
  void* data;
  int64_t dtype;
  int64_t stride[4];  // in elements, of the leading dimensions: b s n h
};

}  // namespace ds4sci
