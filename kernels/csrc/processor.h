// The instruction sets that this processor and its system run, asked when the program runs.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

// Indices of mrs_table_at.
enum isa {
#define ISA(name) isa_##name,
#include "isas.def"
  num_isas
};

#if defined(__x86_64__)
inline bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
inline bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
// Register EAX of CPUID leaf 7, subleaf 1, which the compilers' own function does not know everywhere.
inline unsigned further_features() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) ? eax : 0;
}
#elif defined(__aarch64__)
inline bool runs_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
  int has = 0;
  size_t bytes = sizeof has;
  return !sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &bytes, nullptr, 0) && has;
#else
  return false;
#endif
}
inline bool runs_i8mm() {
#if defined(__linux__) && defined(HWCAP2_I8MM)
  return runs_dotprod() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM);
#elif defined(__APPLE__)
  int has = 0;
  size_t bytes = sizeof has;
  return runs_dotprod() && !sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &bytes, nullptr, 0) && has;
#else
  return false;
#endif
}
#endif

inline bool runs(isa set) {
  switch (set) {
#if defined(__x86_64__)
    case isa_avx512bf16: return runs(isa_avx512vnni) && (further_features() >> 5 & 1);
    case isa_avx512vnni: return runs_avx512() && __builtin_cpu_supports("avx512vnni");
    case isa_avx512: return runs_avx512();
    case isa_avxvnni: return runs_avx2() && (further_features() >> 4 & 1);
    case isa_avx2: return runs_avx2();
#elif defined(__aarch64__)
    case isa_neon_i8mm: return runs_i8mm();
    case isa_neon_dotprod: return runs_dotprod();
#endif
    case isa_portable: return true;
    default: return false;
  }
}
