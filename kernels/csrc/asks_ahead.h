// What the kernels have to know of the processor beside its instructions.
#pragma once
#include "inline.h"
#include <cstdint>

// Whether readers of streams from memory ask for lines ahead; where not, the processor's own prefetcher does better alone.
extern const bool mrs_asks_ahead;
// Whether the first-level data cache has 48 KB or more: room for some keys and those that come next.
extern const bool mrs_has_wide_l1;
// How far ahead, but for tiles of one or two tokens.
constexpr int64_t kBytesAhead = 16 << 10;

// Times in a row that a line from memory is asked for, so that it comes: a Zen 4 drops a request for which it has no room at that
// moment (docs/log.md).
constexpr int kTimesAsked = 3;

// Asks for a line that will be read soon: into the second-level cache, or with LOCALITY 3 into the first one too.
template <int TIMES = kTimesAsked, int LOCALITY = 2> INLINE void ask_for_line(const uint8_t *at) {
#pragma GCC unroll 3
  for (int i = 0; i < TIMES; ++i) __builtin_prefetch(at, 0, LOCALITY);
}
