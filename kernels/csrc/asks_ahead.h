// What the kernels have to know of the processor beside its instructions.
#pragma once
#include <cstdint>

// Whether readers of streams from memory ask for lines ahead; where not, the processor's own prefetcher does better alone.
extern const bool mrs_asks_ahead;
// Whether the first-level data cache has 48 KB or more: room for some keys and those that come next.
extern const bool mrs_has_wide_l1;
// How far ahead, but for tiles of one or two tokens.
constexpr int64_t kBytesAhead = 16 << 10;
