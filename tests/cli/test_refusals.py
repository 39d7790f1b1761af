"""Every refusal says what, which and what next, and has the exit code of its kind.

Tests run the whole command on tiny files that each have one thing wrong.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from mistralrs_cli.app import main
from tests.architectures import VARIANTS, Variant, write_folder
from tests.ggml_writer import write_ggml_of
from tests.gguf_edits import drop, edited, put
from tests.gguf_of import write_gguf
from tests.hub import Hub, Repository, send_to, serving
from tests.loading.gguf_bytes import Bytes
from tests.test_files import KINDS
from tests.tiny import write_tiny

Run = Callable[..., tuple[int, str, str]]

USAGE, LOAD, REQUEST = 2, 3, 4
"""The exit codes."""


@dataclass(frozen=True, slots=True)
class Files:
    """Sound models to begin with, and a folder for what a test makes of them."""

    here: Path
    folder: Path
    gguf: Path
    mixtral: Path
    ggml: Path

    def copy(self) -> Path:
        """The configuration of the Hugging Face folder."""
        return shutil.copytree(self.folder, self.here / "copy")

    def configured(self, **settings: object) -> Path:
        """A copy whose `config.json` says something else."""
        path = self.copy() / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")
        return path.parent

    def without(self, name: str) -> Path:
        """A copy that lacks a file."""
        folder = self.copy()
        (folder / name).unlink()
        return folder

    def written(self, name: str, data: bytes) -> Path:
        path = self.here / name
        path.write_bytes(data)
        return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    root = tmp_path_factory.mktemp("sound")
    folder = write_folder(root / "llama", Variant("llama", {"rms_norm_eps": 1e-5}))
    mixtral = write_gguf(root / "mixtral.gguf", write_folder(root / "mixtral", VARIANTS["mixtral"]))
    return folder, write_tiny(root / "llama.gguf").path, mixtral, write_ggml_of(root / "llama.bin", folder)


@pytest.fixture
def files(sound: tuple[Path, ...], tmp_path: Path) -> Files:
    return Files(tmp_path, *sound)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The command in this process, asked for one answer: exit code, stdout and stderr."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RUST_LOG", "MISTRALRS_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    logger = logging.getLogger("mistralrs")
    before = logger.handlers, logger.propagate, logger.level
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["--prompt", "x", "--no-stdin", "--max-tokens", "1", "--threads", "1", *words])
        return code, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, handler)
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def refused(run: Run, code: int, said: str, hint: str, words: list[str]) -> str:
    """The whole hint."""
    found, out, err = run(*words)
    assert (found, out) == (code, ""), err
    message, _, rest = err.removeprefix("error: ").partition("\nhint: ")
    assert err.startswith("error: ")
    assert said in message
    assert rest.strip()
    assert hint in rest
    return rest.strip()


def local(row: str, path: Path) -> list[str]:
    return [row, "-m", "", "-f", str(path)]


def auto(path: Path) -> list[str]:
    return ["auto", str(path)]


WRONG_ARCHITECTURE: dict[str, tuple[Callable[[Files], list[str]], str]] = {
    "GGUF": (lambda files: local("gemma-gguf", files.gguf), "holds the architecture 'llama', not 'gemma'"),
    "safetensors": (lambda files: ["qwen2", "-m", str(files.folder)], "holds the architecture 'llama', not 'qwen2'"),
    "GGML": (lambda files: local("phi3-gguf", files.ggml), "holds the architecture 'llama', not 'phi3'"),
    "no experts": (lambda files: local("mixtral-gguf", files.gguf), "holds the architecture 'llama', not 'mixtral'"),
    "experts": (lambda files: local("mistral-gguf", files.mixtral), "the architecture 'llama' with experts, not"),
    "GGUF for a plain row": (lambda files: ["gemma2", "-m", str(files.gguf)], "the architecture 'llama', not 'gemma2'"),
}


@pytest.mark.parametrize("name", WRONG_ARCHITECTURE)
def test_another_architecture_is_refused_with_the_command_that_works(name: str, files: Files, run: Run) -> None:
    words, said = WRONG_ARCHITECTURE[name]
    hint = refused(run, LOAD, said, "this command works: mistralrs -i ", words(files))
    command = shlex.split(hint.removeprefix("this command works: "))
    gqa = ["--gqa", "2"] if name == "GGML" else []
    code, _, err = run("--chat-template", "chatml", *command[2:], *gqa)
    assert code == 0, err


def _typed(type_id: int) -> Callable[[Files], list[str]]:
    writer = Bytes()
    return lambda files: local("gguf", files.written("t.gguf", writer.file([], [writer.info("t", (256,), type_id, 0)])))


def _without_tensor(files: Files) -> list[str]:
    folder = files.copy()
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")
    return auto(folder)


def _gptq_tensors(files: Files) -> list[str]:
    tensor = torch.zeros(2, 2, dtype=torch.int32)
    save_file({"model.layers.0.mlp.up_proj.qweight": tensor}, files.copy() / "model.safetensors")
    return auto(files.here / "copy")


def _pickle(files: Files) -> Path:
    folder = files.without("model.safetensors")
    torch.save({"x": torch.zeros(2)}, folder / "pytorch_model.bin")
    return folder


def _quantised(**settings: object) -> Callable[[Files], list[str]]:
    return lambda files: ["llama", "-m", str(files.configured(quantization_config=settings))]


def _edited(edit: object) -> Callable[[Files], list[str]]:
    return lambda files: local("gguf", edited(files.gguf, files.here / "edited.gguf", edit))  # type: ignore[arg-type]


FILES: dict[str, tuple[int, Callable[[Files], list[str]], str, str]] = {
    "unknown architecture, GGUF": (LOAD, _edited(put("general.architecture", "mamba")), "'mamba', which is", "llama, "),
    "unknown architecture": (LOAD, lambda f: auto(f.configured(model_type="bert")), "'bert', which is", "llama, "),
    "missing tensor, GGUF": (LOAD, _edited(drop("blk.1.ffn_up.weight")), "'blk.1.ffn_up.weight': is missing", ""),
    "missing tensor": (LOAD, _without_tensor, "'model.layers.1.mlp.up_proj.weight': is missing", ""),
    "unknown type": (LOAD, _typed(77), "tensor 't': has the unknown type 77", "supported types: BF16, "),
    "Q8_1": (LOAD, _typed(9), "tensor 't': is stored as Q8_1, which is not supported", "supported types: BF16, "),
    "Q8_K": (LOAD, _typed(15), "tensor 't': is stored as Q8_K, which is not supported", "supported types: BF16, "),
    "NVFP4": (LOAD, _typed(40), "tensor 't': is stored as NVFP4, which is not supported", "supported types: BF16, "),
    "GPTQ": (LOAD, _quantised(quant_method="gptq", bits=4), "quantized with GPTQ, which is not supported", "--isq"),
    "AWQ": (LOAD, _quantised(quant_method="awq"), "quantized with AWQ, which is not supported", "--isq"),
    "NVFP4 of safetensors": (
        LOAD, _quantised(quant_method="modelopt", quant_algo="NVFP4"), "quantized with MODELOPT NVFP4, which", "--isq"
    ),
    "NVFP4 of vLLM": (
        LOAD,
        _quantised(quant_method="compressed-tensors", format="nvfp4-pack-quantized"),
        "quantized with COMPRESSED-TENSORS NVFP4-PACK-QUANTIZED, which",
        "--isq",
    ),
    "tensors of GPTQ": (LOAD, _gptq_tensors, "is quantized with GPTQ or AWQ, as its tensor", "--isq"),
    "pickle in a folder": (LOAD, lambda f: auto(_pickle(f)), "is a pickled PyTorch checkpoint", "safetensors"),
    "pickle": (
        LOAD, lambda f: auto(_pickle(f) / "pytorch_model.bin"), "is a pickled PyTorch checkpoint", "safetensors"
    ),
    "pickle for a GGUF row": (
        LOAD, lambda f: local("llama-gguf", _pickle(f) / "pytorch_model.bin"), "is a pickled PyTorch", "safetensors"
    ),
    "no template": (REQUEST, _edited(drop("tokenizer.chat_template")), "tiny has no chat template", "--chat-template"),
    "broken template": (LOAD, _edited(put("tokenizer.chat_template", "{% for %}")), "not compile", "--chat-template"),
    "no tokenizer": (
        LOAD, lambda f: auto(f.without("tokenizer.json")), "has no tokenizer.json and no", "--tokenizer-json"
    ),
    "no config": (LOAD, lambda f: auto(f.without("config.json")), "config.json cannot be read", "config.json"),
    "no weights": (LOAD, lambda f: auto(f.without("model.safetensors")), "has no .safetensors file", ""),
    "empty": (LOAD, lambda f: local("gguf", f.written("a.gguf", b"")), "the file is empty", "fetch it again"),
    "cut off": (LOAD, lambda f: local("gguf", f.written("a", f.gguf.read_bytes()[:-99])), "past the end", "fetch it"),
    "no model": (LOAD, lambda f: auto(f.written("a.txt", b"words")), "is a text that begins with 'words'", "download"),
    "one of two parts": (
        LOAD,
        lambda f: local("gguf", edited(f.gguf, f.here / "a-00001-of-00002.gguf", put("split.count", 2))),
        "part a-00002-of-00002.gguf is missing",
        "one folder",
    ),
    "shared heads": (LOAD, lambda f: local("llama-ggml", f.ggml), "has 32 rows, but 64 / 1 are expected", "--gqa 2"),
    "absent": (LOAD, lambda f: local("gguf", f.here / "no.gguf"), "no.gguf does not exist", "-f names the file"),
    "a folder": (LOAD, lambda f: local("gguf", f.folder), "is a folder, not a file", "mistralrs -i auto "),
    "quantized already": (LOAD, lambda f: ["--isq", "q4_k", *auto(f.gguf)], "is a GGUF file, whose", "--isq is for"),
    "quantized already, as said": (
        USAGE, lambda f: ["--isq", "q4_k", *local("gguf", f.gguf)], "gguf is a file that is quantized", "--isq is for"
    ),
    "absent tokenizer": (
        LOAD, lambda f: [*local("gguf", f.gguf), "--tokenizer-json", "no.json"], "no.json does not exist", "--tok"
    ),
    "absent template": (
        LOAD, lambda f: ["--chat-template", "no.jinja", *local("gguf", f.gguf)], "no.jinja does not exist", "--chat"
    ),
    "no such template": (
        LOAD, lambda f: ["--chat-template", "lama", *local("gguf", f.gguf)], "'lama' is no file", "llama-2, llama-3"
    ),
    "a long prompt": (
        REQUEST, lambda f: ["--system", "x" * 600, *local("gguf", f.gguf)], "context length is 512", "--truncate"
    ),
    "no X-LoRA": (
        LOAD, lambda f: ["xlora-llama", "-m", str(f.folder), "-x", str(f.folder)], "has no xlora_config.json", "-o"
    ),
    "no adapters": (
        LOAD, lambda f: ["lora-llama", "-m", str(f.folder), "-a", str(f.folder)], "has no adapter_config.json", "-o"
    ),
    "no adapter": (
        LOAD, lambda f: ["auto", str(f.folder), "--lora", str(f.folder)], "neither adapter_config.json nor a GGUF", ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_local_models(name: str, files: Files, run: Run) -> None:
    code, words, said, hint = FILES[name]
    refused(run, code, said, hint, words(files))


def test_a_chat_is_refused_before_the_first_line_is_asked_for(
    files: Files, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(files.gguf, files.here / "base.gguf", drop("tokenizer.chat_template"))
    assert main(["-i", "--threads", "1", *local("gguf", path)]) == REQUEST
    out, err = capsys.readouterr()
    assert "error: tiny has no chat template, so it cannot chat\nhint: pass one with --chat-template: a file, or" in err
    assert out == ""


PLACES: dict[str, tuple[str, Callable[[Files, Path], list[str]]]] = {
    "GGUF": ("a.gguf", lambda f, path: local("gguf", path)),
    "GGML": ("a.bin", lambda f, path: local("llama-ggml", path)),
    "safetensors": ("model.safetensors", lambda f, path: auto(path.parent)),
    "one file of safetensors": ("model.safetensors", lambda f, path: auto(path)),
    "index": ("model.safetensors.index.json", lambda f, path: auto(path.parent)),
    "config.json": ("config.json", lambda f, path: auto(path.parent)),
    "tokenizer.json": ("tokenizer.json", lambda f, path: auto(path.parent)),
    "tokenizer.model": ("tokenizer.model", lambda f, path: auto(path.parent)),
    "tokenizer_config.json": ("tokenizer_config.json", lambda f, path: auto(path.parent)),
    "--tokenizer-json": (
        "t.json",
        lambda f, path: ["gguf", "-m", "", "-f", str(f.gguf), "--tokenizer-json", str(path)],
    ),
    "--chat-template": ("t.jinja", lambda f, path: ["--chat-template", str(path), *local("gguf", f.gguf)]),
}
"""Where a file may be, and how it is then used."""


@pytest.mark.parametrize("kind", ["git-lfs", "page", "zip", "gzip", "old torch", "torch", "zeros", "text"])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_model_is_recognised_wherever_one_is_read(place: str, kind: str, files: Files, run: Run) -> None:
    if (place, kind) in {("--chat-template", "text")}:
        return  # it is one
    data, _, said, hint = KINDS[kind]
    name, words = PLACES[place]
    folder = files.copy()
    if name == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(data)
    refused(run, LOAD, said, hint, words(files, folder / name))
    (folder / name).write_bytes(b"")
    if place != "--chat-template":
        refused(run, LOAD, "empty", "", words(files, folder / name))


def test_a_download_that_took_its_room_and_did_not_end(files: Files, run: Run) -> None:
    folder = files.copy()
    for path, words in (
        (folder / "model.safetensors", auto(folder)),
        (files.written("a.gguf", files.gguf.read_bytes()), local("gguf", files.here / "a.gguf")),
    ):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3] + bytes(len(data) - len(data) * 2 // 3))
        refused(run, LOAD, "bytes of the file are zeros: the download did not end", "fetch it again", words)


REMOTE: dict[str, tuple[int, list[str], str, str]] = {
    "gated": (LOAD, ["auto", "owner/gated"], "owner/gated is gated", "--token-source"),
    "gated, wrong token": (
        LOAD, ["--token-source", "literal:hf_wrong", "auto", "owner/gated"], "owner/gated is gated", "that was let in"
    ),
    "private": (LOAD, ["auto", "owner/private"], "no repository owner/private, or it cannot be seen", "--token-source"),
    "no variable": (USAGE, ["--token-source", "env:NO_SUCH", "auto", "owner/gated"], "variable NO_SUCH is not set", ""),
    "no token file": (
        USAGE, ["--token-source", "path:/no/file", "auto", "owner/gated"], "/no/file cannot be read: No such file", ""
    ),
    "no source of tokens": (USAGE, ["--token-source", "hf_abc", "auto", "owner/gated"], "is not a source", "env:NAME"),
    "no repository": (LOAD, ["llama", "-m", "owner/none"], "no repository owner/none", "check the name"),
    "no revision": (LOAD, ["auto", "owner/public@v9"], "owner/public has no revision 'v9'", "commits"),
    "no file": (LOAD, ["llama-gguf", "-m", "owner/public", "-f", "b.gguf"], "has no file 'b.gguf'", "it has a.gguf"),
    "an adapter": (LOAD, ["auto", "owner/adapter"], "owner/adapter has no model.safetensors", "may hold an adapter"),
    "a pickle": (LOAD, ["auto", "owner/pickle"], "is a pickled PyTorch checkpoint", "safetensors"),
    "another architecture": (LOAD, ["gemma", "-m", "owner/llama"], "'llama', not 'gemma'", "-i llama -m owner/llama"),
}  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    config = json.dumps({"model_type": "llama"}).encode()
    repositories = {
        "owner/gated": Repository({"config.json": config}, gated=True),
        "owner/private": Repository({"config.json": config}, private=True),
        "owner/public": Repository({"a.gguf": b"a"}),
        "owner/llama": Repository({"config.json": config}),
        "owner/adapter": Repository({"adapter_config.json": b"{}"}),
        "owner/pickle": Repository({"config.json": config, "pytorch_model.bin": b"p"}),
    }
    with serving(repositories, monkeypatch, tmp_path / "hub") as hub:
        yield hub


@pytest.mark.parametrize("name", REMOTE)
def test_models_of_the_hub(name: str, hub: Hub, run: Run) -> None:
    code, words, said, hint = REMOTE[name]
    refused(run, code, said, hint, words)


@pytest.mark.parametrize(
    "words", [["auto", "owner/public"], ["mistral-gguf"], ["llama", "-m", "owner/llama"]], ids=" ".join
)
def test_offline_and_absent(words: list[str], hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(run, LOAD, "is not in the cache, and HF_HUB_OFFLINE forbids to download it", "unset HF_HUB_OFFLINE", words)
    assert hub.asked == []


def test_no_network_and_absent(hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    send_to("http://127.0.0.1:9", monkeypatch)
    said = "is not in the cache, and downloading it from http://127.0.0.1:9 failed"
    refused(run, LOAD, said, "check the network", ["mistral-gguf"])


def test_too_large(files: Files, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mistralrs.loading.pipeline.available_bytes", lambda: 100_000)
    refused(run, LOAD, "GiB of memory are free", "use a smaller model", local("gguf", files.gguf))
