// INLINE: inlines a function at every call, whatever the compiler's own estimate.
#pragma once

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define INLINE static ALWAYS_INLINE

// Keeps the compiler from knowing x.
INLINE void opaque(int &x) { asm volatile("" : "+r"(x)); }

// Asks for a cache line that will be written. gcc would ask for one to read, but for processors before AVX2.
INLINE void prefetch_written(const void *p) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
  __builtin_prefetch(p, 1);
#endif
}

// Lets a thread that looks at memory again and again leave its core's units to others.
INLINE void relax() {
#if defined(__x86_64__)
  asm volatile("pause");
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
