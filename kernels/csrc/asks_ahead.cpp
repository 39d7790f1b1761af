// Compiled for the oldest supported processor, as module.cpp is: it runs when the library is loaded.
#include "asks_ahead.h"

#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstring>
#endif

namespace {

// AMD's family number, as its manuals count it; 0 for other processors.
int amd_family() {
#if defined(__x86_64__)
  unsigned eax, ebx, ecx, edx;
  char vendor[12];
  if (!__get_cpuid(0, &eax, &ebx, &ecx, &edx)) return 0;
  std::memcpy(vendor, &ebx, 4), std::memcpy(vendor + 4, &edx, 4), std::memcpy(vendor + 8, &ecx, 4);
  if (std::memcmp(vendor, "AuthenticAMD", 12) || !__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return 0;
  return int((eax >> 8 & 15) + (eax >> 20 & 255));
#else
  return 0;
#endif
}

// Bytes of the first-level data cache; 0 or less where the system does not tell.
long l1_bytes() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  return sysconf(_SC_LEVEL1_DCACHE_SIZE);
#else
  return 0;
#endif
}

}  // namespace

// Zen 5 (26) reads packed weights up to four times as fast when asked ahead; Zen 4 reads some types faster and Q6_K slower, if
// its cores share no third-level cache, and all as fast otherwise (docs/log.md). Others were not measured with it.
const bool mrs_asks_ahead = amd_family() == 26;

// Of the caches that were measured, 32 KB are too few for what 48 KB are enough for (docs/log.md).
const bool mrs_has_wide_l1 = l1_bytes() >= 48 << 10;
