// The instruction sets that this processor and its system run, asked when the program runs.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <cerrno>
#include <csignal>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#endif
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

namespace amx_int8 {
bool multiplies_tiles();  // amx_tiles.h
}

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
// Whether the system lets this process use the tiles of AMX, and a product is right. A process of its own computes it: the
// instructions fault in some virtual machines whose processor announces them.
inline bool runs_tiles() {
#if MRS_EMULATE_TILES
  return true;
#elif MRS_HAVE_amx_int8 && defined(__linux__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx >> 24 & 3) != 3) return false;
  if (syscall(SYS_arch_prctl, 0x1023, 18)) return false;  // ARCH_REQ_XCOMP_PERM, for the component of the tiles' data
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    signal(SIGILL, SIG_DFL);
    _exit(!amx_int8::multiplies_tiles());
  }
  int status = 1;
  while (child > 0 && waitpid(child, &status, 0) < 0)
    if (errno != EINTR) return false;
  return child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
#else
  return false;
#endif
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
    case isa_amx_int8: {
      static const bool found = runs(isa_avx512bf16) && runs_tiles();
      return found;
    }
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
