// The C surface of the CPU kernels, in C11 and C++17. mistralrs_kernels/cpu.py mirrors its structs with ctypes.
//
// An op is a struct that begins with the function that runs it. Its other fields are set when the model is built; only
// the step's numbers are arguments. All activations are float32, row-major, one row for each token.
#pragma once
#include <stdint.h>

#define MRS_ABI_VERSION 19

typedef struct mrs_pool mrs_pool;
typedef struct mrs_op mrs_op;
typedef struct mrs_step mrs_step;
typedef struct mrs_weight mrs_weight;
typedef struct mrs_sampling mrs_sampling;

typedef void (*mrs_run_fn)(const mrs_op *op, const mrs_step *step, mrs_pool *pool);
// Writes the float32 values of row `row` of a matrix.
typedef void (*mrs_unpack_fn)(const mrs_weight *weight, int64_t row, float *out);
// Packs panel `panel` of a matrix in the layout of its file.
typedef void (*mrs_pack_fn)(const mrs_weight *stored, int64_t panel, uint8_t *out);
// Reads `bytes` from `data` on, and computes the same int8 products on every thread `rounds` times; returns how many
// multiplications these are. Either may be 0.
typedef int64_t (*mrs_probe_fn)(const uint8_t *data, int64_t bytes, int64_t rounds, mrs_pool *pool);

enum { MRS_NORM_NONE = 0, MRS_NORM_RMS = 1, MRS_NORM_LAYER = 2 };
// Store, add to the old value, act(first) * second, or act.
enum { MRS_EPILOGUE_STORE = 0, MRS_EPILOGUE_ADD = 1, MRS_EPILOGUE_GATED = 2, MRS_EPILOGUE_ACTIVATE = 3 };
// The stages of sampling, in their default order.
enum {
  MRS_STAGE_PENALTIES = 0,
  MRS_STAGE_DRY = 1,
  MRS_STAGE_TEMPERATURE = 2,
  MRS_STAGE_TOP_K = 3,
  MRS_STAGE_TYPICAL_P = 4,
  MRS_STAGE_TOP_P = 5,
  MRS_STAGE_MIN_P = 6,
  MRS_STAGE_XTC = 7
};
// How the KV cache stores a value.
enum { MRS_KV_F16 = 0, MRS_KV_F32 = 1, MRS_KV_BF16 = 2, MRS_KV_Q8_0 = 3 };
enum { MRS_ACT_SILU = 0, MRS_ACT_GELU_TANH = 1, MRS_ACT_GELU = 2 };

#define STRUCT(name) typedef struct name name; struct name {
#define FIELD(type, name) type name;
#define ARRAY(type, name, count) type name[count];
#define END(name) };
#include "structs.def"

// The layout of a struct of structs.def in the compiled library.
typedef struct mrs_field {
  const char *name;
  int32_t offset, bytes;
  int32_t kind;  // 'P' pointer, 'i' int32, 'l' int64, 'f' float32, 'd' float64, 's' struct; for an array the kind of its items
} mrs_field;

typedef struct mrs_struct {
  const char *name;
  const mrs_field *fields;
  int32_t num_fields, bytes;
} mrs_struct;

#ifdef __cplusplus
// Packs the panels `begin` to `end` of a matrix in the layout of its file, whose first panel goes to `dst`.
void mrs_pack_panels(const mrs_weight *stored, int64_t begin, int64_t end, uint8_t *dst);
#endif
