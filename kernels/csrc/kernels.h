// What each instruction set's object exports to the dispatcher.
#pragma once
#include "mrs.h"

struct mrs_table {
  const char *name;
  void (*project)(const mrs_op *, const mrs_step *, mrs_pool *);
  void (*embed)(const mrs_op *, const mrs_step *, mrs_pool *);
  void (*attend)(const mrs_op *, const mrs_step *, mrs_pool *);
  void (*add_norm)(const mrs_op *, const mrs_step *, mrs_pool *);
  void (*moe)(const mrs_op *, const mrs_step *, mrs_pool *);
  // float32 values of row `row` of a packed matrix
  void (*unpack_row)(const mrs_weight *, int64_t row, float *out);
};
