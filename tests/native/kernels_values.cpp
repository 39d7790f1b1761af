// The kernels' results for numbers that are the same on every machine, one file for each instruction set that runs here.
// `scripts/cross_check.py` builds it for two processors and compares. It computes no input with the mathematical library,
// which may round differently on the other.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "half.h"
#include "layout.h"
#include "mrs.h"

extern "C" {
const mrs_table *mrs_table_at(int index);
int64_t mrs_packed_bytes(int type, int64_t rows, int64_t cols);
int64_t mrs_kv_block_bytes(int type, int64_t kv_heads, int64_t head_dim);
int64_t mrs_project_scratch(int64_t tokens, int64_t cols);
int64_t mrs_moe_routes(int64_t tokens, int64_t experts, int64_t used);
int64_t mrs_sampling_scratch(int64_t vocab_size, int64_t threads);
int mrs_pack(int type, const uint8_t *src, int64_t row_bytes, int64_t rows, int64_t cols, const int32_t *order, uint8_t *dst,
             mrs_pool *pool);
mrs_pool *mrs_pool_acquire(int threads);
void mrs_pool_release(mrs_pool *pool);
}

namespace {
using std::vector;
constexpr int kTables = 16;  // more than there are

struct Random {
  uint64_t state;

  uint32_t bits() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return uint32_t(state >> 32);
  }
  float uniform() { return float(bits() >> 8) * 5.9604644775390625e-8f; }  // [0, 1)
  float normal() { return uniform() + uniform() + uniform() + uniform() - 2.0f; }
  vector<float> normals(int64_t count, float scale) {
    vector<float> values(count);
    for (float &value : values) value = normal() * scale * (bits() % 50 ? 1.0f : 10.0f);
    return values;
  }
};

// Where a block of the file has its halves; the other bytes may have any value. -1: there are no more.
struct Kind {
  int type;
  const char *name;
  int halves[2];
};
const Kind kKinds[] = {
    {MRS_F32, "F32", {-1, -1}},    {MRS_F16, "F16", {0, -1}},   {MRS_BF16, "BF16", {-1, -1}}, {MRS_Q4_0, "Q4_0", {0, -1}},
    {MRS_Q4_1, "Q4_1", {0, 2}},    {MRS_Q5_0, "Q5_0", {0, -1}}, {MRS_Q5_1, "Q5_1", {0, 2}},   {MRS_Q8_0, "Q8_0", {0, -1}},
    {MRS_I8, "I8", {-1, -1}},      {MRS_Q2_K, "Q2_K", {80, 82}}, {MRS_Q3_K, "Q3_K", {108, -1}}, {MRS_Q4_K, "Q4_K", {0, 2}},
    {MRS_Q5_K, "Q5_K", {0, 2}},    {MRS_Q6_K, "Q6_K", {208, -1}},
};

// Memory whose lines are those of the cache.
struct Lines {
  uint8_t *data;
  explicit Lines(int64_t bytes) : data((uint8_t *)std::aligned_alloc(64, (bytes + 127) / 64 * 64)) {}
  ~Lines() { std::free(data); }
  Lines(const Lines &) = delete;
};

struct Matrix {
  Lines packed;
  mrs_weight weight;
  mrs_linear linear;

  Matrix(const Kind &kind, int rows, int cols, Random &random, mrs_pool *pool)
      : packed(mrs_packed_bytes(kind.type, rows, cols) + 64 * 64) {
    const mrs_layout layout = layout_of(kind.type);
    const int64_t blocks = int64_t(rows) * cols / layout.block;
    vector<uint8_t> bytes(blocks * layout.file_bytes);
    for (uint8_t &byte : bytes) byte = uint8_t(random.bits() >> 9);
    for (int64_t b = 0; b < blocks; ++b) {
      uint8_t *block = bytes.data() + b * layout.file_bytes;
      const float value = random.normal() * 0.05f, other = random.normal();
      if (kind.type == MRS_F32) std::memcpy(block, &value, 4);
      if (kind.type == MRS_BF16) std::memcpy(block, (const uint8_t *)&value + 2, 2);
      if (kind.type == MRS_I8) std::memcpy(block, &value, 4), std::memcpy(block + 4, &other, 4);
      for (int at : kind.halves) {
        const uint16_t half = float_to_half(random.normal() * 0.05f);
        if (at >= 0) std::memcpy(block + at, &half, 2);
      }
    }
    if (mrs_pack(kind.type, bytes.data(), cols / layout.block * layout.file_bytes, rows, cols, nullptr, packed.data, pool))
      std::abort();
    weight = {packed.data, nullptr, kind.type, rows, cols, 0, nullptr};
    linear = {&weight, nullptr, -1};
  }
};

class Writer {
  FILE *file;

 public:
  explicit Writer(const std::string &path) : file(std::fopen(path.c_str(), "wb")) {
    if (!file) std::perror(path.c_str()), std::exit(1);
  }
  ~Writer() {
    if (std::fclose(file)) std::abort();
  }
  // A line "name count", then so many float32.
  void write(const std::string &name, const vector<float> &values) {
    std::fprintf(file, "%s %zu\n", name.c_str(), values.size());
    std::fwrite(values.data(), 4, values.size(), file);
  }
};

mrs_step step_of(int tokens) {
  mrs_step step = {};
  step.num_tokens = step.max_tokens = tokens;
  step.num_seqs = step.max_seqs = step.max_blocks = 1;
  step.only_slot = -1;
  return step;
}

// `many`: of more rows, so that a thread gets as many panels as some sets multiply side by side.
void projections(const mrs_table &table, mrs_pool *pool, bool many, Writer &out) {
  const int rows = many ? 150 : 37;
  for (const Kind &kind : kKinds) {
    const int cols = !many ? 768 : layout_of(kind.type).block == 256 ? 512 : 288;
    Random random{uint64_t(kind.type) * 977 + 12345};
    Matrix first(kind, rows, cols, random, pool), second(kind, rows, cols, random, pool);
    const vector<float> x = random.normals(40 * cols, 1.0f), norm = random.normals(cols, 1.0f);
    Lines scratch(mrs_project_scratch(40, cols));
    for (int tokens = many ? 17 : 1; tokens <= 40; tokens += many ? 7 : 1)
      for (int epilogue = 0; epilogue < 4; ++epilogue) {
        vector<float> result(tokens * rows, 0.25f);
        mrs_project op = {};
        op.x = x.data(), op.scratch = scratch.data;
        op.members[0] = first.linear, op.members[1] = second.linear, op.outs[0] = result.data();
        op.num_members = epilogue == MRS_EPILOGUE_GATED ? 2 : 1;
        op.epilogue = epilogue, op.activation = tokens % 3, op.scale = 1.0f;
        op.outlier_threshold = epilogue == 1 ? 0.0f : epilogue == 2 ? 1e30f : 1.5f;
        if (epilogue) op.norm = {norm.data(), nullptr, 1e-5f, tokens % 2 ? MRS_NORM_RMS : MRS_NORM_LAYER};
        const mrs_step step = step_of(tokens);
        table.project((const mrs_op *)&op, &step, pool);
        out.write("project/" + std::string(kind.name) + (many ? "/many/" : "/") + std::to_string(tokens) + "/" + std::to_string(epilogue), result);
      }
    vector<float> row(cols);
    if (many) continue;
    table.unpack_row(&first.weight, rows - 1, row.data());
    out.write("unpack_row/" + std::string(kind.name), row);
  }
}

void attention(const mrs_table &table, mrs_pool *pool, Writer &out) {
  const int heads = 6, kv_heads = 2, tokens = 150, blocks = 10;
  for (int setting = 0; setting < 12; ++setting) {
    Random random{uint64_t(setting) + 77};
    const int type = setting >= 8 ? MRS_KV_Q8_0 : setting & 1 ? MRS_KV_F32 : MRS_KV_F16;
    const int dim = setting >= 8 ? 48 : 40, half = dim / 2;
    vector<float> q = random.normals(tokens * heads * dim, 1), k = random.normals(tokens * kv_heads * dim, 1);
    const vector<float> v = random.normals(tokens * kv_heads * dim, 1), rotary = random.normals(tokens * 2 * half, 1);
    const int64_t block_bytes = mrs_kv_block_bytes(type, kv_heads, dim);
    Lines kv(blocks * block_bytes);
    vector<int32_t> positions(tokens), slots(tokens), table_of_blocks(blocks);
    for (int b = 0; b < blocks; ++b) table_of_blocks[b] = b * 3 % blocks;  // in any order
    for (int t = 0; t < tokens; ++t) positions[t] = t, slots[t] = table_of_blocks[t / 16] * 16 + t % 16;
    vector<float> result(tokens * heads * dim);
    for (int begin = 0, end; begin < tokens; begin = end) {
      end = begin ? begin + 1 : tokens - 3;  // a prompt, then single tokens
      mrs_attend op = {};
      op.q = q.data() + begin * heads * dim, op.k = k.data() + begin * kv_heads * dim, op.v = v.data() + begin * kv_heads * dim;
      op.rotary = rotary.data() + begin * 2 * half, op.kv = kv.data, op.out = result.data() + begin * heads * dim;
      op.block_bytes = block_bytes, op.scale = 0.15f, op.softcap = setting & 2 ? 30.0f : 0.0f, op.window = setting & 4 ? 33 : 0;
      op.heads = heads, op.kv_heads = kv_heads, op.head_dim = dim, op.rotary_half = half, op.kv_type = type;
      mrs_step step = step_of(end - begin);
      int32_t starts[] = {0, end - begin}, lengths[] = {end};
      step.positions = positions.data() + begin, step.slot_mapping = slots.data() + begin;
      step.query_start_loc = starts, step.seq_lens = lengths, step.block_tables = table_of_blocks.data(), step.max_blocks = blocks;
      table.attend((const mrs_op *)&op, &step, pool);
    }
    out.write((type == MRS_KV_Q8_0 ? "attend/q8/" : "attend/") + std::to_string(setting), result);
  }
}

void experts(const mrs_table &table, mrs_pool *pool, Writer &out) {
  const int cols = 256, ffn = 512, count = 6, used = 2;
  for (int tokens : {1, 5, 40}) {
    Random random{uint64_t(tokens) + 5};
    vector<Matrix *> matrices;
    vector<mrs_linear> parts[3];
    Matrix router(kKinds[0], count, cols, random, pool);
    for (int part = 0; part < 3; ++part)
      for (int e = 0; e < count; ++e) {
        matrices.push_back(new Matrix(kKinds[4 + e], part == 2 ? cols : ffn, part == 2 ? ffn : cols, random, pool));
        parts[part].push_back(matrices.back()->linear);
      }
    vector<float> x = random.normals(tokens * cols, 1), normed(tokens * cols), hidden(tokens * used * ffn), outputs(tokens * used * cols);
    const vector<float> norm = random.normals(cols, 1);
    vector<int32_t> routes(mrs_moe_routes(tokens, count, used));
    Lines scratch(mrs_project_scratch(tokens * used + 8 * count, ffn));
    mrs_moe op = {};
    op.x = x.data(), op.router = router.linear, op.gate = parts[0].data(), op.up = parts[1].data(), op.down = parts[2].data();
    op.normed = normed.data(), op.hidden = hidden.data(), op.outputs = outputs.data(), op.routes = routes.data();
    op.scratch = scratch.data, op.norm = {norm.data(), nullptr, 1e-5f, MRS_NORM_RMS}, op.outlier_threshold = 1.5f;
    op.experts = count, op.used = used, op.normalize_weights = 1, op.scale = 1.0f;
    const mrs_step step = step_of(tokens);
    table.moe((const mrs_op *)&op, &step, pool);
    out.write("moe/" + std::to_string(tokens), x);
    for (Matrix *matrix : matrices) delete matrix;
  }
}

void samples(const mrs_table &table, mrs_pool *pool, Writer &out) {
  const int vocab = 5000, count = 50;
  Random random{99};
  Lines scratch(mrs_sampling_scratch(vocab, 2));
  std::memset(scratch.data, 0, mrs_sampling_scratch(vocab, 2));
  vector<float> logits = random.normals(int64_t(count) * vocab, 3), tokens;
  vector<mrs_sampling> rows(count);
  for (int i = 0; i < count; ++i) {
    rows[i] = {};
    rows[i].logits = logits.data() + int64_t(i) * vocab, rows[i].draw = random.uniform(), rows[i].temperature = 0.8;
    rows[i].top_k = i % 2 ? 40 : 2000, rows[i].top_p = 0.9, rows[i].min_p = 0.02, rows[i].repetition_penalty = 1.0f;
    rows[i].num_top = rows[i].token = -1, rows[i].vocab_size = vocab, rows[i].num_stages = 4;
    rows[i].stages[0] = MRS_STAGE_TEMPERATURE, rows[i].stages[1] = MRS_STAGE_TOP_K, rows[i].stages[2] = MRS_STAGE_TOP_P;
    rows[i].stages[3] = MRS_STAGE_MIN_P;
  }
  mrs_step step = {};
  step.sampling = rows.data(), step.sampling_scratch = scratch.data, step.num_sampling = count;
  table.sample(nullptr, &step, pool);
  for (const mrs_sampling &row : rows) tokens.push_back(float(row.token));
  out.write("sample", tokens);
}
}  // namespace

// Prints the names of the instruction sets; with a folder, writes FOLDER/NAME.values for each.
int main(int argc, char **argv) {
  mrs_pool *pool = mrs_pool_acquire(2), *alone = mrs_pool_acquire(1);
  for (int index = 0; index < kTables; ++index) {
    const mrs_table *table = mrs_table_at(index);
    if (!table) continue;
    std::puts(table->name);
    if (argc < 2) continue;
    Writer out(std::string(argv[1]) + "/" + table->name + ".values");
    projections(*table, pool, false, out);
    projections(*table, alone, true, out);
    attention(*table, pool, out);
    experts(*table, pool, out);
    samples(*table, pool, out);
  }
  mrs_pool_release(pool), mrs_pool_release(alone);
}
