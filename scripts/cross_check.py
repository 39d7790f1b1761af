"""Compares kernels that this x86-64 machine cannot run with those that it runs: `make cross`.

Those for aarch64 run in an emulator.

`tests/native/kernels_values.cpp` is built for both, here with the installed kernels. It writes the results of products
of every storage type with 1 to 40 tokens, of attention, experts and sampling, for each instruction set. Those that have
fused multiply-add (all but `portable`) must agree in every bit within and across both processors, and `portable` with
`portable`; `avx512bf16` rounds products of BF16 weights otherwise, and they are left out. The AVX-512 sets weigh the
scores of a q8_0 cache with a shorter polynomial, and must agree with each other there. The emulator then plays
processors that lack some of the sets, which must not be offered there.

`amx_int8` is built with tile instructions in plain C++ (`kernels/csrc/amx_tiles.h`) and must agree in every bit with
`avx512bf16`; the tests of the operations then run with this build. A processor without AVX-512 BF16 leaves that out.

Needs a cross compiler and an emulator: `apt-get install g++-aarch64-linux-gnu qemu-user`. The kernels for aarch64 are
compiled anew where their sources changed, with as many jobs as CMAKE_BUILD_PARALLEL_LEVEL says, else one for each core:
five minutes of processor time, and a minute for the comparison. It says nothing about speed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mistralrs_kernels.cpu import load
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "cross"
SOURCE = ROOT / "tests" / "native" / "kernels_values.cpp"
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu")
PROCESSORS = {
    "max": ["neon_i8mm", "neon_dotprod", "portable"],
    "neoverse-n1": ["neon_dotprod", "portable"],
    "cortex-a72": ["portable"],
}
"""Processors of the emulator, and the instruction sets that each has, the best first."""
UNFUSED, FUSED = "portable", "avx2"
"""The sets that the others are compared with."""
PAIRED = ("avx512bf16", "amx_int8")
SHORTER, SHORTER_PART = "avx512", "attend/q8/"
TILES, VECTORS = "amx_int8", "avx512bf16"
"""The set whose tile instructions are emulated, and the one that it is compared with."""
"""The plainest of the sets that compute 2^x with fewer terms, and the results that they need it for."""

Values = dict[str, NDArray[np.float32]]


def main() -> int:
    """Returns 1 if results differ, 2 if they cannot be compared here."""
    if platform.machine() not in ("x86_64", "AMD64"):
        print("cross: compares with x86-64 kernels; on aarch64 the ordinary tests run its own kernels", file=sys.stderr)
        return 2
    lacking = [program for program in (COMPILER, EMULATOR[0]) if shutil.which(program) is None]
    if lacking:
        hint = "install them: apt-get install g++-aarch64-linux-gnu qemu-user"
        print(f"cross: {', '.join(lacking)} not found; {hint}", file=sys.stderr)
        return 2
    here, there = program_here(), program_there()
    with tempfile.TemporaryDirectory() as folder:
        expected, results = Path(folder) / "x86_64", Path(folder) / "aarch64"
        expected.mkdir()
        results.mkdir()
        names = output([str(here), str(expected)])
        found = output([*EMULATOR, "max", str(there), str(results)])
        problems = [
            *tile_problems(),
            *wrong_sets(there),
            *differences(expected, names, expected),
            *differences(expected, found, results),
        ]
    for problem in problems:
        print(f"cross: {problem}", file=sys.stderr)
    if not problems:
        print(f"cross: {', '.join(found)} give the bits of {', '.join(names)}")
    return 1 if problems else 0


def program_here() -> Path:
    """Returns the program for this processor, linked with the installed kernels. Raises KernelError."""
    library = Path(str(load()._name)).resolve()
    program = BUILD / "x86_64" / "kernels_values"
    program.parent.mkdir(parents=True, exist_ok=True)
    include = f"-I{ROOT / 'kernels' / 'csrc'}"
    compile_ = [os.environ.get("CXX", "c++"), "-std=c++17", "-O2", "-ffp-contract=off", include, str(SOURCE)]
    linked = [str(library), f"-Wl,-rpath,{library.parent}", "-pthread", "-o", str(program)]
    subprocess.run([*compile_, *linked], check=True)
    return program


def program_there() -> Path:
    """Returns the program for the other processor, compiled if its sources have changed."""
    settings = ["CMAKE_SYSTEM_NAME=Linux", "CMAKE_SYSTEM_PROCESSOR=aarch64", f"CMAKE_CXX_COMPILER={COMPILER}"]
    return build("aarch64", settings) / "kernels_values"


def build(name: str, settings: Sequence[str]) -> Path:
    """Returns the folder with the kernels and their program, compiled if their sources have changed."""
    folder = BUILD / name
    tools = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    cmake = shutil.which("cmake", path=tools) or "cmake"
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=tools) else []
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()), **os.environ, "PATH": tools}
    environment.pop("CXXFLAGS", None)  # they are this machine's
    defines = [f"-D{setting}" for setting in ("CMAKE_BUILD_TYPE=Release", *settings)]
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), *generator, *defines]
    subprocess.run(configure, env=environment, check=True)
    subprocess.run([cmake, "--build", str(folder), "--target", "kernels_values"], env=environment, check=True)
    return folder


def tile_problems() -> list[str]:
    """Returns a sentence for each result that emulated tiles give other bits, and for tests that fail with them."""
    folder = build("tiles", [f"MRS_ISAS={TILES};{VECTORS}", "MRS_EMULATE_TILES=ON"])
    with tempfile.TemporaryDirectory() as results:
        if TILES not in output([str(folder / "kernels_values"), results]):
            print(f"cross: this processor does not run {VECTORS}, and {TILES} was left out")
            return []
        problems = unequal(read(Path(results), VECTORS), read(Path(results), TILES))
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/ops",
        "-k",
        f"{TILES} or tiles",
    ]
    kernels = {"MISTRALRS_KERNELS": str(folder / "libmistralrs_cpu.so")}
    if subprocess.run(tests, cwd=ROOT, env={**os.environ, **kernels}).returncode:
        problems.append("the tests of operations fail")
    print(f"cross: {TILES} with emulated tiles {'differs from' if problems else 'gives the bits of'} {VECTORS}")
    return [f"{TILES}: {problem}" for problem in problems]


def output(command: Sequence[str]) -> list[str]:
    """Returns the lines that a command prints. Raises CalledProcessError."""
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.split()


def wrong_sets(program: Path) -> list[str]:
    """Returns a sentence for each emulated processor that is offered other instruction sets than it has."""
    found = {name: output([*EMULATOR, name, str(program)]) for name in PROCESSORS}
    return [
        f"{name} is offered {', '.join(sets)} and has {', '.join(PROCESSORS[name])}"
        for name, sets in found.items()
        if sets != PROCESSORS[name]
    ]


def differences(expected: Path, names: Sequence[str], results: Path) -> list[str]:
    """Returns a sentence for each result of these sets that has other bits than the plainest one of its kind here."""
    return [
        f"{name}: {problem}"
        for name in names
        for problem in unequal(plainest(expected, name), read(results, name), is_paired=name in PAIRED)
    ]


def plainest(expected: Path, name: str) -> Values:
    """Returns the results that a set must have, of the plainest sets of its kind here."""
    if name == UNFUSED:
        return read(expected, UNFUSED)
    values = read(expected, FUSED)
    if name.startswith((SHORTER, TILES)):
        values |= {key: value for key, value in read(expected, SHORTER).items() if key.startswith(SHORTER_PART)}
    return values


def read(folder: Path, name: str) -> Values:
    """Returns the results of an instruction set: lines "name count", each followed by so many float32."""
    data, at, values = (folder / f"{name}.values").read_bytes(), 0, {}
    while at < len(data):
        end = data.index(b"\n", at)
        key, count = data[at:end].decode().split()
        values[key] = np.frombuffer(data, np.float32, int(count), end + 1)
        at = end + 1 + 4 * int(count)
    return values


def unequal(expected: Values, results: Values, *, is_paired: bool = False) -> list[str]:
    """Returns a sentence for each result of other bits. ``is_paired``: BF16 products are rounded otherwise."""
    if expected.keys() != results.keys():
        return ["other results were computed"]
    keys = [key for key in expected if not (is_paired and key.startswith("project/BF16/"))]
    wrong = [key for key in keys if expected[key].tobytes() != results[key].tobytes()]
    return [f"{key} differs by {np.abs(expected[key] - results[key]).max():.2e}" for key in wrong]


if __name__ == "__main__":
    sys.exit(main())
