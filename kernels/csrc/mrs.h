// The C surface of the CPU kernels: what mistralrs_kernels/cpu.py mirrors with ctypes.
//
// An op is a struct whose first field is the function that runs it; everything it needs but the step's own
// numbers was put there when the model was built. All activations are float32, row-major, one row a token.
#pragma once
#include <cstdint>

#define MRS_ABI_VERSION 1

struct mrs_pool;
struct mrs_op;

// One step of a flat batch of sequences. Arrays are int32.
struct mrs_step {
  const int32_t *tokens;        // (num_tokens)
  const int32_t *positions;     // (num_tokens)
  const int32_t *slots;         // (num_tokens) block * 16 + offset in the KV cache
  const int32_t *seq_starts;    // (num_seqs + 1) range of each sequence in the flat arrays
  const int32_t *context_lens;  // (num_seqs) tokens of the sequence when this step is done
  const int32_t *block_tables;  // (num_seqs, block_stride)
  const int32_t *logit_rows;    // (num_logits) flat indices whose logits are wanted
  const volatile int32_t *abort;  // nonzero: stop between two ops
  int32_t num_tokens, num_seqs, num_logits, block_stride;
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

enum { MRS_FINISH_STORE = 0, MRS_FINISH_ADD = 1, MRS_FINISH_GATED = 2 };
enum { MRS_ACT_SILU = 0 };

// [norm ->] quantise -> one product for each member -> store, add to what is there, or act(first) * second.
struct mrs_project {
  mrs_op op;
  const float *x;            // (tokens, cols)
  const float *norm_weight;  // (cols), or null for no norm
  uint8_t *scratch;          // mrs_project_scratch() bytes
  const mrs_weight *weights[4];
  float *outs[4];            // (tokens or logits, rows of the member)
  float norm_eps;
  int32_t num_members;
  int32_t finish;
  int32_t activation;
  int32_t terms;             // 1, or 2: a value and its remainder, each rounded to int8
  int32_t logits_only;       // nonzero: read only the rows named by step.logit_rows
};

// Rows of an embedding matrix, and the rotary cosines and sines of the step's positions.
struct mrs_embed {
  mrs_op op;
  const mrs_weight *weight;
  float *x;                 // (tokens, cols)
  const float *inv_freq;    // (rotary_dim / 2)
  float *rotary;            // (tokens, 2, rotary_half) cosines, sines
  float rotary_scale;       // factor on cosine and sine
  int32_t rotary_half;
};

// Rotary embedding of q and k, k and v into the cache, causal attention of q over it.
struct mrs_attend {
  mrs_op op;
  float *q;              // (tokens, heads * head_dim); rotated and scaled in place
  const float *k, *v;    // (tokens, kv_heads * head_dim)
  const float *rotary;   // (tokens, 2, rotary_half)
  uint8_t *kv;           // this layer's blocks
  float *out;            // (tokens, heads * head_dim)
  int64_t block_bytes;   // from one block of this layer to the next
  float scale;
  int32_t heads, kv_heads, head_dim, rotary_half;
};
