"""`examples/server/` and `examples/http.md` beside one server with the default model."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.examples.conftest import EXAMPLES, Run
from tests.grammar.walks import accepts, compiled
from tests.grammar.yacc_checks import YaccChecker, source_of
from tests.serving import RunningServer

QUESTIONS = "\nWhat is the capital of France?\nAnd of Spain?\n\n"
C = (EXAMPLES / "server" / "c.y").read_text(encoding="utf-8")
GUIDE = (EXAMPLES / "http.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["chat", "streaming"])
def test_a_conversation(name: str, run: Run, served: RunningServer) -> None:
    out = run(f"server/{name}.py", stdin=QUESTIONS, MISTRALRS_URL=served.base_url)
    first, second = out.splitlines()[:2]
    assert first == "System prompt (may be empty): > The capital of France is Paris."
    assert "Madrid" in second  # the first question is known
    system = run(f"server/{name}.py", stdin="Answer in French.\nHi!\n\n", MISTRALRS_URL=served.base_url)
    assert system != run(f"server/{name}.py", stdin="\nHi!\n\n", MISTRALRS_URL=served.base_url)


def test_a_completion(run: Run, served: RunningServer) -> None:
    out = run("server/completion.py", stdin="The capital of France is\n\n", MISTRALRS_URL=served.base_url)
    assert out.startswith("> The capital of France is Paris")


def test_a_regular_expression(run: Run, served: RunningServer) -> None:
    assert re.fullmatch(r"(- [^\n]{4,80}\n){3}\n", run("server/regex.py", MISTRALRS_URL=served.base_url))


def test_a_program_in_c(run: Run, served: RunningServer) -> None:
    out = run("server/yacc.py", MISTRALRS_URL=served.base_url)
    assert YaccChecker(source_of(f"{C}%%\n")).accepts(out.encode())


def test_the_comparison(run: Run, served: RunningServer) -> None:
    lines = run("server/stream_completion_bench.py", "8", MISTRALRS_URL=served.base_url).splitlines()
    assert [line.split()[0] for line in lines] == ["whole", "streamed"]
    assert all(float(line.split()[1]) > 0 for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide(command: str, served: RunningServer, tmp_path: Path) -> None:
    told = command.replace("http://127.0.0.1:1234", served.root)
    assert told.count(served.root) == 1
    done = subprocess.run(["bash", "-c", told], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if command.startswith("curl -N"):
        *_, usage, end = done.stdout.strip().split("\n\n")
        assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] > 0
        assert end == "data: [DONE]"
    elif "echo" in command or "/health" in command:
        assert done.stdout.strip() in ("refused", "OK")
    else:
        answer = json.loads(done.stdout)
        assert "error" not in answer or answer["error"] is None
        if "grammar" in command:
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", said(answer))
        if "json_schema" in command:
            assert json.loads(said(answer)).keys() == {"name", "is_capital"}


def said(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def test_the_guide_has_a_command_for_each_kind_of_request() -> None:
    paths = {path for command in COMMANDS for path in re.findall(r":1234(/\S+)", command)}
    chats = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}
    assert paths == chats | {"/v1/embeddings", "/tokenize", "/v1/models", "/health"}


PROGRAMS = (
    "#include <stdio.h>\nint main(void) { return 42; }",
    "typedef struct { int x, y; } point_t;\nstatic double norm(const point_t *p) { return p->x * p->x + p->y; }",
    "typedef struct node *node_t; extern union u { char c; } u; int f(node_t **q, void *) { return -u.c; }",
    "enum { A = 1, B = A << 2 };\nunsigned long f(int a[], char **s, ...) { for (size_t i = 0; ; i++) a[i] |= ~B; }",
    'void g(void) { if (a) if (b) c(); else d(); switch (x) { case 1: break; default: goto e; } e: puts("a" "b"); }',
    "int x[2][3] = {{1, 0x2u, '\\n'}, {(int) 1.5e3f, sizeof(char *), -1},}; // the end",
    "int f() { do { /* ** */ *p++ = y ? 1 : z, q; } while (!(a && b || c ^ d)); return 0; }",
)
BROKEN = (
    "int main() { return 42 }",
    "int = 3;",
    "retrun 1;",
    "intx main(void) {}",
    "int f() { 1 = ; }",
    'char *s = "a;',
)


def test_the_grammar_of_c() -> None:
    grammar, checker = compiled("yacc", C), YaccChecker(source_of(f"{C}%%\n"))
    assert grammar.warnings == ()
    for texts, is_c in ((PROGRAMS, True), (BROKEN, False)):
        for text in texts:
            assert accepts(grammar, text) is is_c, text
            assert checker.accepts(text.encode()) is is_c, text
