// Quantization: float32 rows to the blocks of a storage type, with the least squared error of the decoded weights that
// a search of bounded cost finds. All weights count alike, without an importance matrix. The search itself is
// quantize_search.h; this file has the blocks' bytes, the choice of instruction set, and the threads.
#include <atomic>
#include <cstdint>
#include <cstring>

#include "half.h"
#include "layout.h"
#include "pool.h"
#include "processor.h"
#include "quantize_block.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

#define MRS_ISA portable
#define MRS_LANES 4
#include "quantize_search.h"
#undef MRS_ISA
#undef MRS_LANES

// The same source, compiled for wider vectors.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MRS_WIDE 1
#pragma GCC push_options
#pragma GCC target("avx2")
#define MRS_ISA avx2
#define MRS_LANES 8
#include "quantize_search.h"
#undef MRS_ISA
#undef MRS_LANES
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#define MRS_ISA avx512
#define MRS_LANES 16
#include "quantize_search.h"
#undef MRS_ISA
#undef MRS_LANES
#pragma GCC pop_options
#endif

namespace {

void put_half(uint8_t *bytes, float value) {
  uint16_t half = float_to_half(value);
  bytes[0] = uint8_t(half);
  bytes[1] = uint8_t(half >> 8);
}

// The bits shift .. shift + width - 1 of `count` codes: a run of `span` codes goes to the lowest bits of `span` bytes,
// the next run above it, until these bytes are full.
INLINE void put_fields(uint8_t *bytes, const uint8_t *q, int count, int shift, int width, int span) {
  std::memset(bytes, 0, count * width / 8);
  for (int run = 0; run < count / span; ++run) {
    uint8_t *group = bytes + run * width / 8 * span;
    for (int i = 0; i < span; ++i)
      group[i] |= uint8_t((q[run * span + i] >> shift & ((1 << width) - 1)) << run * width % 8);
  }
}

// The six-bit scales and minima of Q4_K and Q5_K.
void put_scales_and_minima(uint8_t *bytes, const Block &block) {
  for (int j = 0; j < 4; ++j) {
    int scale = block.scales[j + 4], minimum = block.minima[j + 4];
    bytes[j] = uint8_t(block.scales[j] | scale >> 4 << 6);
    bytes[j + 4] = uint8_t(block.minima[j] | minimum >> 4 << 6);
    bytes[j + 8] = uint8_t((scale & 15) | (minimum & 15) << 4);
  }
}

template <int Type> void write(const Block &block, uint8_t *out) {
  constexpr bool fifth = Type == MRS_Q5_0 || Type == MRS_Q5_1 || Type == MRS_Q5_K;
  if constexpr (Type == MRS_Q4_0 || Type == MRS_Q5_0 || Type == MRS_Q4_1 || Type == MRS_Q5_1) {
    put_half(out, block.d);
    out += 2;
    if constexpr (Type == MRS_Q4_1 || Type == MRS_Q5_1) {
      put_half(out, block.m);
      out += 2;
    }
    if constexpr (fifth) put_fields(out, block.q, 32, 4, 1, 1);
    put_fields(out + (fifth ? 4 : 0), block.q, 32, 0, 4, 16);
  } else if constexpr (Type == MRS_Q8_0) {
    put_half(out, block.d);
    for (int k = 0; k < 32; ++k) out[2 + k] = uint8_t(block.q[k] - 127);
  } else if constexpr (Type == MRS_Q2_K) {
    for (int r = 0; r < 16; ++r) out[r] = uint8_t(block.scales[r] | block.minima[r] << 4);
    put_fields(out + 16, block.q, 256, 0, 2, 32);
    put_half(out + 80, block.d);
    put_half(out + 82, block.m);
  } else if constexpr (Type == MRS_Q3_K) {
    uint8_t scales[16];
    for (int r = 0; r < 16; ++r) scales[r] = uint8_t(block.scales[r] + 32);
    put_fields(out, block.q, 256, 2, 1, 32);
    put_fields(out + 32, block.q, 256, 0, 2, 32);
    put_fields(out + 96, scales, 16, 0, 4, 8);
    put_fields(out + 104, scales, 16, 4, 2, 4);
    put_half(out + 108, block.d);
  } else if constexpr (Type == MRS_Q4_K || Type == MRS_Q5_K) {
    put_half(out, block.d);
    put_half(out + 2, block.m);
    put_scales_and_minima(out + 4, block);
    if constexpr (fifth) put_fields(out + 16, block.q, 256, 4, 1, 32);
    put_fields(out + (fifth ? 48 : 16), block.q, 256, 0, 4, 32);
  } else {
    static_assert(Type == MRS_Q6_K);
    put_fields(out, block.q, 256, 0, 4, 64);
    put_fields(out + 128, block.q, 256, 4, 2, 32);
    std::memcpy(out + 192, block.scales, 16);
    put_half(out + 208, block.d);
  }
}

// The functions that quantize to one type on one instruction set.
struct Quantizer {
  bool (*search)(const float *src, int count, Block *blocks);  // up to `lanes` blocks at once
  void (*write)(const Block &block, uint8_t *out);
  int lanes;
};

// isa: as in mrs_table_at. Empty if the type, the processor or the build does not support it.
template <int Type> Quantizer quantizer_on(int isa) {
  if (isa < 0 || isa >= num_isas || !runs((enum isa)isa)) return {};
#if MRS_WIDE
  if (isa == isa_amx_int8 || isa == isa_avx512bf16 || isa == isa_avx512vnni || isa == isa_avx512)
    return {avx512::search<Type>, write<Type>, avx512::kLanes};
  if (isa == isa_avxvnni || isa == isa_avx2) return {avx2::search<Type>, write<Type>, avx2::kLanes};
#endif
  return {portable::search<Type>, write<Type>, portable::kLanes};
}

Quantizer quantizer_of(int type, int isa) {
  switch (type) {
    case MRS_Q4_0: return quantizer_on<MRS_Q4_0>(isa);
    case MRS_Q4_1: return quantizer_on<MRS_Q4_1>(isa);
    case MRS_Q5_0: return quantizer_on<MRS_Q5_0>(isa);
    case MRS_Q5_1: return quantizer_on<MRS_Q5_1>(isa);
    case MRS_Q8_0: return quantizer_on<MRS_Q8_0>(isa);
    case MRS_Q2_K: return quantizer_on<MRS_Q2_K>(isa);
    case MRS_Q3_K: return quantizer_on<MRS_Q3_K>(isa);
    case MRS_Q4_K: return quantizer_on<MRS_Q4_K>(isa);
    case MRS_Q5_K: return quantizer_on<MRS_Q5_K>(isa);
    case MRS_Q6_K: return quantizer_on<MRS_Q6_K>(isa);
    default: return {};
  }
}

bool quantize_blocks(const Quantizer &quantizer, mrs_layout layout, const float *src, int64_t count, uint8_t *dst) {
  Block blocks[kMaxLanes];
  for (int64_t at = 0; at < count; at += quantizer.lanes) {
    int live = int(count - at < quantizer.lanes ? count - at : quantizer.lanes);
    if (!quantizer.search(src + at * layout.block, live, blocks)) return false;
    for (int i = 0; i < live; ++i) quantizer.write(blocks[i], dst + (at + i) * layout.file_bytes);
  }
  return true;
}

}  // namespace

// Quantizes rows x cols weights to the blocks of the type, row after row, on one instruction set (its index is that of
// mrs_table_at). pool: null to work on the caller alone. Returns 0; -1 for a type, a width or an instruction set that
// is not there; -2 when a weight is NaN or beyond a finite half, with dst in part written.
EXPORT int mrs_quantize_on(int isa, int type, const float *src, int64_t rows, int64_t cols, uint8_t *dst,
                           mrs_pool *pool) {
  const Quantizer quantizer = quantizer_of(type, isa);
  if (!quantizer.search || rows < 0 || cols < 0 || cols % layout_of(type).block) return -1;
  const mrs_layout layout = layout_of(type);
  const int64_t blocks = rows * (cols / layout.block), per_chunk = 4 * kMaxLanes * (kMaxBlock / layout.block);
  const int64_t chunks = (blocks + per_chunk - 1) / per_chunk;
  std::atomic<bool> good{true};
  auto work = [&](int64_t chunk) {
    int64_t first = chunk * per_chunk, count = blocks - first < per_chunk ? blocks - first : per_chunk;
    if (!quantize_blocks(quantizer, layout, src + first * layout.block, count, dst + first * layout.file_bytes))
      good.store(false);
  };
  if (pool && chunks) {
    parallel_for(pool, chunks, [&](int64_t chunk) { work(chunk); });
  } else {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) work(chunk);
  }
  return good.load() ? 0 : -2;
}

// The same on the best instruction set of this processor; all give the same bytes.
EXPORT int mrs_quantize(int type, const float *src, int64_t rows, int64_t cols, uint8_t *dst, mrs_pool *pool) {
  int isa = 0;
  while (isa < isa_portable && !quantizer_of(type, isa).search) ++isa;
  return mrs_quantize_on(isa, type, src, rows, cols, dst, pool);
}
