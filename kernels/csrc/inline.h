// INLINE: inlines a function at every call, whatever the compiler's own estimate.
#pragma once

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define INLINE static ALWAYS_INLINE
