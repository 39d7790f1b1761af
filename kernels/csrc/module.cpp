// Exports: versions, choice of instruction set, packing, and running ops. It is compiled for the oldest supported
// processor; newer instructions are only in the tables.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "layout.h"
#include "mrs.h"
#include "pool.h"
#include "processor.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

#define ISA(name) namespace name { extern const mrs_table table; }
#include "isas.def"

EXPORT int mrs_abi_version() { return MRS_ABI_VERSION; }

namespace {

template <class T> constexpr int32_t kind_of() {
  using Item = std::remove_all_extents_t<T>;
  if (std::is_pointer_v<Item>) return 'P';
  if (std::is_same_v<Item, int32_t>) return 'i';
  if (std::is_same_v<Item, int64_t>) return 'l';
  if (std::is_same_v<Item, float>) return 'f';
  if (std::is_same_v<Item, double>) return 'd';
  return 's';
}

template <class Struct> struct Fields;
#define STRUCT(name) template <> struct Fields<name> { using Struct = name; static constexpr mrs_field list[] = {
#define FIELD(type, name) {#name, offsetof(Struct, name), sizeof(Struct::name), kind_of<decltype(Struct::name)>()},
#define ARRAY(type, name, count) FIELD(type, name)
#define END(name) }; };
#include "structs.def"

constexpr mrs_struct kStructs[] = {
#define STRUCT(name) {#name, Fields<name>::list, sizeof(Fields<name>::list) / sizeof(mrs_field), sizeof(name)},
#define FIELD(type, name)
#define ARRAY(type, name, count)
#define END(name)
#include "structs.def"
};

}  // namespace

// The structs' fields, so that the caller can compare its mirror of them. `count` is set to the number of structs.
EXPORT const mrs_struct *mrs_structs(int32_t *count) {
  *count = sizeof(kStructs) / sizeof(mrs_struct);
  return kStructs;
}

// Tables in the order of isas.def; null where this processor or build lacks it.
EXPORT const mrs_table *mrs_table_at(int index) {
#define ISA(name) \
  if constexpr (MRS_HAVE_##name) \
    if (index == isa_##name && runs(isa_##name)) return &name::table;
#include "isas.def"
  return nullptr;
}

EXPORT int64_t mrs_packed_bytes(int type, int64_t rows, int64_t cols) {
  if (type < 0 || type >= MRS_TYPES || !layout_of(type).block || cols % layout_of(type).block) return -1;
  return (rows + 15) / 16 * view_of(type, cols).bytes;
}

// Bytes of activation scratch that a project op needs for `tokens` rows of `cols`.
EXPORT int64_t mrs_project_scratch(int64_t tokens, int64_t cols) {
  return (tokens + 7) / 8 * (activation_bytes(cols) + 48 * cols + 144) + 4096;
}

// Bytes of a block of the KV cache, for one layer; -1 for a type that there is not.
EXPORT int64_t mrs_kv_block_bytes(int type, int64_t kv_heads, int64_t head_dim) {
  const int64_t wide = (head_dim + 15) / 16 * 16, even = (head_dim + 1) / 2 * 2;
  switch (type) {
    case MRS_KV_F16: return kv_heads * (head_dim + wide) * 16 * 2;
    case MRS_KV_F32: return kv_heads * (head_dim + wide) * 16 * 4;
    case MRS_KV_BF16: return kv_heads * (even + wide) * 16 * 2;
  }
  return -1;
}

// Bytes of scratch with which threads share the computation of a few tokens, each with `positions` keys: the results of
// 256 keys for 32 query rows, see Tiles in attention.h.
EXPORT int64_t mrs_attend_scratch(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t positions) {
  const int64_t wide = (head_dim + 15) / 16 * 16, tokens = 4, parts = (heads / kv_heads + 31) / 32;
  return tokens * kv_heads * parts * (positions / 256 + 1) * 32 * (wide + 2) * 4;
}

// The number of int32 that a mixture of experts needs to sort its tokens: the parts of Routes in moe.h.
EXPORT int64_t mrs_moe_routes(int64_t tokens, int64_t experts, int64_t used) {
  return 4 * tokens * used + 4 * experts + 3;
}

// Bytes of scratch that sampling needs on `threads` threads.
EXPORT int64_t mrs_sampling_scratch(int64_t vocab_size, int64_t threads) {
  return threads * sampling_scratch(vocab_size);
}

EXPORT void mrs_run(const mrs_op *const *ops, int64_t count, const mrs_step *step, mrs_pool *pool) {
  for (int64_t i = 0; i < count; ++i) {
    if (step->cancel_flag && __atomic_load_n(step->cancel_flag, __ATOMIC_RELAXED)) return;  // set from another thread
    ops[i]->run(ops[i], step, pool);
  }
}

namespace {

inline void put(uint8_t *line, int row, const uint8_t *dword) { std::memcpy(line + 4 * row, dword, 4); }

// Copies a run of dwords of one row to the same place of successive cache lines.
inline void put_lines(uint8_t *lines, int row, const uint8_t *bytes, int count) {
  for (int i = 0; i < count; ++i) put(lines + 64 * i, row, bytes + 4 * i);
}

inline void put_half(uint8_t *halves, int row, const uint8_t *half) { std::memcpy(halves + 2 * row, half, 2); }

void fifth_bits(uint8_t *line, int row, const uint8_t *qh) {
  uint32_t bits;
  std::memcpy(&bits, qh, 4);
  uint8_t out[4] = {0, 0, 0, 0};
  for (int k = 0; k < 32; ++k) out[k % 4] |= uint8_t((bits >> k & 1) << (k / 4));
  put(line, row, out);
}

void pack_row_block(int type, const uint8_t *src, int row, uint8_t *scales, uint8_t *quants) {
  switch (type) {
    case MRS_F32: std::memcpy(quants + 4 * row, src, 4); break;
    case MRS_F16:
    case MRS_BF16: std::memcpy(quants + 2 * row, src, 2); break;
    case MRS_Q4_0:
      put_half(scales, row, src);
      put_lines(quants, row, src + 2, 4);
      break;
    case MRS_Q4_1:
      put_half(scales, row, src);
      put_half(scales + 32, row, src + 2);
      put_lines(quants, row, src + 4, 4);
      break;
    case MRS_Q5_0:
      put_half(scales, row, src);
      fifth_bits(quants, row, src + 2);
      put_lines(quants + 64, row, src + 6, 4);
      break;
    case MRS_Q5_1:
      put_half(scales, row, src);
      put_half(scales + 32, row, src + 2);
      fifth_bits(quants, row, src + 4);
      put_lines(quants + 64, row, src + 8, 4);
      break;
    case MRS_Q8_0: {
      put_half(scales, row, src);
      uint8_t bytes[32];
      for (int i = 0; i < 32; ++i) bytes[i] = src[2 + i] ^ 0x80;  // unsigned, offset 128
      put_lines(quants, row, bytes, 8);
      break;
    }
    case MRS_I8: {
      put(scales, row, src);
      put(scales + 64, row, src + 4);
      uint8_t bytes[32];
      for (int i = 0; i < 32; ++i) bytes[i] = src[8 + i] ^ 0x80;
      put_lines(quants, row, bytes, 8);
      break;
    }
    case MRS_Q2_K:
      put_half(scales, row, src + 80);
      put_half(scales + 32, row, src + 82);
      put_lines(scales + 64, row, src, 4);
      put_lines(quants, row, src + 16, 16);
      break;
    case MRS_Q3_K:
      put_half(scales, row, src + 108);
      put_lines(scales + 32, row, src + 96, 3);
      put_lines(quants, row, src, 8);
      put_lines(quants + 512, row, src + 32, 16);
      break;
    case MRS_Q4_K:
      put_half(scales, row, src);
      put_half(scales + 32, row, src + 2);
      put_lines(scales + 64, row, src + 4, 3);
      put_lines(quants, row, src + 16, 32);
      break;
    case MRS_Q5_K:
      put_half(scales, row, src);
      put_half(scales + 32, row, src + 2);
      put_lines(scales + 64, row, src + 4, 3);
      put_lines(quants, row, src + 16, 8);
      put_lines(quants + 512, row, src + 48, 32);
      break;
    case MRS_Q6_K:
      put_half(scales, row, src + 208);
      for (int j = 0; j < 16; ++j) quants[16 * j + row] = src[192 + j];
      for (int half = 0; half < 2; ++half) {
        for (int q = 0; q < 8; ++q) {
          uint8_t *lines = quants + 256 + 192 * (8 * half + q);
          put(lines, row, src + 128 + 32 * half + 4 * q);
          put(lines + 64, row, src + 64 * half + 4 * q);
          put(lines + 128, row, src + 64 * half + 32 + 4 * q);
        }
      }
      break;
  }
}

}  // namespace

// Packs rows x cols of the file's blocks into panels. order: the file's row for each packed row, or null. Returns 0, or -1
// for a type or a width that has no layout.
EXPORT int mrs_pack(int type, const uint8_t *src, int64_t row_bytes, int64_t rows, int64_t cols, const int32_t *order,
                    uint8_t *dst, mrs_pool *pool) {
  if (mrs_packed_bytes(type, rows, cols) < 0) return -1;
  mrs_layout layout = layout_of(type);
  panel_view view = view_of(type, cols);
  int64_t panels = (rows + 15) / 16;
  parallel_for(pool, panels, [&](int64_t panel) {
    uint8_t *out = dst + panel * view.bytes;
    int64_t live = std::min<int64_t>(16, rows - panel * 16);
    if (live < 16) std::memset(out, 0, view.bytes);
    for (int64_t b = 0; b < view.blocks; ++b) {
      const panel_block at = view.block(b);
      for (int row = 0; row < live; ++row) {
        int64_t from = order ? order[panel * 16 + row] : panel * 16 + row;
        pack_row_block(type, src + from * row_bytes + b * layout.file_bytes, row, out + at.scales, out + at.quants);
      }
    }
  });
  return 0;
}
