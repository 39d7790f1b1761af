"""Reads PEFT's `adapter_config.json` for LoRA. Every field is honoured, or refused by name.

The fields and their defaults are those of `LoraConfig` in peft 0.21.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mistralrs.adapters.lora.target_modules import ALL_LINEAR, Pattern, checked_pattern
from mistralrs.errors import FormatError, LoadError
from mistralrs.files import read_json
from mistralrs.loading.cursor import shown

CONFIG_NAME = "adapter_config.json"
MAX_RANK = 4096
"""Some sixteen times what adapters have."""
MAX_NAMES = 100_000
"""Entries of one list in the file."""
MAX_TOKEN = 1 << 31

Bias = Literal["none", "all", "lora_only"]
_BIASES: tuple[Bias, ...] = ("none", "all", "lora_only")

_DAMAGED = "the file is damaged or not of peft: fetch it again"
_MERGE = "`mistralrs adapter merge` makes a merged model of it through peft, which can be loaded"
_UNMERGEABLE = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "ADAPTION_PROMPT", "CARTRIDGE"}
)
"""Tuners that put something before the prompt, and so cannot be merged."""
_INITIALISERS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Which leave the base as it is."""
_BASE_CHANGERS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of the names of initialisers that take their part of the base's weights away from it."""
_BOOKKEEPING = frozenset(
    {
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",  # only in training, as are the next
        "runtime_config",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "megatron_core",  # read only with megatron_config
        "qalora_group_size",  # read only with use_qalora
    }
)
"""Fields that do not change what an adapter computes."""
_HONOURED = frozenset(
    {
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "fan_in_fan_out",
        "bias",
        "lora_bias",
        "modules_to_save",
        "trainable_token_indices",
        "target_parameters",
        "use_dora",
        "alora_invocation_tokens",
        "init_lora_weights",
    }
)


class OnlyPeftReadsError(LoadError):
    """The adapter is of a kind that peft can merge, and nothing here reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """What an `adapter_config.json` says that changes results. Fields are named as in peft."""

    path: Path
    r: int = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    target_modules: Pattern | frozenset[str] | None = None
    """A pattern, names or ends of names, or ``ALL_LINEAR``; None: only ``target_parameters`` are."""
    exclude_modules: Pattern | frozenset[str] = frozenset()
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[Pattern, ...] = ()
    bias: Bias = "none"
    lora_bias: bool = False
    modules_to_save: tuple[Pattern, ...] = ()
    trainable_token_indices: Mapping[str, tuple[int, ...]]
    """By name of the module; ``embed_tokens`` where the file has a plain list."""
    target_parameters: frozenset[str] = frozenset()
    use_dora: bool = False
    alora_invocation_tokens: tuple[int, ...] = ()
    peft_version: tuple[int, ...] = ()
    """Numbers of the version that wrote the file; empty: unknown."""
    base_model: str | None = None
    """``base_model_name_or_path``."""

    def scale(self, rank: int, alpha: float) -> float:
        """The factor on b (a x) of a module with this rank and alpha."""
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def error(self, key: str, reason: str, *, hint: str | None = None) -> FormatError:
        """The error about a field."""
        return FormatError(str(self.path), key, reason, hint=hint or _DAMAGED)


def read_lora_config(path: Path) -> LoraConfig:
    """The LoRA settings of the `adapter_config.json` at ``path``.

    Raises ``FormatError`` for a value of the wrong kind, ``LoadError`` for an adapter that is not supported.
    """
    fields = _Fields(path, read_json(path, hint=_DAMAGED, unique=True))
    _refuse_tuner(fields)
    _refuse_initialiser(fields)
    _refuse_others(fields)
    config = LoraConfig(
        path=path,
        r=fields.rank("r", 8),
        lora_alpha=fields.number("lora_alpha", 8.0),
        use_rslora=fields.flag("use_rslora"),
        rank_pattern=fields.patterns("rank_pattern", check=_is_rank, expected=f"ranks of 1 to {MAX_RANK}"),
        alpha_pattern=fields.patterns("alpha_pattern", check=_is_number, expected="numbers"),
        target_modules=fields.targets("target_modules"),
        exclude_modules=fields.targets("exclude_modules") or frozenset(),
        layers_to_transform=fields.layers(),
        layers_pattern=fields.pattern_list("layers_pattern"),
        bias=_bias(fields),
        lora_bias=fields.flag("lora_bias"),
        modules_to_save=fields.pattern_list("modules_to_save"),
        trainable_token_indices=_token_indices(fields),
        target_parameters=frozenset(fields.names("target_parameters")),
        use_dora=fields.flag("use_dora"),
        alora_invocation_tokens=fields.tokens("alora_invocation_tokens", fields.get("alora_invocation_tokens")),
        peft_version=_version(fields),
        base_model=fields.text("base_model_name_or_path"),
    )
    fields.flag("fan_in_fan_out")  # of Conv1D alone, which none of these architectures has: peft ignores it as well
    _check_combination(config, fields)
    return config


def _refuse_tuner(fields: _Fields) -> None:
    kind = fields.get("peft_type")
    if kind == "LORA":
        return
    if kind == "XLORA":
        raise LoadError(
            f"{fields.path}: peft_type: is XLORA, which mixes several adapters, expected LORA",
            hint="an x-lora subcommand or --xlora loads it",
        )
    if not isinstance(kind, str) or not kind:
        raise fields.error("peft_type", f"is {shown(kind)}, expected 'LORA'")
    reason = f"{fields.path}: peft_type: is {shown(kind)}, expected 'LORA'"
    if kind in _UNMERGEABLE:
        raise LoadError(reason, hint="it adds to the prompt, which no merge can do: use it with peft")
    raise OnlyPeftReadsError(reason, hint=_MERGE)


def _refuse_initialiser(fields: _Fields) -> None:
    """Refuses an adapter that only fits a base from which its first weights were taken away."""
    value = fields.get("init_lora_weights", True)
    if value is None or isinstance(value, bool) or (isinstance(value, str) and value.lower() in _INITIALISERS):
        return
    known = ", ".join(sorted(_INITIALISERS))
    if isinstance(value, str) and value.lower().startswith(_BASE_CHANGERS):
        raise OnlyPeftReadsError(
            f"{fields.path}: init_lora_weights: is {shown(value)}, which changed the base's weights, so that the "
            f"adapter does not fit the released ones; expected true, false or one of {known}",
            hint=f"{_MERGE}; or convert it in peft: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    raise fields.error("init_lora_weights", f"is {shown(value)}, expected true, false or one of {known}", hint=_MERGE)


def _refuse_others(fields: _Fields) -> None:
    """Refuses every other field that is set. Defaults of them all are empty: null, false, zero or without members."""
    for key, value in fields.values.items():
        if key in _HONOURED or key in _BOOKKEEPING or not value:
            continue
        raise OnlyPeftReadsError(
            f"{fields.path}: {shown(key)}: is {shown(value)}, which is not supported, expected none", hint=_MERGE
        )


def _bias(fields: _Fields) -> Bias:
    value = fields.get("bias", "none")
    for known in _BIASES:
        if value == known:
            return known
    raise fields.error("bias", f"is {shown(value)}, expected 'none', 'all' or 'lora_only'")


def _token_indices(fields: _Fields) -> dict[str, tuple[int, ...]]:
    key = "trainable_token_indices"
    value = fields.get(key)
    if not value:
        return {}
    if isinstance(value, list):
        value = {"embed_tokens": value}
    if not isinstance(value, dict) or len(value) > MAX_NAMES:
        raise fields.error(key, f"is {shown(value)}, expected a list of tokens, or an object of such lists")
    found = {name: fields.tokens(key, tokens) for name, tokens in value.items()}
    for tokens in found.values():
        if len(set(tokens)) < len(tokens):
            raise fields.error(key, f"is {shown(value)}, which has a token twice")
    return found


def _version(fields: _Fields) -> tuple[int, ...]:
    """The leading numbers of the version; of 0.19.1.dev0 they are 0, 19, 1."""
    numbers = []
    for piece in (fields.text("peft_version") or "").split(".")[:3]:
        if not piece.isdecimal() or len(piece) > 6:
            break
        numbers.append(int(piece))
    return tuple(numbers)


def _check_combination(config: LoraConfig, fields: _Fields) -> None:
    """Raises for settings that peft refuses as well, because no layer computes them together."""
    if config.target_modules is None and not config.target_parameters and not config.trainable_token_indices:
        raise config.error("target_modules", "is missing, and so is target_parameters: the adapter acts on nothing")
    one_text = isinstance(config.target_modules, Pattern) or config.target_modules == ALL_LINEAR
    for key in ("layers_to_transform", "layers_pattern"):
        if one_text and fields.get(key):
            raise config.error(key, "is set beside a target_modules that is one text, expected a list of names there")
    if config.layers_pattern and config.layers_to_transform is None:
        raise config.error("layers_pattern", "is set without layers_to_transform")
    if config.use_dora and config.lora_bias:
        raise config.error("lora_bias", "is true beside use_dora, which no layer computes")
    for key in ("use_dora", "lora_bias", "fan_in_fan_out"):
        if config.target_parameters and fields.flag(key):
            raise config.error(key, "is true beside target_parameters, which no layer computes")


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # type: ignore[arg-type]


class _Fields:
    """The fields of the file, checked as they are read. A field that is null is one that is not there."""

    def __init__(self, path: Path, values: Mapping[str, object]) -> None:
        self.path, self.values = path, values

    def error(self, key: str, reason: str, *, hint: str = _DAMAGED) -> FormatError:
        return FormatError(str(self.path), key, reason, hint=hint)

    def get(self, key: str, default: object = None) -> object:
        value = self.values.get(key)
        return default if value is None else value

    def flag(self, key: str) -> bool:
        value = self.get(key, False)
        if not isinstance(value, bool):
            raise self.error(key, f"is {shown(value)}, expected true or false")
        return value

    def rank(self, key: str, default: int) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or not _is_rank(value):
            raise self.error(key, f"is {shown(value)}, expected a rank of 1 to {MAX_RANK}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if not isinstance(value, int | float) or not _is_number(value):
            raise self.error(key, f"is {shown(value)}, expected a number")
        return float(value)

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, f"is {shown(value)}, expected a text")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        value = self.get(key, [])
        if not isinstance(value, list) or len(value) > MAX_NAMES or not all(isinstance(name, str) for name in value):
            raise self.error(key, f"is {shown(value)}, expected a list of names")
        return tuple(value)

    def pattern(self, key: str, text: str) -> Pattern:
        try:
            return checked_pattern(text)
        except ValueError as error:
            raise self.error(key, f"is {shown(text)}, {error}", hint="list the names of the modules instead") from error

    def pattern_list(self, key: str) -> tuple[Pattern, ...]:
        value = self.get(key)
        names = (value,) if isinstance(value, str) and value else self.names(key)
        return tuple(self.pattern(key, name) for name in names)

    def targets(self, key: str) -> Pattern | frozenset[str] | None:
        """A regular expression if it is one text, else names."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            return ALL_LINEAR if value.lower() in ALL_LINEAR else self.pattern(key, value)
        return frozenset(self.names(key))

    def patterns(self, key: str, *, check: Callable[[object], bool], expected: str) -> dict[str, float]:
        value = self.get(key, {})
        if not isinstance(value, dict) or len(value) > MAX_NAMES or not all(map(check, value.values())):
            raise self.error(key, f"is {shown(value)}, expected an object of {expected}")
        for name in value:
            self.pattern(key, name)
        return value

    def layers(self) -> tuple[int, ...] | None:
        value = self.get("layers_to_transform")
        layers = [value] if type(value) is int else value
        if layers is None or layers == []:
            return None
        if not isinstance(layers, list) or len(layers) > MAX_NAMES or not all(type(layer) is int for layer in layers):
            raise self.error("layers_to_transform", f"is {shown(value)}, expected a number or a list of numbers")
        return tuple(layers)

    def tokens(self, key: str, value: object) -> tuple[int, ...]:
        if value is None:
            return ()
        if (
            not isinstance(value, list)
            or len(value) > MAX_NAMES
            or not all(type(token) is int and 0 <= token < MAX_TOKEN for token in value)
        ):
            raise self.error(key, f"is {shown(value)}, expected a list of tokens")
        return tuple(value)
