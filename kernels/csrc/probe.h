// What bounds the products, measured as they run: reading memory, and int8 products of operands in the first-level cache.
#pragma once
#include "mrs.h"
#include "pool.h"
#include "simd.h"

namespace MRS_ISA {

// Makes the computation of x necessary.
INLINE void keep(Vi x) {
  alignas(64) int32_t lanes[16];
  store_i(lanes, x);
  asm volatile("" : : "r"(lanes) : "memory");
}

// Reads `bytes` from `data` on, whole cache lines.
INLINE void read_lines(const uint8_t *data, int64_t bytes) {
  Vi sum[4] = {zero_i(), zero_i(), zero_i(), zero_i()};
  int64_t at = 0;
  for (; at + 256 <= bytes; at += 256)
    for (int i = 0; i < 4; ++i) sum[i] = add(sum[i], load_i(data + at + 64 * i));
  for (; at + 64 <= bytes; at += 64) sum[0] = add(sum[0], load_i(data + at));
  keep(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}

constexpr int kProbeTokens = 6;  // sums that stay in registers on every instruction set

// Computes 8 * kProbeTokens vectors of four products a lane, `rounds` times.
INLINE void multiply_bytes(int64_t rounds) {
  alignas(64) uint8_t weights[8 * 64];
  alignas(64) int8_t columns[8 * kProbeTokens * 4];
  std::memset(weights, 3, sizeof weights);
  std::memset(columns, 5, sizeof columns);
  Vi sum[kProbeTokens];
  for (int t = 0; t < kProbeTokens; ++t) sum[t] = zero_i();
  for (int64_t round = 0; round < rounds; ++round) {
    // the operands may have changed: nothing can be moved out of the loop
    asm volatile("" : : "r"(weights), "r"(columns) : "memory");
#pragma GCC unroll 8
    for (int l = 0; l < 8; ++l) {
      const Vi w = load_i(weights + 64 * l);
#pragma GCC unroll 6
      for (int t = 0; t < kProbeTokens; ++t) {
        int32_t four;
        std::memcpy(&four, columns + (l * kProbeTokens + t) * 4, 4);
        sum[t] = dot4<7>(sum[t], w, set_i(four));
      }
    }
  }
  for (int t = 1; t < kProbeTokens; ++t) sum[0] = add(sum[0], sum[t]);
  keep(sum[0]);
}

int64_t probe(const uint8_t *data, int64_t bytes, int64_t rounds, mrs_pool *pool) {
  const int64_t threads = mrs_pool_size(pool), parts = 2 * threads, part = (bytes / parts + 63) / 64 * 64;
  if (bytes)
    parallel_for(pool, parts, [&](int64_t i) {
      const int64_t from = i * part, left = bytes - from;
      if (left > 0) read_lines(data + from, left < part ? left : part);
    });
  if (rounds) parallel_for(pool, threads, [&](int64_t) { multiply_bytes(rounds); });
  return rounds * threads * 8 * kProbeTokens * 64;
}

}  // namespace MRS_ISA
