"""``Which``: a class for every row, with the original's names and orders, that means what the command line means."""

from __future__ import annotations

import ast
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mistralrs import Architecture, LoadError, UsageError, Which
from mistralrs.api.load_options import LoadOptions
from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions
from mistralrs.api.selectors.model_choice import (
    ModelChoice,
    check_together,
    find_source,
    in_situ_type,
    repeat_last_n_of,
    template_of,
)
from mistralrs.api.selectors.model_selector import GENERAL, ORIGINAL, SELECTORS, ModelSelector, required_of
from mistralrs.api.selectors.named_adapters import find_adapters
from mistralrs.api.selectors.which_fields import PythonErrorFormatter, class_name
from mistralrs.models.registry import ARCHITECTURES
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import Invocation, resolve

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "write_which_stub.py"
STUB = ROOT / "mistralrs" / "api" / "selectors" / "which.pyi"
WORDING = PythonErrorFormatter()

FILE = "tok_model_id tokenizer_json quantized_model_id quantized_filename"
X_LORA = "model_id tokenizer_json xlora_model_id repeat_last_n order tgt_non_granular_index"
X_LORA_GGUF = f"{FILE} repeat_last_n xlora_model_id order tgt_non_granular_index"
LORA = "model_id tokenizer_json adapters_model_id repeat_last_n order"
LORA_GGUF = f"{FILE} repeat_last_n adapters_model_id order"

# The variants of mistral.rs and the order of their fields.
ORIGINALS = {
    **dict.fromkeys(("Mistral", "Gemma", "Llama", "Mixtral", "Phi2"), "model_id tokenizer_json repeat_last_n"),
    **dict.fromkeys(("MistralGGUF", "LlamaGGUF", "MixtralGGUF"), f"{FILE} repeat_last_n"),
    "LlamaGGML": f"{FILE} repeat_last_n gqa",
    **dict.fromkeys(("XLoraMistral", "XLoraGemma", "XLoraLlama", "XLoraMixtral", "XLoraPhi2"), X_LORA),
    **dict.fromkeys(("XLoraMistralGGUF", "XLoraLlamaGGUF", "XLoraMixtralGGUF"), X_LORA_GGUF),
    "XLoraLlamaGGML": f"{FILE} repeat_last_n xlora_model_id order gqa tgt_non_granular_index",
    **dict.fromkeys(("LoraMistral", "LoraMixtral", "LoraLlama"), LORA),
    "LoraMistralGGUF": f"{FILE} adapters_model_id repeat_last_n order",
    **dict.fromkeys(("LoraLlamaGGUF", "LoraMixtralGGUF"), LORA_GGUF),
    "LoraLlamaGGML": f"{LORA_GGUF} gqa",
}
NUMBERS = ("repeat_last_n", "gqa", "tgt_non_granular_index")


def class_of(row: ModelSelector) -> type[Any]:
    found: type[Any] = getattr(Which, class_name(row))
    return found


def names_of(row: ModelSelector) -> list[str]:
    return list(inspect.signature(class_of(row)).parameters)


def values_of(row: ModelSelector) -> dict[str, Any]:
    """A value for each field."""
    return {name: 8 if name in NUMBERS else f"a/{name}" for name in names_of(row)}


def task(*words: str) -> Invocation:
    parsed = parse(["-i", *words])
    assert parsed is not None
    found = resolve(parsed)
    assert isinstance(found, Invocation)
    return found


def test_the_25_of_mistral_rs() -> None:
    assert len(ORIGINALS) == 25
    assert {class_name(row): " ".join(names_of(row)) for row in ORIGINAL} == ORIGINALS


# The general variants of later versions and the order of their fields, behind which ours has others.
ANY_FILE, REST = "tok_model_id quantized_model_id quantized_filename", "tokenizer_json repeat_last_n"
ANY_X_LORA = "xlora_model_id order tgt_non_granular_index"
GENERALS = {
    "Plain": f"model_id arch {REST}",
    "Lora": f"arch adapters_model_id order model_id {REST}",
    "XLora": f"arch {ANY_X_LORA} model_id {REST}",
    "GGUF": f"{ANY_FILE} {REST} arch",
    "GGML": f"{ANY_FILE} {REST} gqa arch",
    "LoraGGUF": f"{ANY_FILE} adapters_model_id order {REST} arch",
    "LoraGGML": f"{ANY_FILE} adapters_model_id order {REST} gqa arch",
    "XLoraGGUF": f"{ANY_FILE} {ANY_X_LORA} {REST} arch",
    "XLoraGGML": f"{ANY_FILE} {ANY_X_LORA} {REST} gqa arch",
}


def test_the_general_ones_of_later_versions() -> None:
    assert {class_name(row): " ".join(names_of(row)) for row in GENERAL} == GENERALS


def test_architectures_are_those_that_there_are() -> None:
    assert {*Architecture} == ARCHITECTURES.keys()
    assert find_source(Which.Plain("a/b", Architecture.Qwen2).choice(), WORDING).architecture == "qwen2"
    assert find_source(Which.Plain("a/b", "qwen2").choice(), WORDING).architecture == "qwen2"
    assert find_source(Which.Plain("a/b").choice(), WORDING).architecture is None
    with pytest.raises(UsageError, match="arch: 'bert' is no architecture"):
        find_source(Which.GGUF(quantized_filename=__file__, arch="bert").choice(), WORDING)
    with pytest.raises(TypeError, match=r"Which.Plain: arch must be Architecture \| str \| None, not int"):
        Which.Plain("a/b", 3)  # type: ignore[arg-type]


def test_every_row_has_a_class_of_its_own() -> None:
    classes = {class_of(row) for row in SELECTORS.values()}
    assert len(classes) == len(SELECTORS)
    assert {name for name, each in vars(Which).items() if isinstance(each, type)} == {each.__name__ for each in classes}
    assert {"Auto", "GGUF", "GemmaGGUF", "Qwen2", "Phi3GGUF"} <= {each.__name__ for each in classes}
    assert all(issubclass(each, Which) and class_of(each.row) is each for each in classes)


@pytest.mark.parametrize("row", SELECTORS.values(), ids=lambda row: row.name)
def test_by_position_is_by_name(row: ModelSelector) -> None:
    values = values_of(row)
    made = class_of(row)(*values.values())
    assert made == class_of(row)(**values)
    assert {name: getattr(made, name) for name in values} == values
    assert pickle.loads(pickle.dumps(made)) == made
    assert eval(repr(made), {"Which": Which}) == made
    with pytest.raises(AttributeError):
        made.repeat_last_n = 1


@pytest.mark.parametrize("row", [row for row in SELECTORS.values() if row.adapter is None], ids=lambda row: row.name)
def test_defaults_are_those_of_the_command_line(row: ModelSelector) -> None:
    file = {"quantized_model_id": "a/b", "quantized_filename": "c"}
    given = {"auto": {"source": "a/b"}, "plain": {"model_id": "a/b"}, "gguf": file, "ggml": file}
    named = ["-m", "a/b", "-f", "c"]
    options = {"auto": ["a/b"], "plain": ["-m", "a/b"], "gguf": named, "ggml": named}
    choice = class_of(row)(**given.get(row.name, {})).choice()
    told = task(row.name, *options.get(row.name, []))
    assert find_source(choice, WORDING) == told.source
    assert template_of(choice) == told.load.chat_template
    assert (choice.tok_model_id, choice.tokenizer_json) == (None, None)
    assert repeat_last_n_of(choice) == told.job.sampling.repeat_last_n == 64


def test_fields_mean_what_the_options_mean(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.touch()
    choice = Which.LlamaGGML("tok/en", "t.json", "", str(file), 7, 8).choice()
    words = (
        "-t",
        "tok/en",
        "--tokenizer-json",
        "t.json",
        "-m",
        "",
        "-f",
        str(file),
        "--repeat-last-n",
        "7",
        "--gqa",
        "8",
    )
    told = task("llama-ggml", *words)
    assert find_source(choice, WORDING) == told.source
    assert (choice.tok_model_id, choice.tokenizer_json) == (told.load.tok_model_id, told.load.tokenizer_json)
    assert repeat_last_n_of(choice) == told.job.sampling.repeat_last_n == 7
    assert repeat_last_n_of(Which.Mistral(repeat_last_n=-1).choice()) == 2**31 - 1  # all
    assert Which.Mistral(tokenizer_json=Path("t.json")).choice().tokenizer_json == Path("t.json")


@pytest.mark.parametrize("row", [row for row in SELECTORS.values() if row.adapter], ids=lambda row: row.name)
def test_adapters_are_those_of_the_command_line(row: ModelSelector, tmp_path: Path) -> None:
    order = tmp_path / "order.json"
    order.write_text('{"order": ["x", "y"], "base_model_id": "owner/base"}')
    needed = {name: f"ad/{name}" for name in required_of(row)}
    if "quantized_filename" in needed:
        needed["quantized_model_id"] = "owner/file"
    words = [word for name, value in needed.items() for word in (f"--{name.replace('_', '-')}", value)]
    choice = class_of(row)(**needed, order=order).choice()
    told = task(row.name, *words, "-o", str(order))
    assert find_source(choice, WORDING) == told.source
    assert find_adapters(choice, WORDING) == told.load.adapters
    assert told.load.adapters.ordering == order
    if row.format == "plain":
        assert told.source.repo == "owner/base"
    if row.adapter == "x-lora":
        assert find_adapters(class_of(row)(**needed, tgt_non_granular_index=3).choice(), WORDING) == AdapterOptions(
            xlora=row.adapter_repo or "ad/xlora_model_id", non_granular_index=3
        )


def test_an_ordering_in_the_user_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "order.json").write_text('{"order": ["x"]}')
    assert find_adapters(Which.LoraMistral(order="~/order.json").choice(), WORDING).ordering == tmp_path / "order.json"


def test_auto_takes_x_lora_for_any_architecture() -> None:
    choice = Which.Auto("owner/base", xlora="owner/xlora", tgt_non_granular_index=1).choice()
    assert find_adapters(choice, WORDING) == AdapterOptions(xlora="owner/xlora", non_granular_index=1)
    with pytest.raises(UsageError, match="order needs xlora"):
        find_adapters(Which.Auto("owner/base", order="order.json").choice(), WORDING)
    with pytest.raises(UsageError, match="tgt_non_granular_index is -1"):
        Which.Auto("owner/base", xlora="owner/xlora", tgt_non_granular_index=-1)


def test_a_base_that_nothing_names_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        find_source(Which.XLoraGemma(xlora_model_id="a/b").choice(), WORDING)
    assert refused.value.message == (
        "x-lora-gemma needs model_id='REPO' or a path, or an ordering (order) that names the base"
    )


@pytest.mark.parametrize(
    ("name", "fields", "kind", "said"),
    [
        ("GGUF", {}, TypeError, "Which.GGUF: quantized_filename must be given"),
        ("Auto", {}, TypeError, "Which.Auto: source must be given"),
        ("XLoraGemma", {"model_id": "a/b", "order": "o"}, TypeError, "Which.XLoraGemma: xlora_model_id must be given"),
        ("LoraLlama", {}, TypeError, "Which.LoraLlama: adapters_model_id must be given"),
        ("LoraMistral", {"order": 3}, TypeError, "Which.LoraMistral: order must be str"),
        ("Mistral", {"model_id": 3}, TypeError, r"model_id must be str \| None, not int"),
        ("Mistral", {"tokenizer_json": 3}, TypeError, r"tokenizer_json must be str \| os.PathLike"),
        ("Mistral", {"repeat_last_n": "64"}, TypeError, r"repeat_last_n must be int \| None, not str"),
        ("Mistral", {"repeat_last_n": True}, TypeError, r"repeat_last_n must be int \| None, not bool"),
        ("Mistral", {"repeat_last_n": -2}, UsageError, "Which.Mistral: repeat_last_n is -2"),
        ("LlamaGGML", {"gqa": 0}, UsageError, "Which.LlamaGGML: gqa is 0"),
        ("MistralGGUF", {"gqa": 8}, TypeError, "gqa"),
        ("Mistral", {"modelid": "a/b"}, TypeError, "modelid"),
    ],
)
def test_wrong_fields_are_named(name: str, fields: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        getattr(Which, name)(**fields)


def test_which_itself_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"such as Which.Auto\(source\)"):
        Which()
    with pytest.raises(AttributeError):
        _ = Which.Bert  # type: ignore[attr-defined]


def test_what_cannot_be_found_is_said_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").touch()
    cases: list[tuple[Which, type[Exception], str, str]] = [
        (Which.MistralGGUF(quantized_filename="model.gguf"), UsageError, "is here, but", "add quantized_model_id=''"),
        (Which.GGUF(quantized_filename=""), UsageError, "needs quantized_filename='FILE'", "Which.GGUF(quantized_"),
        (Which.GGUF(quantized_filename="no.gguf"), LoadError, "no.gguf does not exist", "quantized_filename names"),
        (Which.GGUF(quantized_filename="."), LoadError, "is a folder", "Which.Auto(source='.')"),
        (Which.Mistral(model_id=""), UsageError, "needs model_id='REPO'", "Which.Mistral(model_id='OWNER/NAME')"),
        (Which.Auto(""), UsageError, "auto needs a model", "Which.Auto(source='OWNER/NAME')"),
        (Which.Auto("model.gguf", "b.gguf"), UsageError, "so filename='b.gguf' means nothing", "leave one of them out"),
    ]
    for which, kind, said, hint in cases:
        with pytest.raises(kind) as refused:
            find_source(which.choice(), WORDING)
        assert said in str(refused.value)
        assert hint in (getattr(refused.value, "hint", None) or "")


def test_in_situ_types() -> None:
    assert in_situ_type(None, SELECTORS["gguf"], WORDING) is None
    assert (
        in_situ_type("Q4_K", SELECTORS["llama"], WORDING) == in_situ_type("q4_k", SELECTORS["auto"], WORDING) == "q4_k"
    )
    with pytest.raises(UsageError) as refused:
        in_situ_type("q4_k", SELECTORS["mistral-gguf"], WORDING)
    assert refused.value.message == "in_situ_quant='q4_k': mistral-gguf is a file that is quantized already"
    assert refused.value.hint is not None
    assert refused.value.hint.endswith("Runner(Which.Auto(source='REPO'), in_situ_quant='TYPE')")


def test_options_that_undo_each_other() -> None:
    def check(**given: Any) -> None:
        nothing = {"kv_dir": False, "no_kv_cache": False, "prefix_cache_n": None, "max_draft": None}
        nothing |= {"draft_model": False, "no_pack": False, "isq": None}
        nothing |= {"kv_cache_dtype": "auto", "precision": "default", "dtype": "auto"}
        check_together(**(nothing | given), formatter=WORDING)

    for sound in ({"kv_dir": True, "prefix_cache_n": 1}, {"no_kv_cache": True, "max_draft": 0}, {"max_draft": 4}):
        check(**sound)
    with pytest.raises(UsageError, match="kv_dir keeps what no_kv_cache=True throws away"):
        check(kv_dir=True, no_kv_cache=True)
    with pytest.raises(UsageError, match="kv_dir keeps what prefix_cache_n=0 throws away"):
        check(kv_dir=True, prefix_cache_n=0)
    with pytest.raises(UsageError, match="draft_model has no effect with no_kv_cache=True"):
        check(draft_model=True, no_kv_cache=True)
    with pytest.raises(UsageError, match="draft_model has no effect with max_draft=0"):
        check(draft_model=True, max_draft=0)
    with pytest.raises(UsageError, match="no_pack=True leaves weights as they are stored, which in_situ_quant changes"):
        check(no_pack=True, isq="q4_k")
    with pytest.raises(UsageError, match="max_draft has no effect with no_kv_cache=True"):
        check(max_draft=4, no_kv_cache=True)


def test_a_choice_holds_all_that_names_weights() -> None:
    known = {name for row in SELECTORS.values() for name in names_of(row)}
    assert known == {each for each in ModelChoice.__dataclass_fields__ if each not in ("selector", "lora")}
    assert {"tok_model_id", "tokenizer_json"} <= set(LoadOptions.__dataclass_fields__)


# The stub


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], cwd=ROOT, capture_output=True, text=True)


def test_the_stub_is_fresh() -> None:
    done = generate("--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_stub_is_named_and_mended(tmp_path: Path) -> None:
    stub = tmp_path / "mistralrs" / "api" / "selectors" / "which.pyi"
    stub.parent.mkdir(parents=True)
    stub.write_text("class Which: ...\n")
    done = generate("--check", "--root", str(tmp_path))
    assert (done.returncode, str(stub) in done.stderr) == (1, True)
    assert generate("--root", str(tmp_path)).returncode == 0
    assert stub.read_text() == STUB.read_text()


def test_the_stub_has_the_fields_of_the_classes() -> None:
    [which] = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)]
    classes = {node.name: node for node in which.body if isinstance(node, ast.ClassDef)}
    assert list(classes) == [class_name(row) for row in SELECTORS.values()]
    for row in SELECTORS.values():
        inits = [node for node in classes[class_name(row)].body if isinstance(node, ast.FunctionDef)]
        for init in inits:
            by_name = [argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)]
            assert by_name == ["self", *names_of(row)]
        needs_one = any(len(init.args.kwonlyargs) for init in inits)
        assert len(inits) == (2 if needs_one else 1)
