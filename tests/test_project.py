"""Laws of the repository as a whole: imports that cost nothing, documents that are true, nothing half done."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from mistralrs.api.options.declarations import DECLARED

ROOT = Path(__file__).parents[1]
PACKAGES = ("mistralrs", "mistralrs_cli", "kernels")
TOOLS = ("scripts", "benchmarks")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^(?!drill-)([a-z-]+):", MAKEFILE, re.MULTILINE))


def files(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *files("docs", "chat_templates", "orderings", "benchmarks", "examples", suffixes=(".md",)),
]


def shell_blocks(path: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("mistralrs", ("torch", "numpy", "jinja2", "huggingface_hub", "tokenizers", "llguidance")),
        ("mistralrs_cli.app", ("torch", "numpy", "jinja2", "huggingface_hub", "tokenizers", "prompt_toolkit", "rich")),
        (
            "mistralrs_cli.arguments.invocation",
            ("torch", "numpy", "jinja2", "tokenizers", "pydantic", "llguidance", "sqlite3"),
        ),
        ("mistralrs_cli.chat.loop", ("torch", "numpy", "prompt_toolkit", "rich", "http.client", "markdown_it")),
        ("mistralrs.api.serving.prepare", ("torch", "numpy", "llguidance")),
        ("mistralrs.api.selectors.model_selector", ("torch", "numpy")),
        ("mistralrs.engine.scheduler", ("torch", "numpy")),
        ("mistralrs.loading.gguf_file", ("torch", "numpy")),
        ("mistralrs.loading.hub_files", ("torch", "numpy", "huggingface_hub")),
        ("mistralrs.api.loaded_adapters.adapter_loading", ("torch", "numpy", "mistralrs.adapters.adapter_source")),
        ("mistralrs.api.loaded_adapters.adapter_sources", ("torch", "numpy", "mistralrs.adapters.orderings")),
        ("mistralrs.text.tokenizer", ("torch", "numpy")),
        ("mistralrs.grammar.compile_grammar", ("torch", "numpy", "lark", "jsonschema", "regex")),
        ("mistralrs.ops.arena", ("torch", "numpy")),
        ("mistralrs.ops.native_backend", ("torch", "numpy")),
    ],
)
def test_imports_that_stay_light(module: str, forbidden: tuple[str, ...]) -> None:
    program = f"import {module}, sys, json; print(json.dumps([name for name in {forbidden} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def _imported(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere, for type checking too."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


def test_no_tensor_crosses_ops_upwards() -> None:
    """Buffers do. Above ``ops``, the decoder, its parts and the engine outside of its sampling do not know torch."""
    in_ops = {path.name for path in files("mistralrs/ops") if "torch" in _imported(path)}
    assert {name for name in in_ops if not name.startswith("reference_")} == {"torch_threads.py"}
    above = files("mistralrs/nn", "mistralrs/models", "mistralrs/engine")
    assert len(above) > 30
    with_torch = {str(path.relative_to(ROOT / "mistralrs")) for path in above if "torch" in _imported(path)}
    assert {name for name in with_torch if not name.startswith("engine/sampling/")} <= {"engine/prompt_outputs.py"}


def test_every_module_says_what_it_is_for() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in files(*PACKAGES, *TOOLS, "tests")}
    assert len(texts) > 50
    silent = [path for path, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert silent == []


def test_module_names_are_unique_and_nobody_elses() -> None:
    """A package may hold a main module of its own name; ``selectors`` and ``types`` have clear full names."""
    places: dict[str, set[Path]] = {}
    for path in files("mistralrs", "mistralrs_cli"):
        module = path.relative_to(ROOT).with_suffix("")
        is_package = module.name == "__init__"
        place = module.parent if is_package or module.name == module.parent.name else module
        places.setdefault(place.name, set()).add(place)
    repeated = {name for name, found in places.items() if len(found) > 1}
    assert repeated <= {"app", "errors", "types", "__main__"}
    ours = {"mistralrs", "mistralrs_cli", "mistralrs_kernels"}
    foreign = sys.stdlib_module_names | set(packages_distributions()) - ours
    assert set(places) & foreign <= {"__main__", "selectors", "types"}


def test_the_api_and_the_command_line_have_no_crowded_room() -> None:
    rooms = (ROOT / "mistralrs" / "api", ROOT / "mistralrs_cli")
    folders = {path.parent for room in rooms for path in room.rglob("*.py")}
    crowded = {str(folder.relative_to(ROOT)) for folder in folders if len(list(folder.glob("*.py"))) > 12}
    assert crowded == set()


def test_every_function_fits_on_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in files(*PACKAGES, *TOOLS)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 50
    ]
    assert long == []


def test_nothing_is_half_done_and_no_path_is_of_one_machine() -> None:
    half_done = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|NotImplemented" r"Error)\b")
    foreign = re.compile(r"[\"'\s(=](/root|/work|/home/[a-z]+|/tmp)/")
    code = files(*PACKAGES, *TOOLS, "tests", "examples", suffixes=(".py", ".cpp", ".h", ".inc", ".sh"))
    rest = [ROOT / name for name in ("Makefile", "CMakeLists.txt", "pyproject.toml", ".ci/run")]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [*code, *rest, *DOCUMENTS]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if half_done.search(line) or foreign.search(line)
    ]
    assert found == []


def test_links_lead_somewhere() -> None:
    targets = [
        path.parent / target
        for path in DOCUMENTS
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
        if not target.startswith(("http://", "https://"))
    ]
    assert len(targets) > 5
    assert [target for target in targets if not target.exists()] == []


GUIDES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(path for path in DOCUMENTS if path.parent in (ROOT / "docs", ROOT / "docs" / "design")),
]
TREE = [
    str(path.relative_to(ROOT))
    for path in [
        *ROOT.glob("*.*"),
        *files(*PACKAGES, *TOOLS, "tests", "examples", "docs", suffixes=(".py", ".pyi", ".cpp", ".h", ".inc", ".md")),
    ]
]
ROOMS = {path.split("/")[1] for path in TREE if path.startswith("mistralrs/") and path.count("/") > 1}
HOMES = (ROOT, ROOT / "mistralrs", ROOT / "mistralrs" / "api", ROOT / "tests")
SOURCE = "\n".join((ROOT / path).read_text(encoding="utf-8") for path in TREE if path.endswith(".py"))
DEFINED = set(re.findall(r"^ *(?:class )?([A-Z]\w+)(?=[(:\[]| = )", SOURCE, re.MULTILINE))


def is_path_there(name: str) -> bool:
    bare = "/" not in name and any(path.endswith(f"/{name}") for path in TREE)
    return bare or any((home / name).exists() for home in HOMES)


def is_module_there(name: str) -> bool:
    """A dotted name of a module or package, perhaps with a name that is defined in it."""
    for home in HOMES[:3]:
        path = home / name.replace(".", "/")
        if path.is_dir() or path.with_suffix(".py").is_file():
            return True
        module, defined = path.parent.with_suffix(".py"), path.name
        if module.is_file() and re.search(rf"^(class |def |){defined}\b", module.read_text("utf-8"), re.MULTILINE):
            return True
    return False


def test_what_documents_name_exists() -> None:
    """Paths, modules and classes between backticks. Answers and settings of other programs are no names of ours."""
    suffixes = (".py", ".pyi", ".cpp", ".h", ".inc", ".sh", ".md", ".toml")
    tops = {path.split("/")[0] for path in TREE if "/" in path} | ROOMS
    named, missing = 0, []
    for path in GUIDES:
        design = path.parent.name == "design" or path.name in ("architecture.md", "glossary.md", "CONTRIBUTING.md")
        for name in re.findall(r"`([\w./-]+)`", path.read_text(encoding="utf-8")):
            first = re.split(r"[/.]", name)[0]
            if name == "config.toml":  # the user's own
                continue
            if name.endswith(suffixes) or ("/" in name and first in tops):
                is_there = is_path_there(name)
            elif "." in name and first in tops:
                is_there = is_module_there(name)
            elif design and re.fullmatch(r"(?:[A-Z][a-z]+){2,}(?:\.\w+)?", name):
                is_there = name.split(".")[0] in DEFINED
            else:
                continue
            named += 1
            missing += [] if is_there else [f"{path.relative_to(ROOT)}: {name}"]
    assert named > 50
    assert missing == []


def test_design_notes_have_numbers_of_their_own() -> None:
    notes = sorted((ROOT / "docs" / "design").glob("*.md"))
    numbers = [note.name.split("-")[0] for note in notes]
    assert len(set(numbers)) == len(numbers) > 5
    assert all(
        note.read_text(encoding="utf-8").startswith(f"# {number} ") for note, number in zip(notes, numbers, strict=True)
    )


def test_make_commands_in_documents_exist() -> None:
    inline = [code for path in DOCUMENTS for code in re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8"))]
    lines = [line for path in DOCUMENTS for block in shell_blocks(path) for line in block.splitlines()]
    wanted = {match[1] for code in inline + lines if (match := re.match(r"make ([a-z-]+)", code))}
    assert {"chat", "test", "check", "soak"} <= wanted <= TARGETS


def test_shell_in_documents_is_shell() -> None:
    blocks = [block for path in DOCUMENTS for block in shell_blocks(path)]
    assert len(blocks) > 10
    for block in blocks:
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}{block}"


def test_options_in_the_guides_exist() -> None:
    option = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
    folders = ("mistralrs_cli", "mistralrs/api/options")
    after = [path.read_text(encoding="utf-8") for path in files(*folders) if path.name.endswith("options.py")]
    before = {flag for declared in DECLARED.values() for flag in declared.flags}
    known = before | {name for text in after for name in option.findall(text)} | {"--help"}
    guides = [ROOT / name for name in ("README.md", "docs/adapters.md", "docs/chat-guide.md", "docs/scripting.md")]
    lines = [line for guide in guides for line in guide.read_text().splitlines() if " || " not in line]  # not refused
    commands = [words for line in lines for words in re.findall(r"mistralrs ([^|\n]*)", line)]
    used = {name for words in commands for name in option.findall(words)}
    assert {"--prompt", "--seed", "--help"} <= used <= known


def test_the_tree_in_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^```\n(mistralrs/.*?)^```", text, re.MULTILINE | re.DOTALL)
    folder = ROOT
    for line in tree.splitlines():
        name, _, meaning = line.strip().partition(" ")
        if not line.startswith(" "):
            folder = ROOT / name
        assert (folder if folder == ROOT / name else folder / name).exists(), name
        assert meaning.strip(), name


def test_the_two_commands_stand_first() -> None:
    assert re.findall(r"^make ([a-z]+)", shell_blocks(ROOT / "README.md")[0], re.MULTILINE) == ["chat", "test"]


def test_scripts_are_executable_and_parse() -> None:
    scripts = [ROOT / ".ci" / "run", *files("examples", suffixes=(".sh",))]
    assert len(scripts) > 1
    for script in scripts:
        assert script.stat().st_mode & 0o111, script
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_make_lists_its_commands() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^  make ([a-z-]+)", done.stdout, re.MULTILINE)) == TARGETS


def test_the_build_needs_no_torch_and_there_is_one_version() -> None:
    from mistralrs import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["name"] == "mistralrs-cli"
    assert project["project"]["version"] == __version__
    assert not [name for name in project["build-system"]["requires"] if "torch" in name]


def test_without_a_sanitizers_runtime_its_run_says_so() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "sanitize.py"), "--quick"],
        env={**os.environ, "CXX": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^sanitize: ([a-z,-]+): NOT RUN: false ", done.stdout, re.MULTILINE)
    assert found == ["thread", "address,undefined,float-cast-overflow"]
