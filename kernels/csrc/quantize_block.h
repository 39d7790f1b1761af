// A block of weights as the search finds it, before its bytes are written.
#pragma once
#include <cstdint>

constexpr int kMaxBlock = 256, kMaxRuns = 16, kMaxLanes = 16;

// d and m are exact halves, q are the stored codes.
struct Block {
  float d, m;
  int8_t scales[kMaxRuns], minima[kMaxRuns];
  uint8_t q[kMaxBlock];
};
