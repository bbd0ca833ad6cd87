// The peak rate of multiply-adds of one core: accumulators that stay in registers.
#include <cstdint>

#include "../simd/abi.h"
#include "../simd/isa.h"

typedef float Vec __attribute__((vector_size(4 * DS4SCI_LANES)));

// steps · 12 · DS4SCI_LANES multiply-adds in fp32. Their sum is added to *sink so that the compiler keeps them all.
extern "C" void DS4SCI_SYMBOL(ds4sci_fma)(int64_t steps, float* sink) {
  constexpr int N = 12;
  Vec acc[N];
  for (int i = 0; i < N; ++i) acc[i] = Vec{} + float(i);
  Vec factor = Vec{} + 0.999999f, term = Vec{} + 1e-6f;
  for (int64_t s = 0; s < steps; ++s) {
    for (int i = 0; i < N; ++i) acc[i] = acc[i] * factor + term;
#if defined(__x86_64__)
    asm volatile("" : "+x"(factor), "+x"(term));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(factor), "+w"(term));
#endif
  }
  Vec total = Vec{};
  for (int i = 0; i < N; ++i) total += acc[i];
  for (int i = 0; i < DS4SCI_LANES; ++i) *sink += total[i];
}

#if defined(__AVX512BF16__)
// steps · 12 · 2 · DS4SCI_LANES multiply-adds of bf16, accumulated in fp32.
extern "C" void DS4SCI_SYMBOL(ds4sci_bf16)(int64_t steps, float* sink) {
  constexpr int N = 12;
  __m512 acc[N];
  for (int i = 0; i < N; ++i) acc[i] = _mm512_set1_ps(float(i));
  __m512 factor = _mm512_set1_ps(0.5f), term = _mm512_set1_ps(1e-6f);
  for (int64_t s = 0; s < steps; ++s) {
    for (int i = 0; i < N; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], __m512bh(factor), __m512bh(term));
    asm volatile("" : "+x"(factor), "+x"(term));
  }
  for (int i = 0; i < N; ++i) *sink += _mm512_reduce_add_ps(acc[i]);
}
#endif

static const ds4sci::AbiField ABI_FIELDS[] = {{nullptr, 0, 0}};  // no struct
DS4SCI_EXPORT_ABI(ABI_FIELDS)
