"""X-LoRA's configuration: `xlora_config.json` of the xlora package, or peft's `adapter_config.json` of type XLORA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from mistralrs.adapters.json_fields import JsonFields
from mistralrs.adapters.orderings.ordering import MAX_ADAPTERS, check_names
from mistralrs.errors import UsageError
from mistralrs.loading.cursor import shown
from mistralrs.models.architecture import MAX_WIDTH

Layout = Literal["package", "peft"]

MAX_DEPTH = 64
"""Linears of a classifier, at most. Published ones have one or two."""
CONFIG_NAMES: dict[Layout, str] = {"package": "xlora_config.json", "peft": "adapter_config.json"}
CLASSIFIER_NAMES: dict[Layout, str] = {"package": "xlora_classifier.safetensors", "peft": "adapter_model.safetensors"}

_HINT = "fetch it again, or take it from the repository of the adapters"
_SHARED = frozenset(
    {
        "adapters", "enable_softmax", "enable_softmax_topk", "global_scaling_weight", "hidden_size",
        "layerwise_scalings", "scaling_pass_value", "softmax_temperature", "top_k_lora", "use_trainable_adapters",
        "xlora_depth", "xlora_dropout_p", "xlora_size",
    }
)  # fmt: skip
_KEYS: dict[Layout, frozenset[str]] = {
    # no result depends on the last two: where the classifier was trained, and where its training batches ended
    "package": _SHARED | {"base_model_id", "enable_relu_and_dropout", "use_bias", "device", "stop_token_id"},
    "peft": _SHARED
    | {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision",
        "task_type",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class XLoraConfig:
    """How scalings come from hidden states, with the defaults of the xlora package. Dropout is for training only."""

    path: Path
    layout: Layout
    adapters: tuple[str, ...]
    """Names of folders in the order of training, which is that of the classes."""
    hidden_size: int
    base_model_id: str | None = None
    layerwise_scalings: bool = False
    """The classifier has an output for each layer of the axis and adapter; otherwise all layers share one for each
    adapter."""
    enable_relu_and_dropout: bool = True
    use_bias: bool = True
    xlora_depth: int = 1
    """Linears of the classifier."""
    xlora_size: int = 2048
    """Width between them."""
    xlora_dropout_p: float = 0.2
    """Dropout of training. It decides in steps of how many the names of peft's linears count."""
    enable_softmax: bool = True
    softmax_temperature: float = 1.0
    top_k_lora: int | None = None
    enable_softmax_topk: bool = False
    """A softmax over the scalings that ``top_k_lora`` chose, without the temperature."""
    scaling_pass_value: float = 0.0
    """The scalings of the pass from which the classifier reads."""
    global_scaling_weight: float = 1.0
    """Multiplies the additions of the adapters in both passes."""


def is_peft_xlora(config: JsonFields) -> bool:
    """Whether an `adapter_config.json` is that of an X-LoRA made by peft."""
    return config.content.get("peft_type") == "XLORA"


def read_xlora_config(path: Path) -> XLoraConfig:
    """The configuration in a file of either layout.

    Raises ``LoadError`` if it cannot be read, and ``FormatError`` with file, key and what was expected for a key that
    is missing, not known, of another kind or out of range, for ``top_k_lora`` above the number of adapters, and for
    ``enable_softmax_topk`` without ``top_k_lora``.
    """
    fields = JsonFields.read(path, hint=_HINT)
    layout: Layout = "peft" if is_peft_xlora(fields) else "package"
    fields.refuse_unknown(_KEYS[layout])
    adapters = _adapters(fields, layout)
    fields.flag("use_trainable_adapters", default=False)
    temperature = fields.real("softmax_temperature", default=1.0)
    if temperature <= 0:
        fields.refuse("softmax_temperature", f"is {temperature}, expected a number above 0")
    dropout = fields.real("xlora_dropout_p", default=0.2)
    if not 0 <= dropout <= 1:
        fields.refuse("xlora_dropout_p", f"is {dropout}, expected a number from 0 to 1")
    top_k = fields.whole("top_k_lora", least=1, most=len(adapters))
    softmax_topk = fields.flag("enable_softmax_topk", default=False)
    if softmax_topk and top_k is None:
        fields.refuse("enable_softmax_topk", "is true, expected top_k_lora beside it")
    return XLoraConfig(
        path=path,
        layout=layout,
        adapters=adapters,
        hidden_size=fields.require_whole("hidden_size", least=1, most=MAX_WIDTH),
        base_model_id=fields.text("base_model_id" if layout == "package" else "base_model_name_or_path"),
        layerwise_scalings=fields.flag("layerwise_scalings", default=False),
        # peft's classifier has no such switches: they are on
        enable_relu_and_dropout=layout == "peft" or fields.flag("enable_relu_and_dropout", default=True),
        use_bias=layout == "peft" or fields.flag("use_bias", default=True),
        xlora_depth=fields.whole("xlora_depth", least=1, most=MAX_DEPTH) or 1,
        xlora_size=fields.whole("xlora_size", least=1, most=MAX_WIDTH) or 2048,
        xlora_dropout_p=dropout,
        enable_softmax=fields.flag("enable_softmax", default=True),
        softmax_temperature=temperature,
        top_k_lora=top_k,
        enable_softmax_topk=softmax_topk,
        scaling_pass_value=fields.real("scaling_pass_value", default=0.0),
        global_scaling_weight=fields.real("global_scaling_weight", default=1.0),
    )


def _adapters(fields: JsonFields, layout: Layout) -> tuple[str, ...]:
    """The names of the adapters' folders. Of a list the last parts of paths, of a map the keys; peft counts folders."""
    value = fields.content.get("adapters")
    if isinstance(value, dict):
        names = tuple(value)
    else:
        names = tuple(PurePosixPath(name).name for name in fields.texts("adapters") or ())
    if not names:
        fields.refuse("adapters", f"is {shown(value)}, expected a list or an object of the adapters")
    if layout == "peft":
        if len(names) > MAX_ADAPTERS:
            fields.refuse("adapters", f"has {len(names)} adapters, expected at most {MAX_ADAPTERS}")
        return tuple(str(number) for number in range(len(names)))
    try:
        check_names(names)
    except UsageError as error:
        fields.refuse("adapters", error.message)
    return names
