"""Prints the name of the fastest kernels that this machine's processor runs, or nothing: `python scripts/host_isa.py`.

`make chat` builds these alone, for the portable ones take longest. It prints nothing where all are to be built.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
_VNNI = _AVX512 | {"avx512_vnni"}
FLAGS: Mapping[str, frozenset[str]] = {
    "avx512bf16": _VNNI | {"avx512_bf16"},
    "avx512vnni": _VNNI,
    "avx512": _AVX512,
    "avxvnni": _AVX2 | {"avx_vnni"},
    "avx2": _AVX2,
}
"""The flags that Linux lists for each instruction set of CMakeLists.txt, the fastest first."""


def fastest(flags: Iterable[str]) -> str:
    """Returns the fastest instruction set of a processor with these flags; empty: none of them."""
    has = frozenset(flags)
    return next((name for name, needed in FLAGS.items() if needed <= has), "")


def flags_here() -> list[str]:
    """Returns the flags of this machine's processor; none where Linux does not list them."""
    listing = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not listing.is_file():
        return []
    found = re.search(r"^flags\s*:(.*)$", listing.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found.group(1).split() if found else []


if __name__ == "__main__":
    print(fastest(flags_here()))
