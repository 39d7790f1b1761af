"""From options of the server to its settings: values, refusals, and the names in refusals. Nothing is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import LoadError, UsageError
from mistralrs.server.settings import ServerSettings
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import resolve
from mistralrs_cli.commands.serve import MAX_QUEUE, ServeJob


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with ``model.Q4_1.gguf`` in it, which is also the default model; no key in the environment."""
    (tmp_path / "model.Q4_1.gguf").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MISTRALRS_DEFAULT_MODEL", str(tmp_path / "model.Q4_1.gguf"))
    monkeypatch.delenv("MISTRALRS_API_KEY", raising=False)
    return tmp_path


def job(*arguments: str) -> ServeJob:
    words = parse(arguments)
    assert words is not None
    found = resolve(words)
    assert isinstance(found, ServeJob)
    return found


def settings(*arguments: str) -> ServerSettings:
    return job("--port", "1234", *arguments).settings


def test_the_launch_form_of_the_original() -> None:
    found = job("--port", "1234", "--log", "output.log", "mistral-gguf")
    repo, filename = "TheBloke/Mistral-7B-Instruct-v0.1-GGUF", "mistral-7b-instruct-v0.1.Q4_K_M.gguf"
    assert found.source == ModelSource("mistral", None, repo, filename)
    assert found.settings == ServerSettings(port=1234, log=Path("output.log"), model_name=repo)
    assert found.load == LoadOptions(max_queue=MAX_QUEUE, chat_template=found.load.chat_template)  # the row's own


def test_defaults_are_the_settings_own(folder: Path) -> None:
    found = job("-p", "0")
    assert found.settings == ServerSettings(port=0, model_name="model.Q4_1")
    assert found.settings.host == "127.0.0.1"
    assert found.settings.sampling == SamplingParams()


def test_every_server_option_arrives(folder: Path) -> None:
    found = job(
        *("--port", "8080", "--serve-ip", "0.0.0.0", "--model-name", "mine", "--strict", "--strict-model", "-t"),
        *("--api-key", "one", "--api-key", "two", "--isolate-keys", "--cors-origin", "HTTPS://Example.org"),
        *("--cors-origin", "http://[::1]:8000", "--ssl-certfile", "c.pem", "--ssl-keyfile", "k.pem", "-l", "x.log"),
        *("--log-bodies", "off", "--drain-seconds", "0", "--request-timeout", "2.5", "--max-body", "1M"),
        *("--max-queue", "0", "--no-ui"),
    )
    assert found.settings == ServerSettings(
        host="0.0.0.0",
        port=8080,
        model_name="mine",
        strict=True,
        strict_model=True,
        truncate=True,
        api_keys=("one", "two"),
        isolate_keys=True,
        cors_origins=("https://example.org", "http://[::1]:8000"),
        tls_cert=Path("c.pem"),
        tls_key=Path("k.pem"),
        log=Path("x.log"),
        log_bodies=False,
        drain_seconds=0.0,
        request_timeout=2.5,
        max_body_bytes=2**20,
        ui=False,
    )
    assert found.load.max_queue == 0


def test_options_of_the_model_arrive() -> None:
    found = job(
        *(
            "--port",
            "1",
            "--max-seqs",
            "3",
            "--prefix-cache-n",
            "0",
            "--no-kv-cache",
            "-c",
            "{{ x }}",
            "--threads",
            "1",
        ),
        *("--token-source", "none", "--precision", "high", "--dtype", "f32", "--kv-memory", "2G"),
        *("gguf", "-f", "model.Q4_1.gguf", "--repeat-last-n", "7", "--tokenizer-json", "t.json"),
    )
    assert found.load == LoadOptions(
        max_seqs=3,
        max_queue=MAX_QUEUE,
        prefix_cache_n=0,
        no_kv_cache=True,
        chat_template="{{ x }}",
        threads=1,
        token_source="none",
        precision="high",
        dtype="f32",
        kv_memory=2 << 30,
        tokenizer_json=Path("t.json"),
    )
    assert found.settings.sampling == SamplingParams(repeat_last_n=7)
    kept = job("--port", "1", "--kv-dir", "kv", "--kv-dir-size", "1T").load
    assert (kept.kv_dir, kept.kv_dir_bytes) == (Path("kv"), 1 << 40)
    assert job("--port", "1", "--draft", "4").load.max_draft == 4
    assert job("--port", "1", "--kv-cache-dtype", "bf16").load.kv_cache_dtype == "bf16"
    assert job("--port", "1", "--isq", "Q4_K", "auto", ".").load.isq == "q4_k"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["mistral-gguf"], "TheBloke/Mistral-7B-Instruct-v0.1-GGUF"),
        (["gguf", "-m", "a/b@main", "-f", "x.gguf"], "a/b"),
        (["auto", "a/b"], "a/b"),
        (["gguf", "-f", "model.Q4_1.gguf"], "model.Q4_1"),
        (["auto", "sub"], "sub"),
        ([], "model.Q4_1"),
    ],
)
def test_the_model_s_id(folder: Path, words: list[str], name: str) -> None:
    (folder / "sub").mkdir()
    assert settings(*words).model_name == name
    assert settings("--model-name", "mine", *words).model_name == "mine"


def test_keys_of_a_file_and_of_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "keys").write_text("\n one \ntwo\r\n\n", encoding="utf-8")
    assert settings("--api-key-file", "keys").api_keys == ("one", "two")
    assert settings("--api-key-file", "keys", "--api-key", "zero", "--api-key", "two").api_keys == (
        "zero",
        "two",
        "one",
    )
    monkeypatch.setenv("MISTRALRS_API_KEY", "three, four")
    assert settings().api_keys == ("three", "four")
    assert settings("--api-key", "one").api_keys == ("one",)  # who says it here has not forgotten it there
    assert "sesame" not in repr(settings("--api-key", "sesame"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "x"], "'--port'"),
        (["--port", "65536"], "'--port'"),
        (["--port", "-1"], "'--port'"),
        (["--port", "1", "--api-key", ""], "--api-key: a key is empty"),
        (["--port", "1", "--api-key", "a b"], "--api-key: a key has a space"),
        (["--port", "1", "--api-key-file", "absent"], "--api-key-file absent cannot be read: No such file"),
        (["--port", "1", "--api-key-file", "blank"], "--api-key-file blank: no key in it"),
        (["--port", "1", "--api-key-file", "binary"], "--api-key-file binary is not UTF-8"),
        (["--port", "1", "--isolate-keys"], "--isolate-keys needs API keys"),
        (["--port", "1", "--cors-origin", "example.org"], "--cors-origin example.org: not an origin"),
        (["--port", "1", "--cors-origin", "https://example.org/"], "not an origin"),
        (["--port", "1", "--request-timeout", "0"], "--request-timeout 0.0 is out of range"),
        (["--port", "1", "--request-timeout", "nan"], "--request-timeout nan is out of range"),
        (["--port", "1", "--drain-seconds", "-1"], "--drain-seconds -1.0 is out of range"),
        (["--port", "1", "--drain-seconds", "inf"], "--drain-seconds inf is out of range"),
        (["--port", "1", "--max-body", "much"], "--max-body much: not a size"),
        (["--port", "1", "--max-body", "0"], "--max-body 0: not a size"),
        (["--port", "1", "--kv-memory", "-1"], "--kv-memory -1: not a size"),
        (["--port", "1", "--kv-dir-size", "1G"], "--kv-dir-size needs --kv-dir"),
        (["--port", "1", "--kv-dir", "x", "--no-kv-cache"], "--kv-dir keeps what --no-kv-cache throws away"),
        (["-i", "--kv-dir", "x", "--prefix-cache-n", "0"], "--kv-dir keeps what --prefix-cache-n 0 throws away"),
        (["--kv-dir", "x", "bench"], "--kv-dir needs -i or --prompt or --port"),
        (["--port", "1", "--max-queue", "-1"], "'--max-queue'"),
        (["--port", "1", "--log-bodies", "maybe"], "'--log-bodies'"),
        (["--port", "1", "--model-name", " "], "--model-name ' ' is no name"),
        (["--port", "1", "--temperature", "0"], "--temperature needs -i or --prompt"),
        (["--port", "1", "--system", "x"], "--system needs -i or --prompt"),
        (["--strict"], "--strict needs --port"),
        (["--api-key", "x", "-i"], "--api-key needs --port"),
        (["--max-queue", "1", "bench"], "--max-queue needs --port"),
    ],
)
def test_refused(folder: Path, words: list[str], said: str) -> None:
    (folder / "blank").write_text("\n \n")
    (folder / "binary").write_bytes(b"\xff\x01")
    with pytest.raises(UsageError) as refused:
        job(*words)
    assert said in refused.value.message
    assert refused.value.hint
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("variable", ["", " ", ",", "one,,two"])
def test_a_variable_without_its_key_opens_nothing(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRALRS_API_KEY", variable)
    with pytest.raises(UsageError, match="MISTRALRS_API_KEY: a key is empty"):
        settings()
    assert settings("--api-key", "one").api_keys == ("one",)


def test_a_refused_key_is_not_repeated() -> None:
    with pytest.raises(UsageError) as refused:
        settings("--api-key", "nearly right")
    assert "nearly" not in f"{refused.value.message} {refused.value.hint}"


def test_a_missing_model_is_said_before_anything_is_served() -> None:
    with pytest.raises(LoadError, match=r"absent\.gguf does not exist"):
        job("--port", "1234", "gguf", "-f", "absent.gguf")


@pytest.mark.parametrize(
    ("size", "count"), [("1", 1), ("3k", 3072), ("512M", 2**29), ("4GiB", 2**32), ("2 TB", 2**41), ("7B", 7)]
)
def test_sizes(size: str, count: int) -> None:
    assert settings("--max-body", size).max_body_bytes == count
