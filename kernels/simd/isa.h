// The instruction set that a translation unit is compiled for, and the macros that depend on it.
//
// An isa_entry.cpp is compiled once per instruction set with
//   -DDS4SCI_ISA=avx2 -DDS4SCI_LANES=8 -DDS4SCI_MR=6 -mavx2 -mfma        and so on, see ISAS in ds4sci/kernels/native.py.
// Everything that depends on the instruction set is in the namespace of that name, so that several can be in one process.
#pragma once

#if !defined(DS4SCI_ISA) || !defined(DS4SCI_LANES) || !defined(DS4SCI_MR)
#error "define DS4SCI_ISA, DS4SCI_LANES and DS4SCI_MR; compile_flags.txt has the flags of the baseline instruction set"
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__clang__)
#define DS4SCI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DS4SCI_UNROLL _Pragma("GCC unroll 32")
#endif

// DS4SCI_SYMBOL(name) is name_<instruction set>: the exported functions of different builds do not collide.
#define DS4SCI_JOIN_(a, b) a##_##b
#define DS4SCI_JOIN(a, b) DS4SCI_JOIN_(a, b)
#define DS4SCI_SYMBOL(name) DS4SCI_JOIN(name, DS4SCI_ISA)
