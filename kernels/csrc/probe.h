// What bounds the products, measured as they run: reading memory, and int8 products of operands in registers.
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

// Sums that stay in registers beside two operands: enough that none waits for the one before it. A product takes 5 cycles
// on Zen 5, which begins two in each.
#if MRS_ISA_avx512vnni || MRS_ISA_avx512
constexpr int kProbeSums = 14;
#else
constexpr int kProbeSums = 6;
#endif
constexpr int kProbeSteps = 8;

// Computes kProbeSteps * kProbeSums vectors of four products a lane, `rounds` times.
INLINE void multiply_bytes(int64_t rounds) {
  alignas(64) uint8_t weights[64];
  alignas(64) int8_t columns[64];
  std::memset(weights, 3, sizeof weights);
  std::memset(columns, 5, sizeof columns);
  Vi sum[kProbeSums];
  for (int t = 0; t < kProbeSums; ++t) sum[t] = zero_i();
  for (int64_t round = 0; round < rounds; ++round) {
    // the operands may have changed: nothing can be moved out of the loop
    asm volatile("" : : "r"(weights), "r"(columns) : "memory");
    const Vi w = load_i(weights), x = load_i(columns);
#pragma GCC unroll 8
    for (int step = 0; step < kProbeSteps; ++step)
#pragma GCC unroll 14
      for (int t = 0; t < kProbeSums; ++t) sum[t] = dot4<7>(sum[t], w, x);
  }
  for (int t = 1; t < kProbeSums; ++t) sum[0] = add(sum[0], sum[t]);
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
  return rounds * threads * kProbeSteps * kProbeSums * 64;
}

}  // namespace MRS_ISA
