// The kernels of one instruction set. CMake compiles this file once for each, with its own flags and MRS_ISA; everything
// stands in that namespace, so that no inline function of one set can be linked into another.
#include "mrs.h"

#include <cmath>
#include <cstring>

#include "half.h"
#include "layout.h"
#include "pool.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define MRS_STRING_(x) #x
#define MRS_STRING(x) MRS_STRING_(x)

namespace MRS_ISA {
#include "simd.h"
#include "formats.inc"
#include "elementwise.inc"
#include "project.inc"
#include "moe.inc"
#include "attend.inc"
#include "embed.inc"

extern const mrs_table table;
const mrs_table table = {MRS_STRING(MRS_ISA), project, embed, attend, add_norm, moe, unpack_row};
}  // namespace MRS_ISA
