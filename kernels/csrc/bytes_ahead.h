// What the kernels have to know of the processor beside its instructions.
#pragma once
#include <cstdint>

// Bytes ahead of a stream from memory for which its reader asks; 0 where the processor's own prefetcher does better alone.
extern const int64_t mrs_bytes_ahead;
