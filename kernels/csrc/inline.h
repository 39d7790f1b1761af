// INLINE: inlines a function at every call, whatever the compiler's own estimate.
#pragma once

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define INLINE static ALWAYS_INLINE

// Keeps the compiler from knowing x.
INLINE void opaque(int &x) { asm volatile("" : "+r"(x)); }
