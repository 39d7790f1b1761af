"""The set-up's own programs: a step's line, its log and its failure; the kernels that ``make chat`` builds."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

from scripts.cross_check import differences
from scripts.host_isa import FLAGS, fastest

ROOT = Path(__file__).parents[1]


def planned(goal: str, folder: Path) -> str:
    """The commands that ``make`` would give for a goal, without an environment."""
    command = ["make", "--dry-run", goal, f"VENV={folder}"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout


def step(tmp_path: Path, program: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / "step.sh"), "a step", str(tmp_path / "logs" / "a.log"), "sh", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_step_prints_its_title_alone(tmp_path: Path) -> None:
    done = step(tmp_path, "echo much; echo more >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a step\n", "")
    assert (tmp_path / "logs" / "a.log").read_text() == "much\nmore\n"


def test_a_step_that_fails_shows_everything(tmp_path: Path) -> None:
    done = step(tmp_path, "echo no network; exit 7")
    assert (done.returncode, done.stdout) == (7, "a step\n")
    first, said, hint = done.stderr.splitlines()
    assert (first, said) == ("no network", "This step failed: a step")
    assert str(tmp_path / "logs" / "a.log") in hint
    assert step(tmp_path, "exit 0").returncode == 0, "it goes on once the cause is mended"


def test_the_fastest_kernels() -> None:
    for name, flags in FLAGS.items():
        assert fastest(flags | {"more"}) == name
    assert fastest(FLAGS["avx512bf16"] - {"avx512_bf16"}) == "avx512vnni"
    assert fastest(FLAGS["avx512vnni"] - {"avx512_vnni"}) == "avx512"
    assert fastest(FLAGS["avx512"] - {"avx512dq"}) == "avx2"
    assert fastest(FLAGS["avxvnni"] - {"avx_vnni"}) == "avx2"
    assert fastest(FLAGS["avx2"] - {"fma"}) == fastest(()) == ""


def test_the_build_knows_these_kernels() -> None:
    built = re.findall(r"^ *add_isa\((\w+)", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(FLAGS) < set(built)


def test_development_compiles_each_set_once(tmp_path: Path) -> None:
    chat, tests = planned("chat", tmp_path / "venv"), planned("test", tmp_path / "venv")
    assert "-m pytest" in tests
    assert chat.count("--editable .") == tests.count("--editable .") == 1
    assert "MRS_ISAS" not in tests
    assert tests.count("pip install") == chat.count("pip install") + 1


def test_results_of_other_bits_are_named(tmp_path: Path) -> None:
    def write(name: str, **values: float) -> None:
        lines = (f"{key.replace('_', '/')} 1\n".encode() + struct.pack("f", value) for key, value in values.items())
        (tmp_path / f"{name}.values").write_bytes(b"".join(lines))

    write("avx2", project_Q4=1, project_BF16_1=2)
    write("portable", project_Q4=3, project_BF16_1=4)
    write("neon_i8mm", project_Q4=1, project_BF16_1=2)
    write("avx512", project_Q4=1, project_BF16_1=2)
    write("avx512bf16", project_Q4=1, project_BF16_1=2.5)
    assert differences(tmp_path, ["portable", "avx2", "neon_i8mm", "avx512bf16"], tmp_path) == []
    write("neon_i8mm", project_Q4=1.5, project_BF16_1=2.5)
    assert differences(tmp_path, ["neon_i8mm"], tmp_path) == [
        "neon_i8mm: project/Q4 differs by 5.00e-01",
        "neon_i8mm: project/BF16/1 differs by 5.00e-01",
    ]
    write("avx2", attend_q8_8=1, attend_8=1)
    write("avx512", attend_q8_8=2, attend_8=1)
    write("avx512vnni", attend_q8_8=2, attend_8=1)
    assert differences(tmp_path, ["avx512", "avx512vnni"], tmp_path) == []
    write("avx512vnni", attend_q8_8=1, attend_8=2)
    assert differences(tmp_path, ["avx512vnni"], tmp_path) == [
        "avx512vnni: attend/q8/8 differs by 1.00e+00",
        "avx512vnni: attend/8 differs by 1.00e+00",
    ]
    write("avx2", project_Q4=1, project_BF16_1=2)
    write("neon_i8mm", project_Q4=1)
    assert differences(tmp_path, ["neon_i8mm"], tmp_path) == ["neon_i8mm: other results were computed"]
