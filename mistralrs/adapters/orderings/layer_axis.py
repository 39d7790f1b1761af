"""The modules of an architecture that an adapter can act on, in the order in which X-LoRA's classifier counts them.

The names are those of `transformers` before its release 5, which adapters were made with: since then experts are one
parameter, and live modules give another count. The order is that of `named_modules()` there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mistralrs.adapters.json_fields import JsonFields
from mistralrs.errors import LoadError
from mistralrs.models.architecture import MAX_LAYERS
from mistralrs.models.multimodal import text_config
from mistralrs.models.registry import HF_MODEL_TYPES

EMBED_TOKENS, LM_HEAD = "model.embed_tokens", "lm_head"
MAX_EXPERTS = 1024


@dataclass(frozen=True, slots=True)
class _Block:
    """The modules of one layer."""

    modules: tuple[str, ...]
    expert_modules: tuple[str, ...] = ()
    """Of each expert; ``{expert}`` is filled in. They stand behind ``modules``."""


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_LLAMA = _Block((*_ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))
_MIXTRAL = _Block(
    (*_ATTENTION, "block_sparse_moe.gate"),
    tuple(f"block_sparse_moe.experts.{{expert}}.{name}" for name in ("w1", "w2", "w3")),
)
_QWEN3_MOE = _Block(
    (*_ATTENTION, "mlp.gate"),
    tuple(f"mlp.experts.{{expert}}.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
)
_PHI2 = _Block((*_ATTENTION[:3], "self_attn.dense", "mlp.fc1", "mlp.fc2"))
_PHI3 = _Block(("self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"))

# One module holds gate and up.
_GRANITE_HYBRID = _Block(("shared_mlp.input_linear", "shared_mlp.output_linear", *_ATTENTION))

_BLOCKS = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _MIXTRAL,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3moe": _QWEN3_MOE,
    "phi2": _PHI2,
    "phi3": _PHI3,
    "smollm3": _LLAMA,
    "granite": _LLAMA,
    "granitehybrid": _GRANITE_HYBRID,
    "mistral3": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": _LLAMA,
}
"""By the names of ``models.registry.ARCHITECTURES``."""


def adaptable_modules(architecture: str, *, layers: int, experts: int = 0) -> tuple[str, ...]:
    """The names of all modules that an adapter can act on, embedding first and head last.

    ``architecture``: a name of ``models.registry.ARCHITECTURES``. GGUF files call Mixtral ``llama``: with experts it is
    Mixtral.
    """
    name = "mixtral" if experts and architecture in ("llama", "mistral") else architecture
    if name not in _BLOCKS:
        raise LoadError(f"adapters for the architecture {name} are not supported")
    block = _BLOCKS[name]
    names = [EMBED_TOKENS]
    for layer in range(layers):
        names += [f"model.layers.{layer}.{module}" for module in block.modules]
        for expert in range(experts):
            names += [f"model.layers.{layer}.{module.format(expert=expert)}" for module in block.expert_modules]
    return (*names, LM_HEAD)


def modules_of_config(config: JsonFields) -> tuple[str, ...]:
    """The names of ``adaptable_modules`` for a model's `config.json`, a multimodal one's language model included.

    Raises ``LoadError`` for an architecture that is not supported, and for counts that are missing or absurd.
    """
    inner = text_config(config.content)
    fields = config if inner is None else JsonFields(config.path, inner, hint="fetch config.json again")
    model_type = fields.text("model_type")
    architecture = HF_MODEL_TYPES.get(model_type or "")
    if architecture is None:
        fields.refuse("model_type", f"is {model_type!r}, expected one of {', '.join(HF_MODEL_TYPES)}")
    layers = fields.require_whole("num_hidden_layers", least=1, most=MAX_LAYERS)
    experts = 0
    if _BLOCKS[architecture].expert_modules:
        key = "num_experts" if fields.content.get("num_experts") is not None else "num_local_experts"
        experts = fields.require_whole(key, least=1, most=MAX_EXPERTS)
    return adaptable_modules(architecture, layers=layers, experts=experts)


def layer_axis(modules: Iterable[str], rules: Iterable[Callable[[str], bool]]) -> tuple[str, ...]:
    """The modules that any of the ``rules`` chooses (a rule for each adapter), in their order.

    A module's place in it is its place on the layer axis of the classifier's output.
    """
    chosen = tuple(rules)
    return tuple(name for name in modules if any(rule(name) for rule in chosen))
