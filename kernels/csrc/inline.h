// Functions that are inlined at every call, also where the compiler would rather not.
#pragma once

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define INLINE static ALWAYS_INLINE
