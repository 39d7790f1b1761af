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

// Bytes of a block of the KV cache, for one layer; -1 for a type that there is not, and for heads that it cannot hold.
EXPORT int64_t mrs_kv_block_bytes(int type, int64_t kv_heads, int64_t head_dim) {
  const int64_t wide = (head_dim + 15) / 16 * 16, even = (head_dim + 1) / 2 * 2;
  switch (type) {
    case MRS_KV_F16: return kv_heads * (head_dim + wide) * 16 * 2;
    case MRS_KV_F32: return kv_heads * (head_dim + wide) * 16 * 4;
    case MRS_KV_BF16: return kv_heads * (even + wide) * 16 * 2;
    case MRS_KV_Q8_0: return head_dim % 16 ? -1 : kv_heads * (2 * head_dim * 16 + (head_dim + 31) / 32 * 128);
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

// Whether a flag is set, perhaps from another thread.
static bool is_set(const volatile int32_t *flag) { return flag && __atomic_load_n(flag, __ATOMIC_RELAXED); }

// Whether all rows of a step were sampled, and none of their tokens ends its sequence.
static bool goes_on(const mrs_step &step) {
  return std::all_of(step.sampling, step.sampling + step.num_sampling, [](const mrs_sampling &row) {
    return row.token >= 0 && std::find(row.ends, row.ends + row.num_ends, row.token) == row.ends + row.num_ends;
  });
}

// Whether the steps in a row are parts of one sequence's tokens.
static bool has_parts(const mrs_step &step) { return step.num_steps > 1 && step.num_tokens > step.num_seqs; }

// Turns a step into the first of its parts.
static void take_first_part(mrs_step &step) {
  step.num_tokens /= step.num_steps, step.num_logits /= step.num_steps;
  step.seq_lens[0] -= (step.num_steps - 1) * step.num_tokens;
  step.query_start_loc[1] = step.num_tokens;
}

// Whether the tokens behind those of a part, which are drafts, are the ones that were sampled.
static bool is_right(const mrs_step &part) {
  for (int64_t i = 0; i < part.num_tokens; ++i)
    if (part.sampling[i].token != part.tokens[i + 1]) return false;
  return true;
}

static void take_next_part(mrs_step &part) {
  part.tokens += part.num_tokens, part.positions += part.num_tokens, part.slot_mapping += part.num_tokens;
  if (part.use_start) part.use_start += part.num_tokens;
  part.seq_lens[0] += part.num_tokens;
  part.sampling += part.num_sampling;
}

// Turns a step into the one behind it, which computes the tokens that were sampled.
static void advance(mrs_step &step) {
  for (int64_t s = 0; s < step.num_sampling; ++s) {
    const mrs_sampling &row = step.sampling[s];
    const int32_t position = ++step.positions[s];
    if (row.appended) *row.appended = row.token;
    step.tokens[s] = row.token;
    step.seq_lens[s] = position + 1;
    for (int64_t group = 0; group < step.num_groups; ++group) {
      const int32_t *table = step.block_tables + (group * step.max_seqs + s) * step.max_blocks;
      step.slot_mapping[group * step.max_tokens + s] = table[position / 16] * 16 + position % 16;
    }
  }
  step.sampling += step.num_sampling;
}

EXPORT void mrs_run(const mrs_op *const *ops, int64_t count, const mrs_step *first, mrs_pool *pool) {
  mrs_step step = *first;
  const bool in_parts = has_parts(step);
  if (in_parts) take_first_part(step);
  for (int64_t left = step.num_steps;; in_parts ? take_next_part(step) : advance(step)) {
    for (int64_t i = 0; i < count; ++i) {
      if (is_set(step.cancel_flag)) return;
      ops[i]->run(ops[i], &step, pool);
    }
    if (--left <= 0 || is_set(step.wait_flag) || !goes_on(step) || (in_parts && !is_right(step))) return;
  }
}

void mrs_pack_panels(const mrs_weight *stored, int64_t begin, int64_t end, uint8_t *dst) {
  static const mrs_table *const table = [] {
    int isa = 0;
    while (!mrs_table_at(isa)) ++isa;  // the portable set runs on every processor
    return mrs_table_at(isa);
  }();
  const int64_t bytes = view_of(stored->type, stored->cols).bytes;
  for (int64_t panel = begin; panel < end; ++panel) table->pack_panel(stored, panel, dst + panel * bytes);
}

// Packs rows x cols of the file's blocks into panels. order: the file's row for each packed row, or null. Returns 0, or -1
// for a type or a width that has no layout.
EXPORT int mrs_pack(int type, const uint8_t *src, int64_t row_bytes, int64_t rows, int64_t cols, const int32_t *order,
                    uint8_t *dst, mrs_pool *pool) {
  if (mrs_packed_bytes(type, rows, cols) < 0) return -1;
  const mrs_weight stored = {src, nullptr, type, int32_t(rows), int32_t(cols), row_bytes, order};
  parallel_for(pool, (rows + 15) / 16, [&](int64_t panel) { mrs_pack_panels(&stored, panel, panel + 1, dst); });
  return 0;
}
