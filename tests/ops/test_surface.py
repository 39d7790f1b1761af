"""The C surface of the kernels: the structs that Python mirrors, and the headers."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mistralrs_kernels import cpu

SOURCES = Path(__file__).parents[2] / "kernels" / "csrc"


@pytest.fixture
def structs() -> Iterator[list[cpu.StructInfo]]:
    """The library's list of structs, copied so that a test may alter it."""
    count = ctypes.c_int32()
    infos = cpu.load().mrs_structs(ctypes.byref(count))[: count.value]
    copies, kept = [], []
    for info in infos:
        fields = (cpu.FieldInfo * info.num_fields)(*info.fields[: info.num_fields])
        kept.append(fields)
        copies.append(cpu.StructInfo(info.name, fields, info.num_fields, info.bytes))
    yield copies
    kept.clear()


def named(structs: list[cpu.StructInfo], name: bytes) -> cpu.StructInfo:
    return next(info for info in structs if info.name == name)


def field(struct: cpu.StructInfo, name: bytes) -> cpu.FieldInfo:
    return next(struct.fields[i] for i in range(struct.num_fields) if struct.fields[i].name == name)


@pytest.mark.native
def test_the_mirror_is_the_librarys(structs: list[cpu.StructInfo]) -> None:
    assert cpu.mirror_difference(structs) is None
    assert {info.name.decode() for info in structs} == cpu.STRUCTS.keys()


@pytest.mark.native
def test_swapped_fields_are_refused_by_name(structs: list[cpu.StructInfo]) -> None:
    attend = named(structs, b"mrs_attend")
    scale, softcap = field(attend, b"scale"), field(attend, b"softcap")
    scale.name, softcap.name = softcap.name, scale.name
    difference = cpu.mirror_difference(structs)
    assert difference is not None
    assert "mrs_attend has softcap" in difference
    assert "scale" in difference


@pytest.mark.native
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offset": 152}, "epilogue (4 bytes of kind i at 152) there"),
        ({"bytes": 8}, "epilogue (8 bytes of kind i"),
        ({"kind": ord("f")}, "epilogue (4 bytes of kind f"),
        ({"name": b"finish"}, "mrs_project has finish"),
    ],
)
def test_an_altered_field_is_refused_by_name(
    structs: list[cpu.StructInfo], change: dict[str, object], words: str
) -> None:
    altered = field(named(structs, b"mrs_project"), b"epilogue")
    for key, value in change.items():
        setattr(altered, key, value)
    assert words in (cpu.mirror_difference(structs) or "")


@pytest.mark.native
def test_absent_fields_and_structs_are_refused_by_name(structs: list[cpu.StructInfo]) -> None:
    assert cpu.mirror_difference([info for info in structs if info.name != b"mrs_moe"]) == "it has no struct mrs_moe"
    named(structs, b"mrs_norm").num_fields -= 1
    assert "mrs_norm has no such field there and kind " in (cpu.mirror_difference(structs) or "")


@pytest.mark.native
def test_another_size_is_refused_by_name(structs: list[cpu.StructInfo]) -> None:
    named(structs, b"mrs_step").bytes += 8
    assert "mrs_step has" in (cpu.mirror_difference(structs) or "")


def compiler(variable: str, default: str) -> str:
    found = shutil.which(os.environ.get(variable, default))
    if found is None:
        pytest.skip(f"{default} is not here")
    return found


def test_the_surface_is_c11() -> None:
    source = '#include "mrs.h"\nint main(void) { return sizeof(mrs_table) == 0; }\n'
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", f"-I{SOURCES}", "-xc", "-"]
    done = subprocess.run([compiler("CC", "cc"), *flags], input=source, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c"
BF16 = f"{AVX512} -mavx512vnni -mavx512bf16 -DMRS_ISA_avx512vnni=1"
ISA_FLAGS = {
    "portable": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avxvnni": "-mavxvnni -mavx2 -mfma -mf16c",
    "avx512": AVX512,
    "avx512vnni": f"{AVX512} -mavx512vnni",
    "avx512bf16": BF16,
    "amx_int8": f"{BF16} -mamx-tile -mamx-int8 -DMRS_ISA_avx512bf16=1",
    "neon_dotprod": "-march=armv8.2-a+dotprod",
    "neon_i8mm": "-march=armv8.2-a+dotprod+i8mm",
}
"""As in CMakeLists.txt."""


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["portable", "amx_int8" if platform.machine() == "x86_64" else "neon_i8mm"])
def test_every_header_compiles_by_itself(isa: str) -> None:
    """With the plainest instruction set and with the one that has the most code: what a header includes is the same for
    all, and the build compiles all of them."""
    headers = sorted(str(path) for path in SOURCES.glob("*.h"))
    assert len(headers) > 10
    defines = [f"-DMRS_ISA={isa}", f"-DMRS_ISA_{isa}=1", "-DMRS_LANES=8"]
    command = [compiler("CXX", "c++"), "-std=c++17", "-fsyntax-only", "-w", *defines, *ISA_FLAGS[isa].split(), "-xc++"]
    done = subprocess.run([*command, *headers], text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "program", sorted((Path(__file__).parents[1] / "native").glob("*.cpp")), ids=lambda path: path.stem
)
def test_native_programs_fit_the_structs(program: Path) -> None:
    """`make cross` and `make sanitize` run them, and CI does not."""
    command = [compiler("CXX", "c++"), "-std=c++17", "-fsyntax-only", f"-I{SOURCES}", str(program)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
