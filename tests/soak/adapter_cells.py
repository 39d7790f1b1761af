"""Every field of an adapter on every kind of base, merged and live, against peft.

    python -m tests.soak.adapter_cells [--sample N] [--seed 1] [--report FILE]

A cell is a field of `LoraConfig`, an architecture, a format of the base and a way to use the adapter. Its logits must
be those of peft on the base's weights as the file has them, or the adapter must be refused by name. Anything else is
listed in the report and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, cast
from unittest.mock import patch

import gguf
import numpy as np
import torch
from peft import PeftModel

from mistralrs.adapters.adapter_placement import AdapterPlacement
from mistralrs.adapters.lora.module_names import module_names
from mistralrs.adapters.lora.peft_files import read_peft
from mistralrs.errors import LoadError
from mistralrs.ops.backend import resolve
from mistralrs.ops.linear import AdapterUse
from mistralrs.quant.types import TYPES
from tests.adapters.merging import merging
from tests.adapters.peft_adapters import adapted, quiet, write_adapter
from tests.adapters.test_merging import FIELDS
from tests.architectures import VARIANTS, Variant, keeps_float, read_weights, reference, write_folder
from tests.ggml_writer import write_ggml_of
from tests.gguf_of import write_gguf
from tests.parity.running import Running, random_tokens
from tests.tiny import TOKENIZER_SIZE
from tests.tolerances import MERGED_LOGITS, REQUANTIZED_LOGITS, TWO_TERMS

NAMES = ("llama", "mistral", "mixtral", "gemma", "phi2", "qwen3")
FORMATS = ("safetensors", "GGUF F16", "GGUF Q8_0", "GGUF Q4_K", "GGML")
WAYS = ("merged", "live")
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_attention_heads": 4}
"""Sizes that the blocks of K types divide."""
TOLERANCES = {"Q8_0": REQUANTIZED_LOGITS / 5, "Q4_K": REQUANTIZED_LOGITS}
"""Of merged matrices that are quantized again: a weight near the middle between two steps may take the other one."""
EXPECTED_REFUSALS = re.compile(
    r"(bias|modules_to_save|trainable_token_indices|use_dora): such an adapter changes the base"
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A case, and what came of it."""

    field: str
    name: str
    format: str
    way: str

    def __str__(self) -> str:
        return f"{self.field}, {self.name}, {self.format}, {self.way}"


@dataclass(frozen=True, slots=True)
class Result:
    """``outcome``: equal, refused or wrong; ``detail``: the difference, the reason, or the fault."""

    cell: Cell
    outcome: str
    detail: str


def tokens(seed: int) -> list[int]:
    """Returns token ids, among them those that the fields name."""
    return [5, 77, 100, 9, 3, *random_tokens(TOKENIZER_SIZE, 40, seed=seed)]


def all_cells() -> list[Cell]:
    """Returns every cell. GGML files have Llama models alone."""
    return [
        Cell(field, name, format_, way)
        for field in FIELDS
        for name in NAMES
        for format_ in FORMATS
        for way in WAYS
        if format_ != "GGML" or name == "llama"
    ]


class Bases:
    """Bases and adapters, each written once, and peft's logits."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = cache(self._folder)
        self.base = cache(self._base)
        self.adapter = cache(self._adapter)
        self.expected = cache(self._expected)

    def _variant(self, name: str, format_: str) -> Variant:
        if format_ == "GGML":
            return Variant("llama", {"rms_norm_eps": 1e-5})
        variant = VARIANTS[name]
        if format_ != "GGUF Q4_K":
            return variant
        heads = {"num_key_value_heads": 4 if name == "phi2" else 2}
        return Variant(variant.model_type, {**variant.settings, **WIDE, **heads})

    def _folder(self, name: str, format_: str) -> Path:
        """The model in float32 as a file of this format has it."""
        stored = format_.removeprefix("GGUF ")
        decoded_as = stored if stored in TOLERANCES else None
        with our_quantizer():
            path = self._root / f"{name}-{format_.replace(' ', '-')}"
            return write_folder(path, self._variant(name, format_), dtype=torch.float32, decoded_as=decoded_as)

    def _base(self, name: str, format_: str) -> Path:
        if format_ == "safetensors":
            return self.folder(name, format_)
        if format_ == "GGML":
            return write_ggml_of(self._root / f"{name}.bin", self.folder(name, format_), type_="F16")
        stored = format_.removeprefix("GGUF ")
        plain = write_folder(self._root / f"{name}-{stored}-plain", self._variant(name, format_), dtype=torch.float32)
        with our_quantizer():
            return write_gguf(self._root / f"{name}-{stored}.gguf", plain, type_=stored)

    def _adapter(self, field: str, name: str, format_: str) -> Path:
        path = self._root / f"adapter-{field}-{name}-{format_.replace(' ', '-')}"
        return write_adapter(path, self.folder(name, format_), seed=3, settings=FIELDS[field])

    def _expected(self, field: str, name: str, format_: str, way: str) -> Callable[[list[int]], torch.Tensor]:
        """The logits of peft for token ids."""
        folder, path = self.folder(name, format_), self.adapter(field, name, format_)
        stored = format_.removeprefix("GGUF ")
        if way == "merged" and stored in TOLERANCES:
            model = requantized(folder, path, stored)
        else:
            model = adapted(folder, {"a": path})
        # peft forgets the bias of a head with trainable rows, but when it merges
        forgets = "lm_head" in str(FIELDS[field].get("trainable_token_indices")) and isinstance(model, PeftModel)
        bias = read_weights(folder)["lm_head.bias"] if forgets and name == "phi2" else 0

        def logits(ids: list[int]) -> torch.Tensor:
            with torch.inference_mode():
                return torch.add(model(torch.tensor([ids])).logits[0], bias)

        return logits


def requantized(folder: Path, path: Path, stored: str) -> torch.nn.Module:
    """Returns the model that peft merged, after the changed matrices went through their type again.

    Where peft's merging falls short of what it computes unmerged, the model is prepared: a head that is the embedding
    becomes a matrix of its own, and layers get biases for ``lora_bias`` to be added to.
    """
    model, before = reference(folder), reference(folder).state_dict()
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    changed = str(config["target_modules"]) + str(config["modules_to_save"])
    if "embed_tokens" in changed or "lm_head" in changed + str(config["trainable_token_indices"]):
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    wrapped = PeftModel.from_pretrained(model, str(path))
    for layer in wrapped.modules():
        base = getattr(layer, "base_layer", None)
        if config["lora_bias"] and isinstance(base, torch.nn.Linear) and base.bias is None:
            base.bias = torch.nn.Parameter(torch.zeros(base.out_features))
    merged: torch.nn.Module = cast(Any, wrapped).merge_and_unload()
    storage = gguf.GGMLQuantizationType[stored]
    with our_quantizer(), torch.inference_mode():
        for name, weight in merged.named_parameters():
            kept = keeps_float(name, tuple(weight.shape))
            if not kept and not (name in before and torch.equal(before[name], weight)):
                rows = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), storage), storage)
                weight.copy_(torch.from_numpy(rows))
    return merged


@contextmanager
def our_quantizer() -> Iterator[None]:
    """Lets the `gguf` package quantize as merging does; to K types it cannot, and it decodes all."""
    backend, plain = resolve("cpu", threads=1, isa="torch").backend, gguf.quants.quantize

    def quantize(data: np.ndarray, target: gguf.GGMLQuantizationType) -> np.ndarray:
        if target.name not in TOLERANCES:
            return plain(data, target)
        rows = np.ascontiguousarray(data.reshape(-1, data.shape[-1]), dtype=np.float32)
        blocks = np.frombuffer(backend.quantize("weights", TYPES[target.name], rows.data), dtype=np.uint8)
        return blocks.reshape(*data.shape[:-1], -1)

    with patch("gguf.quants.quantize", quantize):
        yield


def run(cell: Cell, bases: Bases) -> Result:
    """Loads the base with the adapter and compares."""
    path = bases.adapter(cell.field, cell.name, cell.format)
    try:
        running, uses = _load(cell, bases.base(cell.name, cell.format), path)
    except LoadError as error:
        expected = EXPECTED_REFUSALS.search(error.message)
        return Result(cell, "refused" if expected else "wrong", expected[1] if expected else error.message)
    model = bases.expected(cell.field, cell.name, cell.format, cell.way)
    stored = cell.format.removeprefix("GGUF ")
    allowed = MERGED_LOGITS
    if stored in TOLERANCES:
        allowed = TOLERANCES[stored] if cell.way == "merged" else TWO_TERMS
    # int8 activations move the router's outputs, and now and then a token to another expert: then two of three texts
    # must be equal
    seeds = (8, 9, 10) if cell.name == "mixtral" and stored in TOLERANCES else (8,)
    found = sorted(difference(running.whole(tokens(seed), uses), model(tokens(seed))) for seed in seeds)
    off = found[len(found) // 2]
    return Result(cell, "equal" if off <= allowed else "wrong", f"{off:.1e}")


def difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest difference in units of the range of the logits."""
    return float((logits - expected).abs().max() / (expected.amax() - expected.amin()))


def _load(cell: Cell, base: Path, path: Path) -> tuple[Running, list[AdapterUse]]:
    """Returns the model with the adapter, and what acts on a sequence."""
    gqa = 2 if cell.format == "GGML" else 1
    if cell.way == "merged":
        merge = merging((path, 1.0))
        return Running.load(base, precision="f32", isa="torch", threads=1, dtype="f32", gqa=gqa, merge=merge), []
    running = Running.load(base, precision="f32", isa="torch", threads=1, dtype="f32", gqa=gqa, adapter_slots=1)
    model = running.model
    placement = AdapterPlacement(model.decoder, running.backend, in_half_precision=False)
    placement.write(0, placement.prepare(read_peft(path, module_names(model.architecture, model.spec))))
    return running, [AdapterUse(0)]


def run_cells(cells: Sequence[Cell], root: Path, *, tell: Callable[[int], None] = lambda done: None) -> list[Result]:
    """Returns what came of each cell."""
    bases = Bases(root)
    results = []
    for done, cell in enumerate(cells, 1):
        results.append(run(cell, bases))
        tell(done)
    return results


def report(results: Sequence[Result], *, seed: int | None) -> str:
    """Returns the report as Markdown."""
    lines = [
        "# Adapters on every kind of base",
        "",
        f"{'Every cell' if seed is None else f'A sample of the cells, seed {seed}'}: a field of `LoraConfig`, one of "
        f"{', '.join(NAMES)}, a format",
        "of the base, merged or live. Equal: the logits are those of peft on the weights of the file, within "
        f"{MERGED_LOGITS:.0e} of their",
        f"range; where merged matrices are quantized again, within {TOLERANCES['Q8_0']:.0e} (Q8_0) and "
        f"{TOLERANCES['Q4_K']:.0e} (Q4_K) of peft's merged model whose",
        f"matrices went through the type; live on these, within {TWO_TERMS:.0e}, which int8 activations cost. Of "
        "Mixtral's texts",
        "on these, two of three: int8 activations may move a token to another expert.",
        "",
        "| field | " + " | ".join(f"{format_}, {way}" for format_ in FORMATS for way in WAYS) + " |",
        "| --- |" + " --- |" * (len(FORMATS) * len(WAYS)),
    ]
    found: Mapping[tuple[str, str, str], list[Result]] = defaultdict(list)
    for result in results:
        cell = result.cell
        found[cell.field, cell.format, cell.way].append(result)
    for field in FIELDS:
        cells = [_shown(found[field, format_, way]) for format_ in FORMATS for way in WAYS]
        lines.append(f"| {field} | " + " | ".join(cells) + " |")
    wrong = [result for result in results if result.outcome == "wrong"]
    counts = Counter(result.outcome for result in results)
    lines += ["", f"{counts['equal']} equal, {counts['refused']} refused by name, {counts['wrong']} wrong.", ""]
    lines += ["## Not as it should be", ""]
    lines += [f"- {result.cell}: {result.detail}" for result in wrong] or ["Nothing."]
    return "\n".join(lines) + "\n"


def _shown(results: Sequence[Result]) -> str:
    """How many are equal and how far off the worst is, and why others are refused."""
    equal = [result.detail for result in results if result.outcome == "equal"]
    refused = Counter(result.detail for result in results if result.outcome == "refused")
    wrong = sum(result.outcome == "wrong" for result in results)
    parts = [f"{len(equal)} equal ({max(equal, key=float)})"] if equal else []
    parts += [f"{count} refused: {reason}" for reason, count in refused.items()]
    parts += [f"{wrong} WRONG"] if wrong else []
    return ", ".join(parts) or "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="so many cells, drawn by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = all_cells()
    if args.sample is not None:
        cells = Random(args.seed).sample(cells, args.sample)

    def tell(done: int) -> None:
        if done % 50 == 0:
            print(f"{done}/{len(cells)}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as root, quiet():
        results = run_cells(cells, Path(root), tell=tell)
    text = report(results, seed=None if args.sample is None else args.seed)
    if args.report is not None:
        args.report.write_text(text, encoding="utf-8")
    print(text)
    return int(any(result.outcome == "wrong" for result in results))


if __name__ == "__main__":
    sys.exit(main())
