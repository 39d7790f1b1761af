"""Runs the kernels, their pool of threads and the loaders under the compiler's sanitizers: `make sanitize`.

The pool, as a program of its own (`tests/native/pool_test.cpp`), runs under ThreadSanitizer, UndefinedBehaviorSanitizer
and AddressSanitizer, the kernels under the last two. Tests in Python load these kernels in place of the installed
ones; each buffer of an arena is then an allocation of its own (`tests/redzones.py`). The first finding ends the run
with its report. `--quick` builds one instruction set and runs few tests, in about three minutes on two cores.

If the compiler has no such runtime, the run prints that and succeeds.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "sanitize"
THREAD = "thread"
UNDEFINED = "undefined"
ADDRESS = "address,undefined,float-cast-overflow"
ISAS = ("portable", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16")
PROCESSES = 2
"""The processes that share the tests in Python."""
LEFT_OUT = ("--ignore=tests/ops/test_arena.py",)
"""Tests that are left out: the arena's own tests check its mappings, which `tests/redzones.py` replaces."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The extent of a run."""

    isas: tuple[str, ...]
    pool_rounds: int
    tests: tuple[str, ...]
    mutants: int
    """Damaged GGUF files that are loaded and, where that works, answer."""


WHOLE = Extent(
    isas=ISAS,
    pool_rounds=20,
    tests=(
        "tests/ops",
        "tests/quant",
        "tests/engine/test_native_sampler.py",
        "tests/engine/test_multi_step.py",
        "tests/engine/test_draft_parts.py",
        "tests/loading/test_gguf_fuzz.py",
        "tests/loading/test_formats_fuzz.py",
        "tests/loading/test_gguf_broken.py",
        "tests/loading/test_quantize_model.py",
        "tests/api/test_two_models.py",
        "tests/parity/test_engine_laws.py",
    ),
    mutants=200,
)
QUICK = Extent(
    isas=("avx2",) if platform.machine() in ("x86_64", "AMD64") else ("portable",),
    pool_rounds=2,
    tests=(
        "tests/ops",
        "tests/quant/test_quantize.py",
        "tests/api/test_two_models.py::test_answers_are_those_of_one_alone",
        "tests/api/test_two_models.py::test_none_starves_beside_long_prompts",
    ),
    mutants=10,
)


def main() -> int:
    """Returns 1 after a finding, or when something could not be built."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one instruction set and few tests")
    extent = QUICK if parser.parse_args().quick else WHOLE
    for sanitizer, steps in ((THREAD, run_pool), (ADDRESS, run_kernels)):
        reason = missing(sanitizer)
        if reason is not None:
            print(f"sanitize: {sanitizer}: NOT RUN: {reason}", flush=True)
            continue
        try:
            steps(extent)
        except subprocess.CalledProcessError as error:
            print(f"sanitize: {sanitizer}: FAILED: {' '.join(map(str, error.cmd))}", file=sys.stderr)
            return 1
    return 0


def missing(sanitizer: str) -> str | None:
    """Returns the reason why programs cannot be built with these sanitizers and run here; None: they can."""
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory() as name:
        source, program = Path(name) / "empty.cpp", Path(name) / "empty"
        source.write_text("int main() { return 0; }\n")
        for command in ([compiler, f"-fsanitize={sanitizer}", str(source), "-o", str(program)], [str(program)]):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                return str(error)
            if done.returncode:
                return f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}"
    if sanitizer == ADDRESS and not all(path.is_absolute() for path in runtimes()):
        return f"{compiler} has no libasan.so and libubsan.so to load into Python; the GNU compiler has"
    return None


def runtimes() -> list[Path]:
    """Returns the libraries that Python must load before any other; a bare name where the compiler has none."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")  # the first one needs the last to throw
    command = [os.environ.get("CXX", "c++")]
    return [Path(output([*command, f"-print-file-name={name}"]).strip()) for name in names]


def run_pool(extent: Extent) -> None:
    """Runs the pool under ThreadSanitizer, and under the sanitizer that keeps the usual malloc, so that it can fork."""
    for sanitizer in (THREAD, UNDEFINED):
        folder = build(sanitizer, sanitizer, ["pool_test"], isas=("portable",))
        run([str(folder / "pool_test"), str(extent.pool_rounds)])


def run_kernels(extent: Extent) -> None:
    """Runs the pool, then tests in Python that load the kernels, under the other two."""
    folder = build("address" if extent is WHOLE else "quick", ADDRESS, ["pool_test", "mistralrs_cpu"], isas=extent.isas)
    run([str(folder / "pool_test"), str(extent.pool_rounds)])
    environment = {
        **os.environ,
        "MISTRALRS_KERNELS": str(folder / "libmistralrs_cpu.so"),
        "LD_PRELOAD": " ".join(map(str, runtimes())),
        # malloc instead of pymalloc, so that small objects are watched too; Python itself leaks at its end
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "HF_HUB_OFFLINE": "1",
    }
    # tests skip kernels that cannot be loaded, so loading is checked first
    found = output(
        [sys.executable, "-c", "from mistralrs_kernels import cpu; print(*cpu.tables())"], environment
    ).split()
    left_out = [isa for isa in ISAS if isa not in found]
    print(f"sanitize: kernels of {', '.join(found)}; left out: {', '.join(left_out) or 'none'}", flush=True)
    marks = "not model and not network and not gpu and not clients"
    # C code writes the reports, which would be lost with the process if pytest captured them
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "--capture=sys", "-p", "no:cacheprovider", "-m", marks]
    pytest += [f"--numprocesses={PROCESSES}", "--dist=worksteal"]
    run([*pytest, *LEFT_OUT, *extent.tests], environment)
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "mutants.md"
        mutants = [sys.executable, "-m", "tests.soak.gguf_mutations", "--count", str(extent.mutants)]
        try:
            run([*mutants, "--load", "tests.soak.loads:load_and_answer", "--report", str(report)], environment)
        except subprocess.CalledProcessError:
            print(report.read_text() if report.exists() else "no report was written", file=sys.stderr)
            raise


def build(name: str, sanitizer: str, targets: Sequence[str], *, isas: Sequence[str]) -> Path:
    """Returns the folder with the targets, which are compiled if their sources have changed."""
    folder = BUILD / name
    tools = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    cmake = shutil.which("cmake", path=tools) or "cmake"
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=tools) else []
    environment = {**os.environ, "PATH": tools}
    settings = [f"-DMRS_SANITIZE={sanitizer}", f"-DMRS_ISAS={';'.join(isas)}"]
    run([cmake, "-S", str(ROOT), "-B", str(folder), *generator, *settings], environment)
    run([cmake, "--build", str(folder), "--parallel", str(os.cpu_count()), "--target", *targets], environment)
    return folder


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Runs a command. Raises CalledProcessError."""
    started = time.perf_counter()
    print(f"sanitize: {' '.join(command)}", flush=True)
    subprocess.run(command, env=environment, check=True, cwd=ROOT)
    print(f"sanitize: {time.perf_counter() - started:.0f} s", flush=True)


def output(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Returns the output of a command. Raises CalledProcessError."""
    return subprocess.run(command, env=environment, check=True, cwd=ROOT, text=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    sys.exit(main())
