// The kernels of one instruction set. CMake compiles this file once for each, with its own flags and MRS_ISA. The headers
// stand in that namespace, so that no inline function of one set can be linked into another.
#include "attention.h"
#include "embed.h"
#include "moe.h"
#include "mrs.h"
#include "norm.h"
#include "pack.h"
#include "probe.h"
#include "project.h"
#include "sampling.h"

#define MRS_STRING_(x) #x
#define MRS_STRING(x) MRS_STRING_(x)

namespace MRS_ISA {
extern const mrs_table table;
const mrs_table table = {MRS_STRING(MRS_ISA), project, embed, attend, add_norm, moe, unpack_row, pack_panel, sample, probe};
}  // namespace MRS_ISA
