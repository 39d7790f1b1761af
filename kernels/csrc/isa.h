// The instruction set that a kernel header is compiled for. CMake sets MRS_ISA to its name and MRS_ISA_<name> to 1.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "inline.h"

#ifndef MRS_ISA
#error "MRS_ISA is not set: see CMakeLists.txt"
#endif
