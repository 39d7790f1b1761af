"""Reads a LoRA adapter as peft saves it, and finds what each of its tensors acts on."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from mistralrs.adapters.lora.lora import LoraAdapter, LoraDelta, TokenRows, digest_of
from mistralrs.adapters.lora.lora_config import CONFIG_NAME, LoraConfig, read_lora_config
from mistralrs.adapters.lora.module_names import FusedExperts, Module, ModuleNames, ModulePart
from mistralrs.adapters.lora.peft_tensors import PeftTensors, Slots, matrix_of, read_tensors
from mistralrs.adapters.lora.target_modules import is_saved, matched, targets_module, targets_parameter
from mistralrs.errors import LoadError
from mistralrs.loading.checkpoint import RawTensor
from mistralrs.loading.cursor import shown
from mistralrs.models.parts import WeightKey
from mistralrs.ops.weight import Matrix

_UNSWAPPED = (0, 19, 1)
"""The version of peft from which on A reads what an expert reads. Before, it read the rows of a fused parameter, and
the product of B and A was the transpose of what is added."""
_OTHER_BASE = "the adapter is for another base, or damaged: see base_model_name_or_path in its adapter_config.json"


def read_peft(folder: Path, names: ModuleNames, *, name: str | None = None, source: str | None = None) -> LoraAdapter:
    """The adapter in ``folder``, which has `adapter_config.json` and `adapter_model.safetensors`.

    ``names``: the modules of the base. ``name``: default that of the folder. ``source``: default the folder's path.
    Raises ``LoadError`` and ``FormatError``, which name the file, the key and what was expected there, for a file that
    is missing or damaged, a setting that is not supported, and an adapter that does not fit the base.
    """
    if not folder.is_dir():
        raise LoadError(f"{folder} is not a folder", hint="give the folder of an adapter, as peft saves it")
    if not (folder / CONFIG_NAME).is_file():
        raise LoadError(f"{folder} has no {CONFIG_NAME}", hint="give the folder of an adapter, as peft saves it")
    config = read_lora_config(folder / CONFIG_NAME)
    found = _Resolution(config, names, read_tensors(folder))
    found.resolve()
    return found.adapter(name or folder.resolve().name, source or str(folder))


@dataclass(frozen=True, slots=True)
class _Target:
    """A module that the configuration means, with the name by which rank and alpha are chosen."""

    module: Module
    key: str


@dataclass(slots=True)
class _Resolution:
    """An adapter while its tensors are assigned to parts."""

    config: LoraConfig
    names: ModuleNames
    tensors: PeftTensors
    deltas: dict[WeightKey, LoraDelta] = field(default_factory=dict)
    replaced: dict[WeightKey, Matrix] = field(default_factory=dict)
    replaced_vectors: dict[WeightKey, array[float]] = field(default_factory=dict)
    replaced_biases: dict[WeightKey, array[float]] = field(default_factory=dict)
    replaced_rows: dict[WeightKey, TokenRows] = field(default_factory=dict)
    base_copies: dict[WeightKey, Matrix] = field(default_factory=dict)
    expected: dict[WeightKey, str] = field(default_factory=dict)
    """Every part that the configuration means, with the path to name it by."""

    def resolve(self) -> None:
        targets, experts = dict(self._targets()), dict(self._expert_targets())
        for (path, depth), slots in self.tensors.lora.items():
            if path in self.names.experts:
                self._experts(path, slots, experts)
            elif depth == 0 and path in targets:
                self._module(targets[path], slots)
            else:
                self._refuse_unknown(path, slots)
        for path, slots in self.tensors.plain.items():
            self._plain(path, slots)
        for path, slots in self.tensors.base.items():
            self._base(path, slots)
        self._rows()
        self._check_complete()

    # The modules that are meant

    def _modules(self) -> Iterator[tuple[str, Module]]:
        """All modules by path, routers also by the path that they have in transformers 5."""
        yield from self.names.modules.items()
        yield from self.names.routers.items()

    def _targets(self) -> Iterator[tuple[str, _Target]]:
        for path, module in self._modules():
            if module.kind == "norm":
                continue
            name = self.tensors.name_in_file(path)
            own = path in self.names.modules and targets_module(self.config, name, linear=module.kind == "linear")
            part = module.parts[0].key.part
            parameter = (part != "router" or path in self.names.routers) and not part.startswith("expert_")
            if parameter and targets_parameter(self.config, f"{name}.weight"):
                if own:
                    raise self.config.error("target_parameters", f"has {shown(path)}, which target_modules has as well")
                yield path, _Target(module, f"{name}.weight")
            elif own:
                yield path, _Target(module, name)
            else:
                continue
            self.expected |= {part.key: path for part in module.parts}

    def _expert_targets(self) -> Iterator[tuple[str, FusedExperts]]:
        for pair in self.names.experts.values():
            for fused in pair:
                if targets_parameter(self.config, self.tensors.name_in_file(fused.path)):
                    self.expected |= {part.key: fused.path for parts in fused.parts for part in parts}
                    yield fused.path, fused

    def _refuse_unknown(self, path: str, slots: Slots) -> None:
        raw = next(iter(slots.values()))
        if path in self.names.modules or path in self.names.routers:
            reason = "is of a module that target_modules and target_parameters do not name"
            raise self.tensors.error(raw.name, reason, hint="the adapter's two files do not belong together")
        raise self.tensors.error(
            raw.name, f"is of a module {shown(path)}, which the base does not have", hint=_OTHER_BASE
        )

    def _check_complete(self) -> None:
        for key, path in self.expected.items():
            if key not in self.deltas:
                raise self.tensors.error(
                    f"{path}.lora_A", f"is missing: {CONFIG_NAME} says that the adapter acts there"
                )
        for path, module in self._modules():
            if self._is_saved(path):
                self._check_saved(path, module.parts)
        for pair in self.names.experts.values():
            for fused in pair:
                if self._is_saved(fused.path):
                    self._check_saved(fused.path, tuple(part for parts in fused.parts for part in parts))
        if not (self.deltas or self.replaced or self.replaced_vectors or self.replaced_rows):
            where = ", ".join(sorted({path.rpartition(".")[2] for path in self.names.modules}))
            reason = f"acts on no module of the base, which has {where}"
            raise self.config.error("target_modules", reason, hint=_OTHER_BASE)

    def _is_saved(self, path: str) -> bool:
        return is_saved(self.config, self.tensors.name_in_file(path))

    def _check_saved(self, path: str, parts: tuple[ModulePart, ...]) -> None:
        for part in parts:
            if part.key not in self.replaced and part.key not in self.replaced_vectors:
                raise self.tensors.error(f"{path}.weight", "is missing: modules_to_save names its module")

    # Low-rank matrices

    def _module(self, target: _Target, slots: Slots) -> None:
        module, embedding = target.module, target.module.kind == "embedding"
        wanted = ["lora_embedding_A", "lora_embedding_B"] if embedding else ["lora_A", "lora_B"]
        self._check_slots(module.path, slots, wanted)
        rank, scale = self._rank_and_scale(target.key)
        means = f"rank {rank} from {CONFIG_NAME}, {module.rows} rows and {module.columns} columns from the base"
        a, b = (slots[slot] for slot in wanted)
        if embedding:
            a_bits = self.tensors.bits(a, (rank, module.rows), means=means).T
            b_bits = self.tensors.bits(b, (module.columns, rank), means=means)
            rows = module.columns
        else:
            a_bits = self.tensors.bits(a, (rank, module.columns), means=means)
            b_bits = self.tensors.bits(b, (module.rows, rank), means=means)
            rows = module.rows
        bias = self._vector(slots.get("lora_B.bias"), rows, means=means)
        magnitude = self._vector(slots.get("lora_magnitude_vector"), rows, means=means)
        matrix = matrix_of(a.name, a.type, a_bits)
        for part in module.parts:
            piece = slice(None) if embedding else slice(part.start, part.start + part.rows)
            self.deltas[part.key] = LoraDelta(
                a=matrix,
                b=matrix_of(b.name, b.type, b_bits[piece]),
                scale=scale,
                bias=None if bias is None else array("f", (value * scale for value in bias[piece])),
                magnitude=None if magnitude is None else magnitude[piece],
            )

    def _check_slots(self, path: str, slots: Slots, wanted: list[str]) -> None:
        """Raises ``FormatError`` unless there are just the tensors that the configuration asks for."""
        if self.config.use_dora:
            wanted = [*wanted, "lora_magnitude_vector"]
        if self.config.lora_bias:
            if "lora_embedding_A" in wanted or ".experts." in path:
                raise self.config.error("lora_bias", f"is true for {shown(path)}, where no layer has such a bias")
            wanted = [*wanted, "lora_B.bias"]
        for slot in wanted:
            if slot not in slots:
                raise self.tensors.error(f"{path}.{slot}", f"is missing: {CONFIG_NAME} says that the adapter has it")
        for slot, raw in slots.items():
            if slot not in wanted:
                raise self.tensors.error(raw.name, f"is left over: by {CONFIG_NAME} there are only {', '.join(wanted)}")

    def _rank_and_scale(self, key: str) -> tuple[int, float]:
        rank = int(matched(self.config.rank_pattern, key, self.config.r))
        return rank, self.config.scale(rank, matched(self.config.alpha_pattern, key, self.config.lora_alpha))

    def _vector(self, raw: RawTensor | None, rows: int, *, means: str) -> array[float] | None:
        return None if raw is None else self.tensors.vector(raw, rows, means=means)

    def _experts(self, path: str, slots: Slots, targets: dict[str, FusedExperts]) -> None:
        """A of all experts stands expert by expert, B rank by rank: row e * r + k of A, column k * experts + e of B."""
        self._check_slots(path, slots, ["lora_A", "lora_B"])
        fused, rank, scale, swapped = self._fused(path, slots, targets)
        a, b = slots["lora_A"], slots["lora_B"]
        means = f"rank {rank} from {CONFIG_NAME}, {fused.experts} experts"
        a_bits = self.tensors.bits(a, a.shape, means=means).reshape(fused.experts, rank, -1)
        b_bits = self.tensors.bits(b, b.shape, means=means).reshape(-1, rank, fused.experts)
        for expert, parts in enumerate(fused.parts):
            first, second = a_bits[expert], b_bits[:, :, expert]
            (left, right) = (a.type, b.type) if not swapped else (b.type, a.type)
            if swapped:
                first, second = second.T, first.T
            matrix = matrix_of(a.name, left, first)
            for part in parts:
                rows = matrix_of(b.name, right, second[part.start : part.start + part.rows])
                self.deltas[part.key] = LoraDelta(a=matrix, b=rows, scale=scale)

    def _fused(
        self, path: str, slots: Slots, targets: dict[str, FusedExperts]
    ) -> tuple[FusedExperts, int, float, bool]:
        """The parameter that A and B act on, by their shapes; its rank and scale; whether A reads the rows."""
        a, b = slots["lora_A"], slots["lora_B"]
        fits = []
        expected = []
        for fused in self.names.experts[path]:
            if fused.path not in targets:
                continue
            rank, scale = self._rank_and_scale(self.tensors.name_in_file(fused.path))
            for swapped in (False, True):
                reads, writes = (fused.rows, fused.columns) if swapped else (fused.columns, fused.rows)
                expected.append(f"{fused.experts * rank} x {reads} and {writes} x {fused.experts * rank}")
                if (a.shape, b.shape) == ((fused.experts * rank, reads), (writes, fused.experts * rank)):
                    fits.append((fused, rank, scale, swapped))
        fits = [fit for fit in fits if fit[0].parts[0][0].key not in self.deltas]
        if not fits:
            shapes = " and ".join(" x ".join(map(str, raw.shape)) for raw in (a, b))
            wanted = "; or ".join(expected) or f"nothing here: target_parameters of {CONFIG_NAME} names no expert"
            raise self.tensors.error(a.name, f"and lora_B are {shapes}, expected {wanted}")
        if len(fits) == 1:
            return fits[0]
        old = self.config.peft_version < _UNSWAPPED
        return next(fit for fit in fits if fit[3] == old)

    # Whole tensors

    def _plain(self, path: str, slots: Slots) -> None:
        if "parameter" in slots:
            self._saved_experts(path, slots["parameter"])
            return
        module = self.names.modules.get(path) or self.names.routers.get(path)
        if module is None:
            self._refuse_unknown(path, slots)
            return
        saved = self._is_saved(path)
        if not saved and "weight" in slots and module.kind in ("embedding", "head"):
            self._copy(module, slots)
            return
        for slot, raw in slots.items():
            if not saved and not (slot == "bias" and self.config.bias == "all"):
                key = "bias" if slot == "bias" else "modules_to_save"
                raise self.tensors.error(raw.name, f"is left over: {key} of {CONFIG_NAME} does not name it")
            if slot == "bias":
                self._replace_bias(module, raw)
            elif module.kind == "norm":
                values = self.tensors.vector(raw, module.rows, means="of the base")
                offset = self.names.norm_offset
                self.replaced_vectors[module.parts[0].key] = array("f", (value + offset for value in values))
            else:
                bits = self.tensors.bits(raw, (module.rows, module.columns), means="of the base")
                for part in module.parts:
                    rows = bits[part.start : part.start + part.rows]
                    self.replaced[part.key] = matrix_of(raw.name, raw.type, rows)

    def _replace_bias(self, module: Module, raw: RawTensor) -> None:
        values = self.tensors.vector(raw, module.rows, means="of the base")
        for part in module.parts:
            self.replaced_biases[part.key] = values[part.start : part.start + part.rows]

    def _saved_experts(self, path: str, raw: RawTensor) -> None:
        """A fused parameter of experts that ``modules_to_save`` names."""
        pairs = self.names.experts.get(path.rpartition(".")[0], ())
        fused = next((fused for fused in pairs if fused.path == path), None)
        if fused is None or not self._is_saved(path):
            self._refuse_unknown(path, {"parameter": raw})
            return
        bits = self.tensors.bits(raw, (fused.experts, fused.rows, fused.columns), means="of the base")
        for expert, parts in enumerate(fused.parts):
            for part in parts:
                rows = bits[expert, part.start : part.start + part.rows]
                self.replaced[part.key] = matrix_of(raw.name, raw.type, rows)

    def _base(self, path: str, slots: Slots) -> None:
        """What stands below an adapter: a changed bias, or a copy of the base's embedding or head."""
        module = self.names.modules.get(path)
        if module is None:
            self._refuse_unknown(path, slots)
            return
        if self.config.bias != "none" and "bias" in slots:
            self._replace_bias(module, slots["bias"])
            slots = {slot: raw for slot, raw in slots.items() if slot != "bias"}
        if slots and module.kind not in ("embedding", "head"):
            raw = next(iter(slots.values()))
            raise self.tensors.error(raw.name, f"is left over: by {CONFIG_NAME} the adapter does not change it")
        if slots:
            self._copy(module, slots)

    def _copy(self, module: Module, slots: Slots) -> None:
        raw = slots.get("weight")
        if raw is None:
            raise self.tensors.error(f"{module.path}.weight", "is missing, though its bias is there")
        bits = self.tensors.bits(raw, (module.rows, module.columns), means="of the base")
        matrix = matrix_of(raw.name, raw.type, bits)
        bias = self._vector(slots.get("bias"), module.rows, means="of the base")
        key = module.parts[0].key
        self.base_copies[key] = Matrix(raw.name, raw.type, matrix.rows, matrix.columns, matrix.data, bias=bias)

    def _rows(self) -> None:
        """``trainable_token_indices``. Where the head is the embedding, its rows stand in the file only once."""
        ends = {path: module for path, module in self.names.modules.items() if module.kind in ("embedding", "head")}
        chosen: dict[str, tuple[int, ...]] = {}
        for name, tokens in self.config.trainable_token_indices.items():
            paths = [path for path in ends if self.tensors.name_in_file(path).endswith(name)]
            if not paths:
                reason = f"names {shown(name)}, expected {' or '.join(map(shown, ends))}"
                raise self.config.error("trainable_token_indices", reason)
            chosen |= dict.fromkeys(paths, tokens)
        for path, raw in self.tensors.rows.items():
            if path not in chosen:
                reason = f"is left over: trainable_token_indices of {CONFIG_NAME} does not name its module"
                raise self.tensors.error(raw.name, reason)
        embedding = next(path for path, module in ends.items() if module.kind == "embedding")
        for path, tokens in chosen.items():
            if path in self.tensors.rows:
                self._replace_rows(ends[path], tokens, self.tensors.rows[path])
            elif not (self.names.tied_head and chosen.get(embedding) == tokens and embedding in self.tensors.rows):
                name = f"{path}.token_adapter.trainable_tokens_delta"
                raise self.tensors.error(name, f"is missing: trainable_token_indices of {CONFIG_NAME} names it")

    def _replace_rows(self, module: Module, tokens: tuple[int, ...], raw: RawTensor) -> None:
        if max(tokens, default=-1) >= module.rows:
            reason = f"has the token {max(tokens)}, the base has {module.rows}"
            raise self.config.error("trainable_token_indices", reason, hint=_OTHER_BASE)
        bits = self.tensors.bits(raw, (len(tokens), module.columns), means=f"{len(tokens)} trainable tokens")
        self.replaced_rows[module.parts[0].key] = TokenRows(tokens, matrix_of(raw.name, raw.type, bits))

    def adapter(self, name: str, source: str) -> LoraAdapter:
        vocabulary = next(module.rows for module in self.names.modules.values() if module.kind == "embedding")
        invocation = self.config.alora_invocation_tokens
        if max(invocation, default=-1) >= vocabulary:
            reason = f"has the token {max(invocation)}, the base has {vocabulary}"
            raise self.config.error("alora_invocation_tokens", reason, hint=_OTHER_BASE)
        kept = [
            setting
            for setting, used in (
                ("modules_to_save", self.replaced or self.replaced_vectors),
                ("bias", self.replaced_biases),
                ("trainable_token_indices", self.replaced_rows),
            )
            if used
        ]
        dora = "use_dora" if any(delta.magnitude is not None for delta in self.deltas.values()) else None
        embedding = self.deltas.get(WeightKey("embed_tokens"))
        scaled_embedding = dora if embedding is not None and embedding.magnitude is not None else None
        adapter = LoraAdapter(
            name=name,
            source=source,
            rank=max((delta.b.columns for delta in self.deltas.values()), default=0),
            deltas=self.deltas,
            replaced=self.replaced,
            replaced_vectors=self.replaced_vectors,
            replaced_biases=self.replaced_biases,
            replaced_rows=self.replaced_rows,
            base_copies=self.base_copies,
            invocation_tokens=invocation,
            acts_alone=dora or (kept[0] if kept else None),
            merge_only=kept[0] if kept else scaled_embedding,
        )
        return replace(adapter, digest=digest_of(adapter))
