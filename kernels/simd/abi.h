// Description of the structs of the C interface, exported by every library. ds4sci/kernels/native.py compares it with its ctypes
// structs when it loads a library, so that a library that was built from other sources is not called with the wrong layout.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ds4sci {

// Increase it when the meaning of an argument changes and the layout does not. ABI_VERSION in ds4sci/kernels/native.py is equal.
constexpr int64_t ABI_VERSION = 1;

// One field, "Params.scale", or a whole struct, "Params", with offset 0.
struct AbiField {
  const char* name;
  int64_t offset, size;
};

}  // namespace ds4sci

#define DS4SCI_ABI_STRUCT(S) {#S, 0, int64_t(sizeof(ds4sci::S))}
#define DS4SCI_ABI_FIELD(S, field) {#S "." #field, int64_t(offsetof(ds4sci::S, field)), int64_t(sizeof(ds4sci::S::field))}

// Defines ds4sci_abi_<instruction set>: sets *version and returns the table that is the argument, ended by a null name.
#define DS4SCI_EXPORT_ABI(table)                                                    \
  extern "C" const ds4sci::AbiField* DS4SCI_SYMBOL(ds4sci_abi)(int64_t * version) { \
    *version = ds4sci::ABI_VERSION;                                                 \
    return table;                                                                   \
  }
