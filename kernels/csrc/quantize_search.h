// The search behind quantize.cpp for one instruction set. It is included once for each, with MRS_ISA defined as the
// namespace and MRS_LANES as the number of lanes.
//
// MRS_LANES blocks are quantized side by side, one in a lane. No sum runs across lanes; a block's bytes are therefore the
// same for every instruction set, whatever its neighbours and the number of threads.
//
// All types are one of two problems. A line decodes to scale * q + offset (Q4_1, Q5_1, Q2_K, Q4_K, Q5_K), a ray to
// scale * q with q of both signs (the others). The search first finds the best line or ray in real numbers for each run
// of weights that shares one: candidates give codes q, and least squares over these gives the best scale and offset for
// them. Then it rounds to numbers that the format can hold. For the K types these are products of a half and a small
// integer: the search tries integers near the ideal by the error of the decoded weights, then improves the halves by
// least squares over the whole block, and repeats both; it keeps the best result.

#include <cstdint>
#include <cstring>

#include "inline.h"
#include "layout.h"
#include "quantize_block.h"

namespace {
namespace MRS_ISA {

constexpr int kRounds = 3;
constexpr float kLargestHalf = 65504.0f, kSmallestHalf = 5.9604644775390625e-8f, kFar = 3.0e38f;
constexpr int kLanes = MRS_LANES;
typedef float Floats __attribute__((vector_size(4 * MRS_LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * MRS_LANES)));

INLINE Floats all(float x) { return Floats{} + x; }
INLINE Floats least(Floats a, Floats b) { return a < b ? a : b; }
INLINE Floats most(Floats a, Floats b) { return a > b ? a : b; }
INLINE Floats within(Floats x, float low, float high) { return least(most(x, all(low)), all(high)); }
INLINE Floats magnitude(Floats x) { return (Floats)((Ints)x & 0x7fffffff); }
// Rounds to the nearest integer, ties to even; for |x| < 2^22.
INLINE Floats nearest(Floats x) { return (x + 12582912.0f) - 12582912.0f; }
INLINE Floats code(Floats x, float low, float high) { return nearest(within(x, low, high)); }
// The inverse; zero for a value far too small for a half.
INLINE Floats inverse(Floats x) { return magnitude(x) < all(1e-25f) ? Floats{} : 1.0f / x; }
INLINE Floats quotient(Floats a, Floats b) { return a * inverse(b); }

// The nearest float that is a finite half.
INLINE Floats to_half(Floats x) {
  x = within(x, -kLargestHalf, kLargestHalf);
  Floats wide = x * 8193.0f;  // the factor separates the 11 bits of a half's significand from the rest
  Floats normal = wide - (wide - x), subnormal = (x + 0.75f) - 0.75f;
  return magnitude(x) < all(6.103515625e-5f) ? subnormal : normal;
}

// A scale as a half: only zero becomes zero, so that the integers beside it can still represent small weights.
INLINE Floats to_scale(Floats x) {
  Floats half = to_half(x), smallest = x < Floats{} ? all(-kSmallestHalf) : all(kSmallestHalf);
  return (half == Floats{}) & (magnitude(x) > all(1e-25f)) ? smallest : half;
}

struct Line {
  Floats scale, offset;
};

// Sums over N weights y and their codes q.
template <int N> struct Moments {
  static constexpr float kCount = N;
  Floats q, qq, qy;

  INLINE Moments of(const Floats *y, Line line, float top) {
    Moments sums{};
    Floats inv = inverse(line.scale);
    for (int k = 0; k < N; ++k) {
      Floats q = code((y[k] - line.offset) * inv, 0, top);
      sums.q += q;
      sums.qq += q * q;
      sums.qy += q * y[k];
    }
    return sums;
  }

  // The line of least error for these codes whose offset is at most `ceiling`; y and yy are sums over the weights.
  Line best_line(Floats y, Floats ceiling) const {
    Line best;
    best.scale = quotient(kCount * qy - q * y, kCount * qq - q * q);
    best.offset = (y - best.scale * q) * (1 / kCount);
    Ints above = best.offset > ceiling;
    best.offset = above ? ceiling : best.offset;
    best.scale = above ? most(quotient(qy - ceiling * q, qq), Floats{}) : best.scale;
    return best;
  }
  Floats error(Line l, Floats y, Floats yy) const {
    return yy + l.scale * (l.scale * qq + 2.0f * (l.offset * q - qy)) + l.offset * (kCount * l.offset - 2.0f * y);
  }
};

// The lines that the search starts from: the ends of the range lie beyond the outer codes by multiples of `step` codes
// from `first` to `last`. Then codes and line are computed from each other `polish` times.
struct LineSearch {
  int first, last;
  float step;
  int polish;
};

// Finds the best line through N weights with codes from 0 to `top`. `Below`: its offset must not be positive.
template <int N, bool Below> INLINE Line fit_line(const Floats *x, int top, LineSearch search) {
  Floats low = x[0], high = x[0];
  for (int k = 1; k < N; ++k) {
    low = least(low, x[k]);
    high = most(high, x[k]);
  }
  if (Below) low = least(low, Floats{});
  Floats range = most(high - low, Floats{}), ceiling = Below ? -low : all(kFar), sum{}, squares{};
  Floats y[N];  // relative to the lowest weight, so that sums of squares keep their precision
  for (int k = 0; k < N; ++k) {
    y[k] = x[k] - low;
    sum += y[k];
    squares += y[k] * y[k];
  }
  const int side = search.last - search.first + 1, grid = side * side;
  Line best{};
  Floats best_error = all(kFar);
  for (int i = 0; i < grid + search.polish; ++i) {
    Line guess = best;
    if (i < grid) {
      float below = search.step * (search.first + i / side), above = search.step * (search.first + i % side);
      guess.scale = range * (1.0f / (top + below + above));
      guess.offset = guess.scale * below;
    }
    auto sums = Moments<N>::of(y, guess, top);
    Line line = sums.best_line(sum, ceiling);
    Floats error = sums.error(line, sum, squares);
    Ints better = error < best_error;
    best_error = better ? error : best_error;
    best.scale = better ? line.scale : best.scale;
    best.offset = better ? line.offset : best.offset;
  }
  best.offset += low;
  return best;
}

// The codes from `bottom` (negative) to `top`, and the scales that the search starts from: the furthest weight lies at
// first, first + step, ... last; with both signs if codes are so few that the additional negative one matters.
struct RaySearch {
  int bottom, top;
  float first, last, step;
};

template <int N> INLINE Floats furthest(const Floats *x) {
  Floats far = x[0];
  for (int k = 1; k < N; ++k) far = magnitude(x[k]) > magnitude(far) ? x[k] : far;
  return far;
}

// Finds the best scale for N weights.
template <int N> INLINE Floats fit_ray(const Floats *x, RaySearch search) {
  const int signs = search.top < 31 ? 2 : 1;
  const int guesses = (int((search.last - search.first) / search.step) + 1) * signs;
  Floats far = furthest<N>(x), best{}, best_gain = all(-1.0f);  // gain: the sum of the squared weights minus the error
  for (int i = 0; i <= guesses; ++i) {
    float place = (search.first + search.step * (i / signs)) * (i % signs ? 1.0f : -1.0f);
    Floats inv = inverse(i < guesses ? far * (1.0f / place) : best), qq{}, qx{};
    for (int k = 0; k < N; ++k) {
      Floats q = code(x[k] * inv, search.bottom, search.top);
      qq += q * q;
      qx += q * x[k];
    }
    Floats scale = quotient(qx, qq), gain = scale * qx;
    Ints better = gain > best_gain;
    best_gain = better ? gain : best_gain;
    best = better ? scale : best;
  }
  return best;
}

// The numbers found for kLanes blocks.
struct Found {
  Floats d, m;
  Floats scales[kMaxRuns], minima[kMaxRuns];
  Floats q[kMaxBlock];
};

struct Trial {
  Floats error, q;  // of N weights: the squared error in the format's numbers, and the sum of the codes
};

template <int N> INLINE Trial attempt(const Floats *x, Line line, float bottom, float top) {
  Trial sums{};
  Floats inv = inverse(line.scale);
  for (int k = 0; k < N; ++k) {
    Floats shifted = x[k] - line.offset, q = code(shifted * inv, bottom, top), over = shifted - line.scale * q;
    sums.error += over * over;
    sums.q += q;
  }
  return sums;
}

template <int N> INLINE void encode(const Floats *x, Line line, float bottom, float top, Floats *q) {
  Floats inv = inverse(line.scale);
  for (int k = 0; k < N; ++k) q[k] = code((x[k] - line.offset) * inv, bottom, top) - bottom;
}

// Q4_1, Q5_1: d * q + m.
INLINE void find_line(const Floats *x, int top, LineSearch search, Found &found) {
  Floats low = x[0], high = x[0], sum{}, best_error = all(kFar);
  for (int k = 0; k < 32; ++k) {
    low = least(low, x[k]);
    high = most(high, x[k]);
    sum += x[k];
  }
  const Line starts[] = {fit_line<32, false>(x, top, search), {(high - low) * (1.0f / top), low}};
  for (int i = 0; i < 4; ++i) {
    const Line &start = starts[i / 2];
    Line line{to_scale(start.scale), to_half(start.offset)};
    if (i % 2) {  // the best offset for the rounded scale
      Line centred{line.scale, start.offset + (start.scale - line.scale) * (0.5f * top)};
      line.offset = to_half((sum - line.scale * attempt<32>(x, centred, 0, top).q) * (1.0f / 32));
    }
    Floats error = attempt<32>(x, line, 0, top).error;
    Ints better = error < best_error;
    best_error = better ? error : best_error;
    found.d = better ? line.scale : found.d;
    found.m = better ? line.offset : found.m;
  }
  encode<32>(x, {found.d, found.m}, 0, top, found.q);
}

// Q4_0, Q5_0, Q8_0: d * q.
INLINE void find_ray(const Floats *x, RaySearch search, Found &found) {
  const Floats starts[] = {fit_ray<32>(x, search), furthest<32>(x) * (1.0f / search.bottom)};
  Floats best_error = all(kFar);
  for (int i = 0; i < 2; ++i) {
    Floats scale = to_scale(starts[i]), error = attempt<32>(x, {scale, Floats{}}, search.bottom, search.top).error;
    Ints better = error < best_error;
    best_error = better ? error : best_error;
    found.d = better ? scale : found.d;
  }
  encode<32>(x, {found.d, Floats{}}, search.bottom, search.top, found.q);
}

struct Choice {
  Floats scale, minimum, error;
};

// Finds the integers from 0 to `limit` near the ideal line that decode N weights best, with these halves.
template <int N>
INLINE Choice choose_line(const Floats *x, Line ideal, Floats sum, Line halves, int top, int limit) {
  Floats middle = nearest(ideal.scale * inverse(halves.scale)), inv_m = inverse(halves.offset);
  Choice best{};
  best.error = all(kFar);
  for (int s = -1; s <= 1; ++s) {
    Floats integer = within(middle + float(s), 0, limit), scale = halves.scale * integer;
    Line centred{scale, ideal.offset + (ideal.scale - scale) * (0.5f * top)};
    Floats wanted = (scale * attempt<N>(x, centred, 0, top).q - sum) * (1.0f / N) * inv_m;
    Floats lower = code(wanted - 0.5f, 0, limit);
    for (int u = 0; u <= 1; ++u) {
      Floats minimum = least(lower + float(u), all(limit));
      Floats error = attempt<N>(x, {scale, -(halves.offset * minimum)}, 0, top).error;
      Ints better = error < best.error;
      best.error = better ? error : best.error;
      best.scale = better ? integer : best.scale;
      best.minimum = better ? minimum : best.minimum;
    }
  }
  return best;
}

// Q2_K, Q4_K, Q5_K: d * scale * q - m * minimum with integers from 0 to `limit`, one pair for N weights.
template <int N> INLINE void find_lines(const Floats *x, int top, int limit, LineSearch search, Found &found) {
  constexpr int kRuns = kMaxBlock / N;
  Line ideal[kRuns];
  Floats sums[kRuns], widest{}, deepest{}, best_error = all(kFar), scales[kRuns], minima[kRuns];
  for (int r = 0; r < kRuns; ++r) {
    ideal[r] = fit_line<N, true>(x + r * N, top, search);
    sums[r] = Floats{};
    for (int k = 0; k < N; ++k) sums[r] += x[r * N + k];
    widest = most(widest, ideal[r].scale);
    deepest = most(deepest, -ideal[r].offset);
  }
  Line at{};
  for (int i = 0; i < 2 * kRounds; ++i) {
    if (i % kRounds == 0) {  // the largest integer represents the largest ideal number, or a larger one that is not
      float reach = float(limit + i / kRounds);
      at = {widest * (1 / reach), deepest * (1 / reach)};
    }
    at = {to_scale(at.scale), to_scale(at.offset)};
    Floats error{}, aa{}, ab{}, bb{}, ax{}, bx{};  // of a = scale * q and b = minimum
    for (int r = 0; r < kRuns; ++r) {
      Choice of = choose_line<N>(x + r * N, ideal[r], sums[r], at, top, limit);
      scales[r] = of.scale;
      minima[r] = of.minimum;
      error += of.error;
      auto moments = Moments<N>::of(x + r * N, {at.scale * of.scale, -(at.offset * of.minimum)}, top);
      aa += of.scale * of.scale * moments.qq;
      ab += of.scale * of.minimum * moments.q;
      bb += of.minimum * of.minimum * float(N);
      ax += of.scale * moments.qy;
      bx += of.minimum * sums[r];
    }
    Ints better = error < best_error;
    best_error = better ? error : best_error;
    found.d = better ? at.scale : found.d;
    found.m = better ? at.offset : found.m;
    for (int r = 0; r < kRuns; ++r) {
      found.scales[r] = better ? scales[r] : found.scales[r];
      found.minima[r] = better ? minima[r] : found.minima[r];
    }
    Floats det = aa * bb - ab * ab;
    Line next{quotient(ax * bb - bx * ab, det), quotient(ax * ab - bx * aa, det)};
    Ints solved = (det > 1e-6f * (aa * bb)) & (next.scale > Floats{}) & (next.offset > Floats{});
    at.scale = solved ? next.scale : at.scale;
    at.offset = solved ? next.offset : at.offset;
  }
  for (int r = 0; r < kRuns; ++r) {
    Line line{found.d * found.scales[r], -(found.m * found.minima[r])};
    encode<N>(x + r * N, line, 0, top, found.q + r * N);
  }
}

// Q3_K, Q6_K: d * scale * q with integers from -limit - 1 to limit, one scale for 16 weights.
INLINE void find_rays(const Floats *x, int limit, RaySearch search, Found &found) {
  constexpr int N = 16, kRuns = kMaxBlock / N;
  Floats ideal[kRuns], widest{}, best_error = all(kFar), scales[kRuns], d{};
  for (int r = 0; r < kRuns; ++r) {
    ideal[r] = fit_ray<N>(x + r * N, search);
    widest = magnitude(ideal[r]) > magnitude(widest) ? ideal[r] : widest;
  }
  for (int i = 0; i < 2 * kRounds; ++i) {
    if (i % kRounds == 0) d = widest * (1.0f / (i ? limit : -limit - 1));
    d = to_scale(d);
    Floats inv_d = inverse(d), error{}, aa{}, ax{};  // of a = scale * q
    for (int r = 0; r < kRuns; ++r) {
      const Floats *run = x + r * N;
      Floats chosen{}, least_error = all(kFar), middle = nearest(ideal[r] * inv_d);
      for (int s = -1; s <= 1; ++s) {
        Floats integer = within(middle + float(s), -limit - 1, limit);
        Floats over = attempt<N>(run, {d * integer, Floats{}}, search.bottom, search.top).error;
        Ints better = over < least_error;
        least_error = better ? over : least_error;
        chosen = better ? integer : chosen;
      }
      error += least_error;
      scales[r] = chosen;
      Floats inv = inverse(d * chosen);
      for (int k = 0; k < N; ++k) {
        Floats a = chosen * code(run[k] * inv, search.bottom, search.top);
        aa += a * a;
        ax += a * run[k];
      }
    }
    Ints better = error < best_error;
    best_error = better ? error : best_error;
    found.d = better ? d : found.d;
    for (int r = 0; r < kRuns; ++r) found.scales[r] = better ? scales[r] : found.scales[r];
    d = aa > Floats{} ? quotient(ax, aa) : d;
  }
  for (int r = 0; r < kRuns; ++r) {
    Line line{found.d * found.scales[r], Floats{}};
    encode<N>(x + r * N, line, search.bottom, search.top, found.q + r * N);
  }
}

// Wider or finer ranges than these gained less than half a percent of the error when measured.
template <int Type> INLINE void find(const Floats *x, Found &found) {
  if constexpr (Type == MRS_Q4_0) find_ray(x, {-8, 7, 6.5f, 9.0f, 0.25f}, found);
  if constexpr (Type == MRS_Q5_0) find_ray(x, {-16, 15, 14.0f, 17.0f, 0.25f}, found);
  // -128 is left out: not every reader of the format expects it.
  if constexpr (Type == MRS_Q8_0) find_ray(x, {-127, 127, 124.0f, 130.0f, 0.5f}, found);
  if constexpr (Type == MRS_Q3_K) find_rays(x, 31, {-4, 3, 3.0f, 5.0f, 0.25f}, found);
  if constexpr (Type == MRS_Q6_K) find_rays(x, 127, {-32, 31, 27.0f, 33.5f, 0.25f}, found);
  if constexpr (Type == MRS_Q4_1) find_line(x, 15, {-3, 3, 0.4f, 1}, found);
  if constexpr (Type == MRS_Q5_1) find_line(x, 31, {-3, 3, 0.6f, 2}, found);
  if constexpr (Type == MRS_Q2_K) find_lines<16>(x, 3, 15, {-1, 2, 0.25f, 1}, found);
  if constexpr (Type == MRS_Q4_K) find_lines<32>(x, 15, 63, {-3, 3, 0.4f, 1}, found);
  if constexpr (Type == MRS_Q5_K) find_lines<32>(x, 31, 63, {-3, 3, 0.6f, 2}, found);
}

// Finds up to kLanes blocks. False when a weight is NaN or beyond a finite half.
template <int Type> bool search(const float *src, int count, Block *blocks) {
  constexpr int kBlock = layout_of(Type).block;
  Floats x[kBlock];
  Ints bad{};
  for (int k = 0; k < kBlock; ++k) {
    alignas(64) float line[kLanes] = {};
    for (int lane = 0; lane < count; ++lane) line[lane] = src[lane * kBlock + k];
    std::memcpy(&x[k], line, sizeof(line));
    bad |= ~(magnitude(x[k]) <= all(kLargestHalf));
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (bad[lane]) return false;
  }
  Found found{};
  find<Type>(x, found);
  for (int k = 0; k < kBlock; ++k) {
    Ints q = __builtin_convertvector(found.q[k], Ints);
    for (int lane = 0; lane < kLanes; ++lane) blocks[lane].q[k] = uint8_t(q[lane]);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    blocks[lane].d = found.d[lane];
    blocks[lane].m = found.m[lane];
    for (int r = 0; r < kMaxRuns; ++r) {
      blocks[lane].scales[r] = int8_t(found.scales[r][lane]);
      blocks[lane].minima[r] = int8_t(found.minima[r][lane]);
    }
  }
  return true;
}

}  // namespace MRS_ISA
}  // namespace
