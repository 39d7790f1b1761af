// Norms and activations of rows of float32.
#pragma once
#include "mrs.h"
#include "pool.h"
#include "simd.h"

namespace MRS_ISA {

INLINE Vf sigmoid(Vf x) { return div(set_f(1.0f), add(set_f(1.0f), exp2(mul(x, set_f(-1.44269504f))))); }
INLINE Vf tanh(Vf x) { return sub(mul(set_f(2.0f), sigmoid(mul(set_f(2.0f), x))), set_f(1.0f)); }
INLINE Vf soft_cap(Vf x, float cap) { return mul(set_f(cap), tanh(div(x, set_f(cap)))); }

// The error function by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
INLINE Vf erf(Vf x) {
  Vf a = abs(x), t = div(set_f(1.0f), fma(set_f(0.3275911f), a, set_f(1.0f)));
  Vf p = set_f(1.061405429f);
  p = fma(p, t, set_f(-1.453152027f));
  p = fma(p, t, set_f(1.421413741f));
  p = fma(p, t, set_f(-0.284496736f));
  p = fma(p, t, set_f(0.254829592f));
  Vf e = exp2(mul(mul(a, a), set_f(-1.44269504f)));
  Vf y = sub(set_f(1.0f), mul(mul(p, t), e));
  return sub(mul(set_f(2.0f), zero_below(x, zero_f(), y)), y);  // the sign of x
}

INLINE Vf activate(int kind, Vf x) {
  if (kind == MRS_ACT_SILU) return mul(x, sigmoid(x));
  if (kind == MRS_ACT_GELU) return mul(mul(set_f(0.5f), x), add(set_f(1.0f), erf(mul(x, set_f(0.70710678f)))));
  // x / 2 * (1 + tanh(u)) is x * sigmoid(2 u)
  Vf u = mul(set_f(0.79788456f), fma(mul(set_f(0.044715f), mul(x, x)), x, x));
  return mul(x, sigmoid(add(u, u)));
}

// The numbers of a row that its norm subtracts and multiplies with.
struct Moments {
  float mean, scale;
};

// The moments of ROWS rows, side by side: in one row each addition would wait for the one before.
template <int ROWS> INLINE void find_moments(const mrs_norm &norm, const float *const *x, int64_t cols, Moments *moments) {
  const int64_t whole = cols / 16 * 16;
  Vf middle[ROWS], squares[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    float mean = 0;
    if (norm.kind == MRS_NORM_LAYER) {
      Vf sums = zero_f();
      for (int64_t k = 0; k < whole; k += 16) sums = add(sums, load_f(x[r] + k));
      mean = lane_sum(sums);
      for (int64_t k = whole; k < cols; ++k) mean += x[r][k];
      mean /= float(cols);
    }
    moments[r].mean = mean, middle[r] = set_f(mean), squares[r] = zero_f();
  }
  for (int64_t k = 0; k < whole; k += 16) {
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      const Vf v = sub(load_f(x[r] + k), middle[r]);
      squares[r] = fma(v, v, squares[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    float sum = lane_sum(squares[r]);
    const float mean = moments[r].mean;
    for (int64_t k = whole; k < cols; ++k) sum += (x[r][k] - mean) * (x[r][k] - mean);
    moments[r].scale = 1.0f / std::sqrt(sum / float(cols) + norm.eps);
  }
}

// Writes a row of norm from its moments.
INLINE void normalize(const mrs_norm &norm, const float *x, int64_t cols, Moments moments, float *y) {
  const int64_t whole = cols / 16 * 16;
  const float *const weight = norm.weight, *const bias = norm.bias;
  const Vf middle = set_f(moments.mean), scale = set_f(moments.scale);
  for (int64_t k = 0; k < whole; k += 16) {
    Vf v = mul(mul(sub(load_f(x + k), middle), scale), load_f(weight + k));
    store_f(y + k, bias ? add(v, load_f(bias + k)) : v);
  }
  for (int64_t k = whole; k < cols; ++k)
    y[k] = (x[k] - moments.mean) * moments.scale * weight[k] + (bias ? bias[k] : 0.0f);
}

// RMS: x / sqrt(mean(x^2) + eps) * weight. Layer: (x - mean) / sqrt(variance + eps) * weight + bias.
INLINE void normalize(const mrs_norm &norm, const float *x, int64_t cols, float *y) {
  Moments moments;
  find_moments<1>(norm, &x, cols, &moments);
  normalize(norm, x, cols, moments, y);
}

void add_norm(const mrs_op *self, const mrs_step *step, mrs_pool *pool) {
  const mrs_add_norm &op = *(const mrs_add_norm *)self;
  const int64_t span = 16, tokens = step->num_tokens;
  parallel_for(pool, (tokens + span - 1) / span, [&](int64_t chunk) {
    float normed[op.cols];
    for (int64_t t = chunk * span; t < tokens && t < (chunk + 1) * span; ++t) {
      normalize(op.norm, op.y + t * op.cols, op.cols, normed);
      for (int64_t k = 0; k < op.cols; ++k) op.x[t * op.cols + k] += normed[k];
    }
  });
}

}  // namespace MRS_ISA
