// A block of weights between the search for its numbers and the writing of its bytes.
#pragma once
#include <cstdint>

constexpr int kMaxBlock = 256, kMaxRuns = 16, kMaxLanes = 16;

// d and m are exact halves, q are the stored codes.
struct Block {
  float d, m;
  int8_t scales[kMaxRuns], minima[kMaxRuns];
  uint8_t q[kMaxBlock];
};
