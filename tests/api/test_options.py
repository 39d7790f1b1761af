"""Options from the defaults, the config file, the environment and the flags: who wins, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from mistralrs.api.load_options import LoadOptions
from mistralrs.api.options.config_file import CONFIG_BYTES, read_config
from mistralrs.api.options.declarations import DECLARED, DEFAULTS, types
from mistralrs.api.options.option import ALL, Mode
from mistralrs.api.options.resolve import VARIABLES, Origin, ResolvedOptions, resolve_options, unknown_variables
from mistralrs.api.options.values import without_none
from mistralrs.api.python_api.runner import Runner
from mistralrs.errors import UsageError
from mistralrs_cli.arguments.command_line import parse

SHARED = [name for name, option in DECLARED.items() if option.is_shared]
WORDS = {Mode.PROMPT: ["--prompt", "x"], Mode.SERVE: ["--port", "0"], Mode.CHAT: ["-i"]}


@dataclass(frozen=True, slots=True)
class Said:
    """A value as it is written, and as it counts."""

    toml: str
    text: str
    value: object


def said(name: str, number: int) -> Said:
    """The values of an option that each origin gives; those of ``number`` and ``number + 1`` differ."""
    option, hint = DECLARED[name], without_none(types()[name])
    if hint is bool:
        return Said(*(("true", "yes", True) if number % 2 else ("false", "0", False)))
    if get_origin(hint) is Literal:
        word = get_args(hint)[number % 2]
        return Said(json.dumps(word), word, word)
    if get_origin(hint) is tuple:
        words = [f"w{number}", f"v{number}"] if option.separator else [f"w{number}, v"]
        return Said(json.dumps(words), (option.separator or "").join(words), tuple(words))
    if option.is_size:
        return Said(f'"{number}M"', f"{number}MiB", number << 20)
    if hint is int:
        return Said(str(number), str(number), number)
    if hint is float:
        return Said(f"0.{number}", f"0.{number}", number / 10)
    return Said(f'"/w{number}"', f"/w{number}", hint(f"/w{number}"))


def mode_of(name: str) -> Mode:
    modes = DECLARED[name].modes
    return next(mode for mode in WORDS if mode in modes)


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the user's config file, in a config folder of its own."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "mistralrs" / "config.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def resolved(tmp_path: Path, mode: Mode | None, *flags: str, **variables: str) -> ResolvedOptions:
    environment: Mapping[str, str] = {"XDG_CONFIG_HOME": str(tmp_path), **variables}
    words = parse([*flags, *WORDS[mode]]) if mode in WORDS else None
    typed = words.flags if words else {}
    return resolve_options(typed, mode=mode, environment=environment, config=read_config(environment))


@pytest.mark.parametrize("name", SHARED)
def test_each_origin_outdoes_those_before_it(name: str, tmp_path: Path, config: Callable[[str], Path]) -> None:
    option, mode = DECLARED[name], mode_of(name)
    assert option.variable is not None
    hint = without_none(types()[name])
    in_file, in_environment, typed = said(name, 3), said(name, 4), said(name, 5)

    def found(*flags: str, **variables: str) -> tuple[object, Origin, str]:
        options = resolved(tmp_path, mode, *flags, **variables)
        return getattr(options.values, name), options.origin(name), options.written(name)

    flag = option.flags[0]
    assert found() == (getattr(DEFAULTS, name), Origin.DEFAULT, flag)
    path = config(f"{option.key} = {in_file.toml}\n")
    assert found() == (in_file.value, Origin.FILE, f"{path}: {option.key}")
    variables = {option.variable: in_environment.text}
    assert found(**variables) == (in_environment.value, Origin.ENVIRONMENT, option.variable)
    if not option.empty_counts:
        assert found(**{option.variable: ""})[1] is Origin.FILE
    if hint is bool:
        words = [flag]
    elif get_origin(hint) is tuple:
        assert isinstance(typed.value, tuple)
        words = [word for each in typed.value for word in (flag, each)]
    else:
        words = [flag, typed.text]
    assert found(*words, **variables) == (typed.value, Origin.FLAG, flag)


@pytest.mark.parametrize("name", SHARED)
def test_a_wrong_value_is_refused_by_its_giver_s_name(name: str, tmp_path: Path, config: Callable[[str], Path]) -> None:
    option, hint = DECLARED[name], without_none(types()[name])
    assert option.variable is not None
    wrong_text = "maybe" if hint is bool or get_origin(hint) is Literal or hint in (int, float) else None
    texts = [wrong_text] if wrong_text else []
    if option.least is not None:
        texts += [str(option.least - 1), "1e400" if hint is float else ""]
    if option.most is not None:
        texts.append(str(option.most * 2))
    for text in filter(None, texts):
        with pytest.raises(UsageError, match=option.variable) as refused:
            resolved(tmp_path, None, **{option.variable: text})
        assert refused.value.hint
    path = config(f"{option.key} = {{}}\n")
    with pytest.raises(UsageError) as refused:
        resolved(tmp_path, None)
    assert refused.value.message.startswith(f"{path}: {option.key} must be ")
    assert refused.value.hint


def test_an_option_of_another_mode_is_left_alone_but_checked(tmp_path: Path, config: Callable[[str], Path]) -> None:
    config('temperature = 0.7\nserve-ip = "0.0.0.0"\nthreads = 2\n')
    serve = resolved(tmp_path, Mode.SERVE, MISTRALRS_STATS="1")
    assert (serve.values.temperature, serve.values.serve_ip, serve.values.stats) == (0.1, "0.0.0.0", False)
    chat = resolved(tmp_path, Mode.CHAT, MISTRALRS_STATS="1")
    assert (chat.values.temperature, chat.values.serve_ip, chat.values.stats) == (0.7, "127.0.0.1", True)
    assert set(resolved(tmp_path, Mode.MODELS).origins) == set()
    with pytest.raises(UsageError, match="MISTRALRS_DRAIN_SECONDS"):
        resolved(tmp_path, Mode.CHAT, MISTRALRS_DRAIN_SECONDS="-1")


def test_the_strongest_origin_counts_for_options_that_say_the_same(
    tmp_path: Path, config: Callable[[str], Path]
) -> None:
    config('api-key-file = "keys"\nmax-tokens = 9\n')
    served = resolved(tmp_path, Mode.SERVE).values
    assert (served.api_key, served.api_key_file) == ((), tmp_path / "mistralrs" / "keys")
    served = resolved(tmp_path, Mode.SERVE, MISTRALRS_API_KEY="a,b").values
    assert (served.api_key, served.api_key_file) == (("a", "b"), None)
    served = resolved(tmp_path, Mode.SERVE, "--api-key-file", "typed", MISTRALRS_API_KEY="a,b").values
    assert (served.api_key, served.api_key_file) == ((), Path("typed"))
    asked = resolved(tmp_path, Mode.PROMPT, "--prompt-max-tokens", "5", MISTRALRS_MAX_TOKENS="7").values
    assert (asked.max_tokens, asked.prompt_max_tokens) == (None, 5)


def test_paths_in_the_file_are_relative_to_it(
    tmp_path: Path, config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config('kv-dir = "kv"\nchat-template = "own.jinja"\nlog = "~/server.log"\nssl-certfile = "/etc/cert.pem"\n')
    values = resolved(tmp_path, Mode.SERVE).values
    assert values.kv_dir == tmp_path / "mistralrs" / "kv"
    assert values.chat_template == str(tmp_path / "mistralrs" / "own.jinja")
    assert (values.log, values.ssl_certfile) == (tmp_path / "home" / "server.log", Path("/etc/cert.pem"))
    assert resolved(tmp_path, Mode.SERVE, MISTRALRS_KV_DIR="kv").values.kv_dir == Path("kv")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (b"threads =", "is not TOML: Invalid value (at end of document)", "a line of it looks like"),
        (b"threads = 1\nthreads = 2\n", "is not TOML: Cannot overwrite a value", "a line of it"),
        (b"x = " + b"[" * 100_000, "is not TOML", "a line of it"),
        (b"x = 1" + b"0" * 5000, "is not TOML", "a line of it"),
        (b"#" * (CONFIG_BYTES + 1), f"more than {CONFIG_BYTES} bytes", "a line of it"),
        (b"threads = 1\0", "NUL", "a line of it"),
        (b"kv_memory = '4G'\n", ": kv_memory: no such option", "did you mean kv-memory?"),
        (b"nonsense = 1\n", ": nonsense: no such option", "long options without dashes"),
        (b"[server]\nthreads = 1\n", ": server: the file has no sections", "leave out the line [server]"),
        (b"port = 1\n", ": port: an option for the command line alone", "type --port"),
        (b"prompt = 'x'\n", ": prompt: an option for the command line alone", "type --prompt"),
        (b"threads = 0", ": threads 0", "at least"),
        (b"threads = true\n", ": threads must be a whole number", "docs/cli.md"),
        (b"temperature = 1" + b"0" * 400, ": temperature 1", "from 0 to 100"),
        (b"temperature = nan\n", ": temperature nan is out of range", "from 0 to 100"),
        (b"kv-memory = 0\n", ": kv-memory 0 is out of range", "at least 1"),
        (b"kv-memory = '4Q'\n", ": kv-memory 4Q: not a size", "512M"),
        (b"max-tokens = 0\n", ": max-tokens 0 is out of range", "-1 for no limit"),
        (b"dtype = 'f64'\n", ": dtype f64: no such choice", "bf16"),
        (b"api-key = ['a', 1]\n", ": api-key must be a text, or a list of texts", "docs/cli.md"),
    ],
)
def test_a_wrong_file_is_named(
    text: bytes, message: str, hint: str, tmp_path: Path, config: Callable[[bytes], Path]
) -> None:
    path = config(text)
    with pytest.raises(UsageError) as refused:
        resolved(tmp_path, Mode.CHAT)
    assert str(path) in refused.value.message
    assert message in refused.value.message
    assert hint in (refused.value.hint or "")


@pytest.mark.parametrize(
    "text", [b"", b"# nothing\n", b"\xef\xbb\xbfthreads = 3\r\n", "threads = 3\n".encode("utf-16")]
)
def test_files_as_editors_write_them(text: bytes, tmp_path: Path, config: Callable[[bytes], Path]) -> None:
    config(text)
    assert resolved(tmp_path, Mode.CHAT).values.threads == (3 if len(text) > 11 else None)


def test_the_file_that_is_named_counts(tmp_path: Path, config: Callable[[str], Path]) -> None:
    config("threads = 3\n")
    (tmp_path / "other.toml").write_text("threads = 5\n")
    assert resolved(tmp_path, Mode.CHAT, MISTRALRS_CONFIG=str(tmp_path / "other.toml")).values.threads == 5
    assert resolved(tmp_path, Mode.CHAT, MISTRALRS_CONFIG=os.devnull).values.threads is None
    assert resolved(tmp_path, Mode.CHAT, MISTRALRS_CONFIG="").values.threads == 3
    with pytest.raises(UsageError, match=r"MISTRALRS_CONFIG: .*absent\.toml does not exist"):
        resolved(tmp_path, Mode.CHAT, MISTRALRS_CONFIG=str(tmp_path / "absent.toml"))
    with pytest.raises(UsageError, match="not a regular file"):
        resolved(tmp_path, Mode.CHAT, MISTRALRS_CONFIG=str(tmp_path))


def test_no_home_folder_is_no_config_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mistralrs.user_dirs.home_folder", lambda: None)
    assert read_config({}) is None


def test_variables_that_nobody_reads_are_named() -> None:
    known = [option.variable for option in DECLARED.values() if option.variable is not None]
    assert unknown_variables(dict.fromkeys([*known, *VARIABLES, "MISTRALRS_TEST_MODEL", "HOME"], "x")) == []
    assert unknown_variables({"MISTRALRS_THREAD": "1", "MISTRALRS_PORT": "tcp://10.0.0.1:80", "MISTRALRS_QQQ": ""}) == [
        "MISTRALRS_PORT is not read: --port is for the command line alone",
        "MISTRALRS_QQQ is not read: no option has this name",
        "MISTRALRS_THREAD is not read: did you mean MISTRALRS_THREADS?",
    ]


def test_variables_and_keys_are_unambiguous() -> None:
    variables = [DECLARED[name].variable for name in SHARED]
    assert len({*variables, *VARIABLES}) == len(variables) + len(VARIABLES)
    assert len({DECLARED[name].key for name in SHARED}) == len(SHARED)
    assert all(DECLARED[name].modes == ALL or DECLARED[name].modes for name in DECLARED)


def test_the_library_has_the_declared_defaults_and_reads_nothing_else(
    tmp_path: Path, config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters: Mapping[str, Any] = signature(Runner.__init__).parameters
    names = [name for name in parameters if name in DECLARED]
    assert len(names) >= 10
    assert {name: parameters[name].default for name in names} == {name: getattr(DEFAULTS, name) for name in names}
    before = LoadOptions()
    config("max-seqs = 3\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("MISTRALRS_MAX_SEQS", "2")
    assert LoadOptions() == before
