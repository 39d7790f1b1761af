// Packed panels: 16 rows x all columns, the bytes of the file transposed so that one cache line of 64 bytes holds one
// dword of each row. Packing is lossless and keeps the size. A block of a panel has scales and quants. Where the scales are
// no multiple of 64 bytes, those of two blocks stand before the quants of both, so that every cache line of quants is
// aligned and a panel is read as one stream; scales of an odd last block are padded.
//
// Quants of 32-weight blocks: cache line q holds in its low nibbles k = 4q.., in its high nibbles k = 16 + 4q..
// (Q8_0, I8: cache line q holds k = 4q..). Q5_0 and Q5_1 add a cache line of fifth bits before them: bit g of byte i is
// that of k = 4g + i. For the K types the cache lines are the dwords of the file's qs, ql, qh and hmask. Lines of high bits
// are needed with the first of the others, and reading on from the end of a block and back would end the stream from memory:
// those of Q3_K and Q5_K stand before the others; those of Q6_K stand in threes, a dword of qh and the two of ql beside it,
// which make the same columns of four groups.
//
// I8 occurs in no file: int8 values with a float32 scale for every 16 columns, to which some types are requantized at
// load without loss. Its unpacked block is two scales and 32 values.
#pragma once
#include <cstdint>

enum mrs_type {
  MRS_F32 = 0, MRS_F16 = 1, MRS_Q4_0 = 2, MRS_Q4_1 = 3, MRS_Q5_0 = 6, MRS_Q5_1 = 7, MRS_Q8_0 = 8,
  MRS_Q2_K = 10, MRS_Q3_K = 11, MRS_Q4_K = 12, MRS_Q5_K = 13, MRS_Q6_K = 14, MRS_BF16 = 30,
  MRS_I8 = 100, MRS_TYPES = 101
};

struct mrs_layout {
  int32_t block;           // weights in a block of the file
  int32_t file_bytes;      // its bytes
  int32_t scales, quants;  // bytes of 16 of them in a panel
};

constexpr mrs_layout layout_of(int type) {
  switch (type) {
    case MRS_F32: return {1, 4, 0, 64};
    case MRS_F16: return {1, 2, 0, 32};
    case MRS_BF16: return {1, 2, 0, 32};
    case MRS_Q4_0: return {32, 18, 32, 256};
    case MRS_Q4_1: return {32, 20, 64, 256};
    case MRS_Q5_0: return {32, 22, 32, 320};
    case MRS_Q5_1: return {32, 24, 64, 320};
    case MRS_Q8_0: return {32, 34, 32, 512};
    case MRS_I8: return {32, 40, 128, 512};
    case MRS_Q2_K: return {256, 84, 320, 1024};
    case MRS_Q3_K: return {256, 110, 224, 1536};
    case MRS_Q4_K: return {256, 144, 256, 2048};
    case MRS_Q5_K: return {256, 176, 256, 2560};
    case MRS_Q6_K: return {256, 210, 32, 3328};
    default: return {0, 0, 0, 0};
  }
}

// Where a block of a panel has its parts, in bytes from the panel's beginning.
struct panel_block {
  int64_t scales, quants;
};

// The location of a panel's blocks.
struct panel_view {
  int32_t scales, quants;  // bytes of a block
  int64_t blocks, bytes;

  constexpr panel_block block(int64_t b) const {
    const int64_t both = scales + quants, first = (b & ~int64_t(1)) * both, odd = b & 1;
    if (scales % 64 == 0) return {b * both, b * both + scales};
    const int64_t heads = b + 1 == blocks && !odd ? (scales + 63) / 64 * 64 : 2 * scales;
    return {first + odd * scales, first + heads + odd * quants};
  }
};

constexpr panel_view view_of(int type, int64_t cols) {
  const mrs_layout l = layout_of(type);
  const int64_t blocks = cols / l.block;
  return {l.scales, l.quants, blocks, (blocks * (l.scales + l.quants) + 63) / 64 * 64};
}

// Cache lines of 32 columns of a panel, rounded up.
constexpr int lines_of_group(int type) {
  const mrs_layout l = layout_of(type);
  return ((l.scales + l.quants) * 32 / l.block + 63) / 64;
}

// Bytes of 32 columns of a token in a tile of activations (activations.h): an int8 term, and the coarse terms of 8 quads.
constexpr int64_t kTermBytes = 68, kOutlierBytes = 128;

// The outliers of 256 columns and up to four tokens of a tile stand together, in a strip. The strip of token t, of `tokens`, in the
// block-th 256 columns.
constexpr int64_t strip_of(int64_t block, int tokens, int t) { return block * (tokens > 4 ? 2 : 1) + t / 4; }
constexpr int64_t num_strips(int64_t cols, int tokens) { return strip_of((cols + 255) / 256, tokens, 0); }

// Bytes of the numbers that say where each strip's outliers begin, and where the last one's end.
constexpr int64_t strip_bytes(int64_t cols) { return (num_strips(cols, 8) * 4 + 4 + 63) / 64 * 64; }

// Bytes of a tile of 8 tokens without its plain values.
constexpr int64_t activation_bytes(int64_t cols) {
  return 192 + strip_bytes(cols) + (cols + 31) / 32 * 8 * (kTermBytes + kOutlierBytes);
}

constexpr int64_t kSamplingTile = 64;  // scores of a tile

constexpr int64_t sampling_width(int64_t vocab) { return (vocab + kSamplingTile - 1) / kSamplingTile * kSamplingTile; }

// Bytes of scratch in which one thread samples: the parts of SamplingScratch in sampling.h.
constexpr int64_t sampling_scratch(int64_t vocab) {
  const int64_t width = sampling_width(vocab);
  return (width * (4 * 8 + 4 * 4 + 1) + width / kSamplingTile * 4 + 63) / 64 * 64;
}
