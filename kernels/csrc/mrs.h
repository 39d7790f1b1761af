// The C surface of the CPU kernels: what mistralrs_kernels/cpu.py mirrors with ctypes.
//
// An op is a struct whose first field is the function that runs it; everything it needs but the step's own
// numbers was put there when the model was built. All activations are float32, row-major, one row a token.
#pragma once
#include <cstdint>

#define MRS_ABI_VERSION 7

struct mrs_pool;
struct mrs_op;

// One step of a flat batch of sequences. Arrays are int32. A KV group is the layers with the same window; they share slots
// and block tables.
struct mrs_step {
  const int32_t *tokens;        // (num_tokens)
  const int32_t *positions;     // (num_tokens)
  const int32_t *slot_mapping;         // (groups, max_tokens) block * 16 + offset in the KV cache
  const int32_t *query_start_loc;    // (num_seqs + 1) range of each sequence in the flat arrays
  const int32_t *seq_lens;  // (num_seqs) tokens of the sequence when this step is done
  const int32_t *block_tables;  // (groups, max_seqs, max_blocks); what lies wholly before the window is not read
  const int32_t *logits_indices;    // (num_logits) flat indices whose logits are wanted
  const volatile int32_t *cancel_flag;  // nonzero: stop between two ops
  int32_t num_tokens, num_seqs, num_logits;
  int32_t max_tokens, max_seqs, max_blocks;  // strides of the arrays
};

typedef void (*mrs_run_fn)(const mrs_op *op, const mrs_step *step, mrs_pool *pool);

struct mrs_op {
  mrs_run_fn run;
};

// A packed matrix: panels of 16 rows, see formats.h.
struct mrs_weight {
  const uint8_t *data;
  const float *bias;  // (rows) or null
  int32_t type;       // ggml id
  int32_t rows, cols;
};

enum { MRS_NORM_NONE = 0, MRS_NORM_RMS = 1, MRS_NORM_LAYER = 2 };
enum { MRS_EPILOGUE_STORE = 0, MRS_EPILOGUE_ADD = 1, MRS_EPILOGUE_GATED = 2, MRS_EPILOGUE_ACTIVATE = 3 };
enum { MRS_ACT_SILU = 0, MRS_ACT_GELU_TANH = 1, MRS_ACT_GELU = 2 };

struct mrs_norm {
  const float *weight;  // (cols)
  const float *bias;    // (cols) or null
  float eps;
  int32_t kind;
};

// [norm ->] quantize -> one product for each member -> store, add to what is there, act(first) * second, or act.
struct mrs_project {
  mrs_op op;
  const float *x;            // (tokens, cols)
  uint8_t *scratch;          // mrs_project_scratch() bytes
  const mrs_weight *weights[4];
  float *outs[4];            // (tokens or logits, rows of the member)
  mrs_norm norm;
  float softcap;             // outputs become softcap * tanh(output / softcap); 0: they do not
  int32_t num_members;
  int32_t epilogue;
  int32_t activation;
  float outlier_threshold;        // 32 columns whose largest value is above this many times a row's average of these are
                             // rounded to two int8 terms, a value and its remainder; the others to one
  int32_t logits_only;       // nonzero: read only the rows named by step.logits_indices
  float scale;               // factor on the outputs, before the soft cap and before they are added
};

// The rotary cosines and sines of the step's positions.
struct mrs_rotary {
  const float *inv_freq;  // (half)
  float *table;           // (tokens, 2, half) cosines, sines
  float scale;            // factor on both
  int32_t half;           // 0: there is no such table
};

// Rows of an embedding matrix, and the step's rotary tables.
struct mrs_embed {
  mrs_op op;
  const mrs_weight *weight;
  float *x;                // (tokens, cols)
  mrs_rotary rotary[2];
  float scale;             // factor on the rows
  int32_t padding;
};

// x += norm(y), row by row.
struct mrs_add_norm {
  mrs_op op;
  const float *y;  // (tokens, cols)
  float *x;        // (tokens, cols)
  mrs_norm norm;
  int64_t cols;
};

// Rotary embedding of q and k, k and v into the cache, causal attention of q over it.
struct mrs_attend {
  mrs_op op;
  float *q;              // (tokens, heads * head_dim); normalized, rotated and scaled in place
  float *k;              // (tokens, kv_heads * head_dim); normalized in place where the norm spans all heads
  const float *v;        // (tokens, kv_heads * head_dim)
  const float *rotary;   // (tokens, 2, rotary_half)
  uint8_t *kv;           // this layer's blocks
  float *out;            // (tokens, heads * head_dim)
  const float *q_norm, *k_norm;  // RMS norms before the rotation, (head_dim) or all heads of it, or null
  int64_t block_bytes;   // from one block of this layer to the next
  float norm_eps;
  float scale;
  float softcap;         // scores become softcap * tanh(score / softcap); 0: they do not
  int32_t window;        // a position sees itself and this many - 1 before it; 0: all
  int32_t heads, kv_heads, head_dim, rotary_half;
  int32_t kv_f32;       // nonzero: the cache holds float32
  int32_t group;         // the layer's KV group
  int32_t full_norms;    // nonzero: q_norm and k_norm span all heads; 0: each head is normalized by itself
  float temperature_beta;      // queries are multiplied by 1 + beta * log(1 + position / period), rounded down; 0: they are not
  int32_t temperature_period;
};

// A mixture of experts: x += sum over the chosen experts of weight * down(act(gate(norm(x))) * up(norm(x))).
// The weights are the softmax over all experts of the router's outputs, of the chosen ones.
struct mrs_moe {
  mrs_op op;
  float *x;                     // (tokens, cols)
  const mrs_weight *router;     // (experts, cols)
  const mrs_weight *gate, *up, *down;  // arrays of one weight for each expert
  float *normed;                // (tokens, cols)
  float *hidden;                // (tokens * used, ffn)
  float *outputs;               // (tokens * used, cols)
  int32_t *routes;              // mrs_moe_routes() int32
  uint8_t *scratch;             // mrs_project_scratch(tokens * used + 8 * experts, max(cols, ffn)) bytes
  mrs_norm norm;
  float outlier_threshold;           // as in mrs_project, for gate, up and down
  int32_t experts, used, activation;
  int32_t normalize_weights;    // nonzero: the weights are divided by their sum
  float scale;                  // factor on the sum before it is added
};
