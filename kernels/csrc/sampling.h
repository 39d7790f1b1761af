// Samples tokens from rows of logits. The stages and their order are those of engine/sampling/sampler_stages.py, which is
// the reference: leading penalties and DRY, bias, mask, log-probabilities, then the stages that remove tokens.
//
// Temperature, top-k, top-p and min-p in this order are the usual case, which searches a row by the maxima of its tiles
// and takes its exponentials in float32. All other orders hold the candidates in float64. A row's result depends on that
// row alone: every sum is taken in one fixed order.
#pragma once
#include <algorithm>
#include <limits>

#include "layout.h"
#include "mrs.h"
#include "pool.h"
#include "simd.h"

namespace MRS_ISA {

constexpr int64_t kTile = kSamplingTile;
constexpr double kGreedyBelow = 1e-7, kMaxTemperature = 1e30, kLeastWeight = 2e-35, kLeastExponent = -80.0;
constexpr int kBuckets = 4096, kBucketShift = 19;  // of a float's leading bits: a bucket spans a factor of 1 + 1/16
constexpr float kInf = std::numeric_limits<float>::infinity();

// The parts of a thread's scratch memory for one row; layout.h has its size.
struct SamplingScratch {
  float *scores, *weights;                     // (width)
  float *maxima;                               // (width / kTile)
  int32_t *ids;                                // (width)
  int32_t *counts;                             // (width) zeros between two rows
  double *wide, *values, *masses, *keys;       // (width) touched by unusual stages only
  uint8_t *taken;                              // (width)

  SamplingScratch(uint8_t *base, int64_t width) {
    wide = (double *)base, values = wide + width, masses = values + width, keys = masses + width;
    scores = (float *)(keys + width), weights = scores + width;
    ids = (int32_t *)(weights + width), counts = ids + width;
    maxima = (float *)(counts + width);
    taken = (uint8_t *)(maxima + width / kTile);
  }
};

// e^x for x <= 0 with a relative error of about 1e-15; compilers vectorize loops of it.
INLINE double exp_of(double x) {
  x = x < -700.0 ? -700.0 : x;
  const double shifted = x * 1.4426950408889634 + 0x1.8p52, k = shifted - 0x1.8p52;  // the nearest integer
  const double r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;  // Taylor's coefficients, 1 / 13! and so on
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  uint64_t exponent, bits;
  std::memcpy(&exponent, &shifted, 8);
  std::memcpy(&bits, &p, 8);
  bits += exponent << 52;
  std::memcpy(&p, &bits, 8);
  return p;
}

// A weight: below e^-80 it is 0, because such a token would never be sampled.
INLINE double weight_of(double difference) {
  const double weight = exp_of(difference < kLeastExponent ? kLeastExponent : difference);
  return weight < kLeastWeight ? 0 : weight;
}

// The sum of e^(scores - top) in eight interleaved sums.
template <class Score>
INLINE double sum_of_exponentials(const Score *scores, int64_t n, double top) {
  double sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  const int64_t whole = n / 8 * 8;
  for (int64_t i = 0; i < whole; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += exp_of(double(scores[i + j]) - top);
  for (int64_t i = whole; i < n; ++i) sums[i - whole] += exp_of(double(scores[i]) - top);
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

INLINE int bucket_of(float value) {  // of values that are not negative; -0 is 0
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return int((bits & 0x7fffffffu) >> kBucketShift);
}

// The draw's place in a running sum: the first whose sum exceeds it, and always a valid one.
INLINE double draw_target(const mrs_sampling &row, double total) {
  return std::min(row.draw * total, std::nextafter(total, 0.0));
}

template <class Score>
INLINE void apply_penalties(const mrs_sampling &row, int32_t *counts, Score *scores) {
  for (int i = 0; i < row.num_history; ++i) ++counts[row.history[i]];
  for (int i = 0; i < row.num_history; ++i) {
    const int32_t token = row.history[i], count = counts[token];
    if (!count) continue;
    counts[token] = 0;
    Score value = scores[token];
    value = value > 0 ? value / row.repetition_penalty : value * row.repetition_penalty;
    scores[token] = value - (float(count * row.frequency_penalty) + row.presence_penalty);
  }
}

template <class Score>
INLINE void apply_dry(const mrs_sampling &row, Score *scores) {
  for (int i = 0; i < row.num_dry; ++i) scores[row.dry_tokens[i]] -= row.dry_penalties[i];
}

template <class Score>
INLINE void apply_processor(int stage, const mrs_sampling &row, int32_t *counts, Score *scores) {
  if (stage == MRS_STAGE_PENALTIES) apply_penalties(row, counts, scores);
  if (stage == MRS_STAGE_DRY) apply_dry(row, scores);
}

INLINE void apply_mask(const mrs_sampling &row, float *scores) {
  for (int64_t word = 0; row.mask && 32 * word < row.vocab_size; ++word) {
    const uint32_t allowed = row.mask[word];
    const int n = int(std::min<int64_t>(32, row.vocab_size - 32 * word));
    if (allowed == 0xffffffffu) continue;
    for (int i = 0; i < n; ++i)
      if (!(allowed >> i & 1)) scores[32 * word + i] = -kInf;
  }
  for (int i = 0; i < row.num_banned; ++i) scores[row.banned[i]] = -kInf;
}

// The maxima of a row's tiles. Returns the largest, or NaN if there is one.
INLINE float tile_maxima(const float *scores, int64_t width, float *maxima) {
  float top = -kInf;
  int is_nan = 0;
  for (int64_t tile = 0; tile < width / kTile; ++tile) {
    const float *x = scores + kTile * tile;
    Vf largest = max(max(load_f(x), load_f(x + 16)), max(load_f(x + 32), load_f(x + 48)));
    int differs = 0;
    for (int i = 0; i < kTile; ++i) differs |= !(x[i] == x[i]);
    is_nan |= differs;
    top = std::max(top, maxima[tile] = lane_max(largest));
  }
  return is_nan ? std::numeric_limits<float>::quiet_NaN() : top;
}

// Whether token a stands before token b: by its score, and of equal ones the lower id.
struct ByScore {
  const float *scores;
  bool operator()(int32_t a, int32_t b) const { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; }
};

// Writes the ids of the k best scores, best first; returns their number, which is less if fewer are above -inf.
INLINE int64_t best_ids(const SamplingScratch &s, int64_t width, int64_t k) {
  const int64_t tiles = width / kTile;
  float floor = std::numeric_limits<float>::lowest();
  if (k <= tiles) {  // at least k scores reach the k-th largest of the maxima
    float *ranked = s.weights;
    std::copy(s.maxima, s.maxima + tiles, ranked);
    std::nth_element(ranked, ranked + k - 1, ranked + tiles, [](float a, float b) { return a > b; });
    floor = std::max(floor, ranked[k - 1]);
  }
  int64_t n = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    if (!(s.maxima[tile] >= floor)) continue;
    for (int64_t i = kTile * tile; i < kTile * (tile + 1); ++i)
      if (s.scores[i] >= floor) s.ids[n++] = int32_t(i);
  }
  const ByScore better{s.scores};
  if (n > k) std::nth_element(s.ids, s.ids + k, s.ids + n, better), n = k;
  std::sort(s.ids, s.ids + n, better);
  return n;
}

// Fills float32 weights of all scores and returns the sum of each tile's sums; `out` may be null.
INLINE double weigh_all(const SamplingScratch &s, int64_t width, float top, double temperature, float *out) {
  const float scale = float(1.4426950408889634 / temperature), least = float(kLeastExponent * 1.4426950408889634);
  const Vf shift = set_f(top), factor = set_f(scale), low = set_f(least);
  double total = 0;
  for (int64_t i = 0; i < width; i += kTile) {
    if (!((s.maxima[i / kTile] - top) * scale >= least)) {  // all weights are zeros
      if (out) std::memset(out + i, 0, kTile * sizeof(float));
      continue;
    }
    Vf sum = zero_f();
    for (int j = 0; j < kTile; j += 16) {
      const Vf x = mul(sub(load_f(s.scores + i + j), shift), factor), weight = zero_below(x, low, exp2(x));
      if (out) store_f(out + i + j, weight);
      sum = add(sum, weight);
    }
    total += lane_sum(sum);
  }
  return total;
}

// The best k tokens, of these the fewest that reach a mass, of these the ones not below a share of the best.
INLINE int32_t sample_ranked(const mrs_sampling &row, const SamplingScratch &s, int64_t width, double temperature) {
  const double total = row.top_p < 1 ? weigh_all(s, width, row.top, temperature, nullptr) : 0;
  const double limit = row.top_p < 1 ? row.top_p * total : std::numeric_limits<double>::infinity();
  const int64_t n = best_ids(s, width, row.top_k);
  double mass = 0;
  int64_t kept = 0;
  for (; kept < n; ++kept) {
    const double weight = weight_of((double(s.scores[s.ids[kept]]) - row.top) / temperature);
    if (kept && (mass >= limit || weight < row.min_p || weight == 0)) break;
    mass += weight;
  }
  std::sort(s.ids, s.ids + kept);
  double total_kept = 0;  // in the order of the draw
  for (int64_t i = 0; i < kept; ++i) total_kept += weight_of((double(s.scores[s.ids[i]]) - row.top) / temperature);
  const double target = draw_target(row, total_kept);
  double sum = 0;
  for (int64_t i = 0; i < kept; ++i) {
    sum += weight_of((double(s.scores[s.ids[i]]) - row.top) / temperature);
    if (sum > target) return s.ids[i];
  }
  return s.ids[kept - 1];
}

// Zeroes all weights but the fewest, the largest first, that together reach a mass. Only those near the border are sorted.
INLINE void keep_nucleus(const SamplingScratch &s, int64_t width, double limit) {
  double histogram[kBuckets] = {};
  for (int64_t i = 0; i < width; ++i) histogram[bucket_of(s.weights[i])] += s.weights[i];
  int border = kBuckets - 1;
  double above = 0;
  while (border > 0 && above + histogram[border] < limit) above += histogram[border--];
  int64_t near = 0;
  for (int64_t i = 0; i < width; ++i) {
    const int bucket = bucket_of(s.weights[i]);
    if (bucket == border) s.ids[near++] = int32_t(i);
    if (bucket < border) s.weights[i] = 0;
  }
  std::sort(s.ids, s.ids + near, ByScore{s.scores});
  for (int64_t i = 0; i < near; ++i) {
    const double weight = s.weights[s.ids[i]];
    if (above >= limit) s.weights[s.ids[i]] = 0;
    above += weight;
  }
}

INLINE int32_t sample_dense(const mrs_sampling &row, const SamplingScratch &s, int64_t width, double temperature) {
  const double all = weigh_all(s, width, row.top, temperature, s.weights);
  if (row.top_p < 1) keep_nucleus(s, width, row.top_p * all);
  const float least = float(row.min_p);
  for (int64_t i = 0; least > 0 && i < width; ++i) s.weights[i] = s.weights[i] < least ? 0 : s.weights[i];
  const auto tile_sum = [&](int64_t tile) {
    Vf sum = zero_f();
    for (int j = 0; j < kTile; j += 16) sum = add(sum, load_f(s.weights + kTile * tile + j));
    return double(lane_sum(sum));
  };
  double total = 0;
  for (int64_t tile = 0; tile < width / kTile; ++tile) total += tile_sum(tile);
  const double target = draw_target(row, total);
  int32_t last = 0;  // of the tokens with a weight: rounding may leave the target at the end of a tile
  double sum = 0;
  for (int64_t tile = 0; tile < width / kTile; ++tile) {
    const double here = tile_sum(tile);
    if (here > 0 && sum + here > target) {
      for (int64_t i = kTile * tile; i < kTile * (tile + 1); ++i) {
        if (!(s.weights[i] > 0)) continue;
        last = int32_t(i), sum += s.weights[i];
        if (sum > target) return last;
      }
      return last;
    }
    sum += here;
  }
  return last;
}

// The tokens that remain after the stages so far, in the order of their ids.
struct Candidates {
  const mrs_sampling &row;
  const SamplingScratch &s;  // wide: the scores of all tokens; ids, values: those that remain
  int64_t n = 0;

  double top() const { return *std::max_element(s.values, s.values + n); }
  void weigh() const {
    const double largest = top();
    for (int64_t i = 0; i < n; ++i) s.masses[i] = weight_of(s.values[i] - largest);
  }
  double mass() const {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += s.masses[i];
    return sum;
  }
  template <class Keep> void keep(Keep &&keep) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i)
      if (keep(i)) s.ids[kept] = s.ids[i], s.values[kept] = s.values[i], ++kept;
    n = kept;
  }
  void keep_likeliest() {
    const int64_t best = std::max_element(s.values, s.values + n) - s.values;
    keep([&](int64_t i) { return i == best; });
  }
  void change() {
    for (int64_t i = 0; i < n; ++i) s.values[i] = s.wide[s.ids[i]];
  }
  // Keeps the fewest, by ascending keys and of equal ones the first, whose masses together reach a mass; at least one.
  void keep_first_to_reach(double limit) {
    double histogram[kBuckets] = {};
    for (int64_t i = 0; i < n; ++i) histogram[bucket_of(float(s.keys[i]))] += s.masses[i];
    double all = 0;
    for (double each : histogram) all += each;
    limit = std::min(std::max(limit, 5e-324), all);
    int border = 0;
    double below = 0;
    while (border < kBuckets - 1 && below + histogram[border] < limit) below += histogram[border++];
    int32_t *near = s.counts;  // zeroed again below
    int64_t num_near = 0;
    for (int64_t i = 0; i < n; ++i) {
      const int bucket = bucket_of(float(s.keys[i]));
      s.taken[i] = bucket < border;
      if (bucket == border) near[num_near++] = int32_t(i);
    }
    std::sort(near, near + num_near,
              [&](int32_t a, int32_t b) { return s.keys[a] != s.keys[b] ? s.keys[a] < s.keys[b] : a < b; });
    for (int64_t i = 0; i < num_near; ++i) {
      s.taken[near[i]] = 1;
      below += s.masses[near[i]];
      if (below >= limit) break;
    }
    std::fill(near, near + num_near, 0);
    keep([&](int64_t i) { return s.taken[i]; });
  }

  void temperature() {
    if (row.temperature < kGreedyBelow) return keep_likeliest();
    const double divisor = std::min(row.temperature, kMaxTemperature);
    for (int64_t i = 0; i < row.vocab_size; ++i) s.wide[i] /= divisor;
    change();
  }
  void top_k() {
    if (row.top_k >= n) return;
    std::copy(s.values, s.values + n, s.keys);
    std::nth_element(s.keys, s.keys + row.top_k - 1, s.keys + n, [](double a, double b) { return a > b; });
    const double floor = s.keys[row.top_k - 1];
    int64_t equal = row.top_k - std::count_if(s.values, s.values + n, [&](double value) { return value > floor; });
    keep([&](int64_t i) { return s.values[i] > floor || (s.values[i] == floor && equal-- > 0); });
  }
  void typical_p() {
    if (row.typical_p == 0) return keep_likeliest();
    weigh();
    const double all = mass(), largest = top();
    double expected = 0;
    for (int64_t i = 0; i < n; ++i) expected += s.masses[i] * (s.keys[i] = largest - s.values[i] + std::log(all));
    expected /= all;
    for (int64_t i = 0; i < n; ++i) s.keys[i] = std::abs(s.keys[i] - expected);
    keep_first_to_reach(row.typical_p * all);
  }
  void top_p() {
    if (row.top_p == 0) return keep_likeliest();
    const double largest = top(), all = sum_of_exponentials(s.wide, row.vocab_size, largest);
    weigh();
    for (int64_t i = 0; i < n; ++i) s.keys[i] = largest - s.values[i];
    keep_first_to_reach(row.top_p * all);
  }
  void min_p() {
    weigh();
    keep([&](int64_t i) { return s.masses[i] >= row.min_p; });
  }
  // Leaves out all likely tokens but the least likely of them.
  void xtc() {
    if (row.xtc_draw >= row.xtc_probability) return;
    weigh();
    const double all = mass();
    int64_t likely = 0, least = -1;
    for (int64_t i = 0; i < n; ++i) {
      if (!(s.masses[i] / all >= row.xtc_threshold)) continue;
      ++likely;
      if (least < 0 || s.masses[i] <= s.masses[least]) least = i;
    }
    if (likely > 1) keep([&](int64_t i) { return i == least || !(s.masses[i] / all >= row.xtc_threshold); });
  }
  void apply(int stage) {
    switch (stage) {
      case MRS_STAGE_TEMPERATURE: return temperature();
      case MRS_STAGE_TOP_K: return top_k();
      case MRS_STAGE_TYPICAL_P: return typical_p();
      case MRS_STAGE_TOP_P: return top_p();
      case MRS_STAGE_MIN_P: return min_p();
      case MRS_STAGE_XTC: return xtc();
      default: apply_processor(stage, row, s.counts, s.wide), change();
    }
  }
};

INLINE int32_t sample_staged(const mrs_sampling &row, const SamplingScratch &s) {
  Candidates candidates{row, s};
  for (int64_t i = 0; i < row.vocab_size; ++i) {
    s.wide[i] = s.scores[i];
    if (s.scores[i] > -kInf) s.ids[candidates.n] = int32_t(i), s.values[candidates.n++] = s.wide[i];
  }
  for (int i = row.num_processors; i < row.num_stages; ++i) candidates.apply(row.stages[i]);
  candidates.weigh();
  const double target = draw_target(row, candidates.mass());
  double sum = 0;
  for (int64_t i = 0; i < candidates.n; ++i) {
    sum += s.masses[i];
    if (sum > target) return s.ids[i];
  }
  return s.ids[candidates.n - 1];
}

// The log of the sum of e^scores, and the best tokens with their log-probabilities.
INLINE double describe_scores(const mrs_sampling &row, const SamplingScratch &s, int64_t width) {
  const float top = tile_maxima(s.scores, width, s.maxima);
  const double log_sum = double(top) + std::log(sum_of_exponentials(s.scores, row.vocab_size, top));
  if (row.num_top > 0 && top > -kInf && top < kInf) {
    const int64_t n = best_ids(s, width, row.num_top);
    for (int64_t i = 0; i < row.num_top; ++i) {
      row.top_tokens[i] = i < n ? s.ids[i] : -1;
      row.top_logprobs[i] = i < n ? double(s.scores[s.ids[i]]) - log_sum : -std::numeric_limits<double>::infinity();
    }
  }
  return log_sum;
}

INLINE int32_t choose(const mrs_sampling &row, const SamplingScratch &s, int64_t width) {
  bool is_usual = true;
  int previous = -1;
  for (int i = row.num_processors; i < row.num_stages; ++i) {
    const int stage = row.stages[i];
    const int place = stage == MRS_STAGE_TEMPERATURE ? 0 : stage == MRS_STAGE_TOP_K ? 1 : stage == MRS_STAGE_TOP_P ? 2 : stage == MRS_STAGE_MIN_P ? 3 : -2;
    is_usual = is_usual && place > previous;
    previous = place;
  }
  if (!is_usual) return sample_staged(row, s);
  if (row.temperature < kGreedyBelow || row.top_p == 0) {
    const int64_t tile = std::max_element(s.maxima, s.maxima + width / kTile) - s.maxima;
    return int32_t(std::max_element(s.scores + kTile * tile, s.scores + kTile * (tile + 1)) - s.scores);
  }
  const double temperature = std::min(row.temperature, kMaxTemperature);
  if (row.top_k > 0 && row.top_k < row.vocab_size) return sample_ranked(row, s, width, temperature);
  return sample_dense(row, s, width, temperature);
}

static void sample_row(mrs_sampling &row, uint8_t *scratch) {
  const int64_t width = sampling_width(row.vocab_size);
  const SamplingScratch s(scratch, width);
  std::memcpy(s.scores, row.logits, row.vocab_size * sizeof(float));
  std::fill(s.scores + row.vocab_size, s.scores + width, -kInf);
  for (int i = 0; i < row.num_processors; ++i) apply_processor(row.stages[i], row, s.counts, s.scores);
  for (int i = 0; i < row.num_bias; ++i) s.scores[row.bias_tokens[i]] += row.bias_values[i];
  const double log_sum = row.num_top >= 0 ? describe_scores(row, s, width) : 0;
  apply_mask(row, s.scores);
  row.top = tile_maxima(s.scores, width, s.maxima);
  const bool is_usable = row.top > -kInf && row.top < kInf;
  if (row.token < 0 && is_usable) row.token = choose(row, s, width);
  if (row.token >= 0) row.logprob = double(s.scores[row.token]) - log_sum;
}

// An op without fields of its own: the step has the rows. They are computed in as many threads as the share has; each has
// its part of the scratch.
static void sample(const mrs_op *, const mrs_step *step, mrs_pool *pool) {
  const int64_t count = step->num_sampling;
  if (!count) return;
  const int64_t chunks = std::min<int64_t>(count, mrs_pool_size(pool));
  const int64_t bytes = sampling_scratch(step->sampling[0].vocab_size);
  parallel_for(pool, chunks, [&](int64_t chunk) {
    for (int64_t i = chunk; i < count; i += chunks) sample_row(step->sampling[i], step->sampling_scratch + chunk * bytes);
  });
}

}  // namespace MRS_ISA
