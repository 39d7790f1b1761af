"""From a config to a spec: what published models become, what is refused by name, and that nothing else is raised."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.errors import LoadError
from mistralrs.loading.checkpoint import DescribedCheckpoint, RawTensor
from mistralrs.loading.model_metadata import GgufMetadata, HfMetadata
from mistralrs.models.registry import ARCHITECTURES, GGUF_OTHER_NAMES, HF_MODEL_TYPES
from mistralrs.models.spec import DecoderSpec, LayerSpec, MoeSpec
from mistralrs.nn.rope import inverse_frequencies
from mistralrs.quant.types import TYPES

Values = Mapping[str, Any]

CONFIG: Values = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
MORE: dict[str, Values] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 20},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 20},
    "phi": {"num_key_value_heads": None},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "granitemoehybrid": {
        "layer_types": ["attention"] * 4,
        "num_local_experts": 0,
        "shared_intermediate_size": 160,
        "position_embedding_type": "rope",
    },
}
METADATA: Values = {
    "block_count": 4,
    "context_length": 512,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
MORE_METADATA: dict[str, Values] = {
    "gemma2": {"attention.sliding_window": 20},
    "gemma3": {"attention.sliding_window": 20},
    "phi2": {"attention.layer_norm_epsilon": 1e-5},
    "granite": {"logit_scale": 8.0},
    "granitehybrid": {"logit_scale": 8.0},
    "qwen3moe": {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 48},
}
GGUF_FORMS = {name: row.gguf for name, row in ARCHITECTURES.items() if row.gguf}
GGUF_FORMS |= {name: form for name, (_, form) in GGUF_OTHER_NAMES.items()}


class Stored(DescribedCheckpoint):
    """A checkpoint of vectors and metadata that is nowhere on disk."""

    def __init__(self, metadata: Values, vectors: Mapping[str, Sequence[float]]) -> None:
        super().__init__(Path("model"), [], {}, metadata=dict(metadata))
        self.tensors = MappingProxyType(
            {
                name: RawTensor(name, TYPES["F32"], (len(values),), memoryview(array("f", values)).cast("B"))
                for name, values in vectors.items()
            }
        )


def hf(model_type: str, changes: Values | None = None, *, head: bool = False) -> DecoderSpec:
    form = ARCHITECTURES[HF_MODEL_TYPES[model_type]].hugging_face
    assert form is not None
    config = {**CONFIG, **MORE.get(model_type, {}), **(changes or {})}
    stored = Stored({}, {"lm_head.weight": [0.0]} if head else {})
    spec = form.spec(HfMetadata(stored, Path("config.json"), config))
    assert form.tensors(spec)
    return spec


def gguf(name: str, changes: Values | None = None, vectors: Mapping[str, Sequence[float]] | None = None) -> DecoderSpec:
    form = GGUF_FORMS[name]
    values = {**METADATA, **MORE_METADATA.get(name, {}), **(changes or {})}
    metadata = {f"{name}.{key}": value for key, value in values.items() if value is not None}
    spec = form.spec(GgufMetadata(Stored(metadata, vectors or {})))
    assert form.tensors(spec)
    return spec


def windows(spec: DecoderSpec) -> list[int]:
    return [layer.window for layer in spec.layers]


# Specs of published models


def test_mistral_and_its_successors() -> None:
    assert windows(hf("mistral", {"sliding_window": 4096})) == [4096] * 4
    assert windows(hf("mistral", {"sliding_window": None})) == [0] * 4
    assert windows(hf("mixtral", {"sliding_window": None})) == [0] * 4
    assert windows(gguf("llama")) == [0] * 4
    assert windows(gguf("llama", {"attention.sliding_window": 4096})) == [4096] * 4
    nemo = hf("mistral", {"hidden_size": 5120, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128})
    assert (
        nemo.attention.head_dim,
        nemo.attention.num_heads * nemo.attention.head_dim,
        nemo.attention.ropes[0].dim,
    ) == (128, 4096, 128)


def test_experts() -> None:
    for spec in (hf("mixtral"), gguf("llama", {"expert_count": 8, "expert_used_count": 2})):
        assert spec.moe == MoeSpec(experts=8, experts_used=2)
    assert gguf("llama").moe is None


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llama_3_stretches_long_waves_only(key: str) -> None:
    settings = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    settings |= {"original_max_position_embeddings": 8192}
    theta: Values = {"rope_theta": 5e5}
    given = {key: {**settings, **theta}} if key == "rope_parameters" else {key: settings, **theta}
    [rope] = hf(
        "llama", {**given, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    ).attention.ropes
    assert (rope.dim, rope.base) == (128, 5e5)
    assert rope.factors[:29] == (1.0,) * 29  # waves up to 8192 / 4 positions
    assert rope.factors[35:] == (8.0,) * 29  # from 8192 on
    assert list(rope.factors) == sorted(rope.factors)


def test_linear_scaling() -> None:
    assert hf("llama", {"rope_scaling": {"type": "linear", "factor": 4}}).attention.ropes[0].linear_factor == 4
    assert (
        gguf("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}).attention.ropes[0].linear_factor == 4
    )
    assert gguf("llama", {"rope.scaling.factor": 4.0}).attention.ropes[0].linear_factor == 4
    assert gguf("llama", {"rope.scale_linear": 4.0}).attention.ropes[0].linear_factor == 4
    assert gguf("llama", {"rope.scaling.factor": 0.0}).attention.ropes[0].linear_factor == 1
    assert (
        gguf("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}).attention.ropes[0].linear_factor == 1
    )


@pytest.mark.parametrize(
    "names",
    [
        {"hidden_act": "gelu"},  # of the first release, which meant the approximation
        {"hidden_act": "gelu", "hidden_activation": None},
        {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh"},
        {"hidden_activation": "gelu_pytorch_tanh"},
        {},
    ],
)
def test_every_config_of_gemma(names: Values) -> None:
    spec = hf("gemma", names)
    assert (spec.activation, spec.embedding_multiplier, spec.tied_head) == ("gelu_tanh", 8.0, True)
    assert spec == hf("gemma", {"hidden_activation": "gelu_pytorch_tanh"})
    assert hf("gemma", {"hidden_act": "silu"}).activation == "silu"


def test_gemma_2_alternates() -> None:
    assert windows(hf("gemma2")) == windows(gguf("gemma2")) == [20, 0, 20, 0]
    assert windows(hf("gemma2", {"layer_types": ["full_attention", "sliding_attention"] * 2})) == [0, 20, 0, 20]
    capped = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": None}
    assert (hf("gemma2", capped).attention.softcap, hf("gemma2", capped).logits_softcap) == (50.0, 0.0)
    assert (gguf("gemma2").attention.softcap, gguf("gemma2").logits_softcap) == (50.0, 30.0)


@pytest.mark.parametrize(
    ("name", "model_type", "layers", "width", "heads"),
    [("gemma2", "gemma2", 46, 4608, 32), ("gemma3", "gemma3_text", 62, 5376, 32)],
)
def test_the_largest_gemmas_scale_by_their_width(
    name: str, model_type: str, layers: int, width: int, heads: int
) -> None:
    file = gguf(name, {"block_count": layers, "embedding_length": width, "attention.head_count": heads})
    folder = hf(model_type, {"query_pre_attn_scalar": width // heads})
    assert file.attention.scale == folder.attention.scale == (width // heads) ** -0.5
    assert gguf(name).attention.scale is None


def test_gemma_3_sees_everything_in_every_sixth_layer() -> None:
    old = {"num_hidden_layers": 7, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    scaled = {**old, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    file: Values = {"block_count": 7, "attention.key_length": 32, "rope.freq_base": 1e6}
    for spec in (hf("gemma3_text", old), gguf("gemma3", file)):
        assert spec.layers == (*[LayerSpec(20, 1)] * 5, LayerSpec(0, 0), LayerSpec(20, 1))
        assert [rope.base for rope in spec.attention.ropes] == [1e6, 1e4]
    for spec in (
        hf("gemma3_text", scaled),
        gguf("gemma3", {**file, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
    ):
        assert [rope.linear_factor for rope in spec.attention.ropes] == [8.0, 1.0]
    assert windows(hf("gemma3_text", {"sliding_window_pattern": 2})) == [20, 0, 20, 0]
    assert windows(gguf("gemma3", {"attention.sliding_window_pattern": 2})) == [20, 0, 20, 0]


def test_qwen_has_its_window_only_where_it_is_switched_on() -> None:
    given = {"sliding_window": 20, "max_window_layers": 3}
    assert windows(hf("qwen2", given)) == [0] * 4
    assert windows(hf("qwen2", {**given, "use_sliding_window": True})) == [0, 0, 0, 20]
    kinds = ["sliding_attention", *["full_attention"] * 3]
    assert windows(hf("qwen3", {**given, "use_sliding_window": True, "layer_types": kinds})) == [20, 0, 0, 0]
    assert hf("qwen3").attention.qk_norm == "head"
    assert hf("qwen2").attention.qk_norm == "none"


def test_phi_2_rotates_a_part_of_each_head() -> None:
    given = {"partial_rotary_factor": 0.4, "hidden_size": 2560, "num_attention_heads": 32, "hidden_act": "gelu_new"}
    folder = hf("phi", {**given, "layer_norm_eps": 1e-5})
    file = gguf(
        "phi2",
        {
            "rope.dimension_count": 32,
            "embedding_length": 2560,
            "attention.head_count": 32,
            "attention.head_count_kv": 32,
        },
    )
    assert folder == file
    assert (folder.attention.head_dim, folder.attention.ropes[0].dim, folder.attention.kv_heads, folder.parallel) == (
        80,
        32,
        32,
        True,
    )


@pytest.mark.parametrize("kind", ["longrope", "su"])
def test_phi_3_keeps_to_its_short_factors(kind: str) -> None:
    short = [1.0 + i / 8 for i in range(8)]
    folder = hf(
        "phi3",
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": kind, "short_factor": short, "long_factor": [9.0] * 8},
        },
    )
    file = gguf(
        "phi3",
        {
            "context_length": 131072,
            "rope.scaling.original_context_length": 4096,
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(32) / math.log(4096)),
        },
        {"rope_factors_short.weight": short, "rope_factors_long.weight": [9.0] * 8},
    )
    for spec in (folder, file):
        assert (spec.max_position, spec.attention.ropes[0].factors) == (4096, tuple(short))
        assert spec.attention.ropes[0].scale == pytest.approx(1.19023807)
    plain = gguf("phi3", {"rope.scaling.original_context_length": 256})
    assert (plain.max_position, plain.attention.ropes[0].scale) == (512, 1.0)


def test_smollm_3_leaves_rotation_out_of_every_fourth_layer() -> None:
    usual = [0, 0, 0, None]
    assert [layer.rope for layer in hf("smollm3").layers] == usual
    assert [layer.rope for layer in hf("smollm3", {"no_rope_layers": [1, 1, 1, 0]}).layers] == usual
    assert [layer.rope for layer in gguf("smollm3").layers] == usual
    assert [layer.rope for layer in hf("smollm3", {"no_rope_layer_interval": 2}).layers] == [0, None, 0, None]


def test_olmo_3_sees_everything_in_every_fourth_layer() -> None:
    window: Values = {"attention.sliding_window": 20}
    pattern = "attention.sliding_window_pattern"
    assert windows(hf("olmo3", {"sliding_window": 20})) == windows(gguf("olmo2", window)) == [20, 20, 20, 0]
    assert windows(gguf("olmo2", window | {pattern: 2})) == [20, 0, 20, 0]
    assert windows(gguf("olmo2", window | {pattern: [False, True, True, False]})) == [0, 20, 20, 0]
    assert windows(gguf("olmo2", {pattern: [True] * 4})) == [0] * 4, "OLMo 2 has none"
    stretched: Values = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.freq_base": 5e5}
    wide, local = gguf("olmo2", window | stretched | {"rope.freq_base_swa": 1e4}).attention.ropes
    assert (wide.base, wide.yarn is None, local.base, local.yarn is None) == (5e5, False, 1e4, True)


def test_a_file_may_say_the_factor_of_yarn_as_config_json_does() -> None:
    """llama.cpp's converter copies ``attention_factor``, which is the whole factor and not one beside the usual."""
    for factor in (1.2, 1.0):
        folder = hf("llama", {"rope_scaling": {**YARN, "attention_factor": factor}})
        file = gguf("llama", {f"rope.scaling.{key}": value for key, value in (
            ("type", "yarn"), ("factor", 4.0), ("yarn_attn_factor", factor)
        )})  # fmt: skip
        assert file.attention.ropes == folder.attention.ropes
        assert file.attention.ropes[0].scale == factor


def test_a_number_of_kv_heads_for_each_layer() -> None:
    assert gguf("granite", {"attention.head_count_kv": [2] * 4}) == gguf("granite")


def test_granite_4_may_do_without_rotation() -> None:
    rotated = hf("granitemoehybrid")
    assert (rotated.ffn_size, {layer.rope for layer in rotated.layers}) == (160, {0})
    assert rotated == hf("granitemoehybrid", {"layer_types": ["full_attention"] * 4})
    for positions in ("nope", None):
        assert {layer.rope for layer in hf("granitemoehybrid", {"position_embedding_type": positions}).layers} == {None}
    for name in ("granite", "granitehybrid"):
        for switch, rope in ((True, 0), (False, None)):
            assert {layer.rope for layer in gguf(name, {"rope.scaling.finetuned": switch}).layers} == {rope}
    assert gguf("granitehybrid", {"attention.head_count_kv": [2] * 4}) == gguf("granite")


@pytest.mark.parametrize("changes", [{"layer_types": ["mamba"] * 3 + ["attention"]}, {"num_local_experts": 8}])
def test_a_true_granite_hybrid_is_refused_with_the_models_that_run(changes: Values) -> None:
    with pytest.raises(LoadError) as refusal:
        hf("granitemoehybrid", changes)
    assert "ibm-granite/granite-4.0-micro" in str(refusal.value.hint)


def test_a_head_is_tied_where_there_is_none_of_its_own() -> None:
    assert hf("llama").tied_head
    assert not hf("llama", head=True).tied_head
    assert not hf("llama", {"tie_word_embeddings": False}).tied_head, "it is missing, which is said when parts are read"


# Refusals

YARN = {"rope_type": "yarn", "factor": 4.0}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 64,
}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "original_max_position_embeddings": 256}
REFUSED: list[tuple[str, Values, str]] = [
    ("llama", {"rope_scaling": {**YARN, "factor": 0.0}}, "numbers for yarn are not all positive"),
    ("llama", {"rope_scaling": {**YARN, "factor": "4"}}, "factor is '4'"),
    ("llama", {"rope_scaling": {**YARN, "original_max_position_embeddings": -1}}, "is -1.0, which is no context"),
    ("llama", {"rope_scaling": YARN, "rope_theta": 1.0}, "numbers for yarn are not all positive"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary scaling of type 'dynamic'"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, "rotary scaling of type 'dynamic'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor is None"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "not positive"),
    ("llama", {"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "low_freq_factor is None"),
    ("llama", {"rope_scaling": {**LLAMA3, "high_freq_factor": 1}}, "do not fit together"),
    ("llama", {"rope_scaling": {**LLAMA3}, "rope_theta": -1.0}, "do not fit together"),
    ("llama", {"rope_theta": 0.0}, "not positive"),
    ("llama", {"rope_theta": "big"}, "key rope_theta: is 'big', expected float"),
    ("llama", {"hidden_act": "relu"}, "the activation 'relu'"),
    ("llama", {"hidden_size": 0}, "do not fit together"),
    ("llama", {"num_attention_heads": 0}, "do not fit together"),
    ("llama", {"num_key_value_heads": 3}, "do not fit together"),
    ("llama", {"num_hidden_layers": 0}, "0 layers"),
    ("llama", {"num_hidden_layers": 10**9}, "1000000000 layers"),
    ("llama", {"num_hidden_layers": None}, "key num_hidden_layers: is missing"),
    ("llama", {"num_hidden_layers": True}, "expected int"),
    ("llama", {"intermediate_size": 0}, "too small"),
    ("llama", {"rms_norm_eps": 0.0}, "norm epsilon"),
    ("llama", {"rms_norm_eps": math.nan}, "norm epsilon"),
    ("llama", {"head_dim": 0}, "rotary width"),
    ("llama", {"head_dim": 15}, "rotary width"),
    ("llama", {"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
    ("phi", {"partial_rotary_factor": 0.01}, "rotary width of 0"),
    ("gemma", {"hidden_size": 10**400}, "hidden_size: is too large a number"),
    ("mistral", {"sliding_window": -1}, "sliding window of -1"),
    ("mistral", {"sliding_window": 4096.0}, "expected int"),
    ("mixtral", {"num_experts_per_tok": 9}, "9 of 8 experts"),
    ("mixtral", {"num_experts_per_tok": 0}, "0 of 8 experts"),
    ("mixtral", {"num_local_experts": None}, "num_local_experts: is missing"),
    ("gemma", {"head_dim": None}, "head_dim: is missing"),
    ("gemma", {"hidden_activation": "relu"}, "the activation 'relu'"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0.0"),
    ("gemma2", {"query_pre_attn_scalar": -4}, "query_pre_attn_scalar is -4.0"),
    ("gemma2", {"final_logit_softcapping": -1.0}, "soft caps"),
    ("gemma2", {"layer_types": ["full_attention"] * 3}, "layer_types is not a list of 4 times"),
    ("gemma2", {"layer_types": ["full_attention"] * 3 + ["linear_attention"]}, "layer_types is not a list"),
    ("gemma2", {"layer_types": [["full_attention"]] * 4}, "layer_types is not a list"),
    ("gemma3_text", {"sliding_window_pattern": 0}, "every 0th layer"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "attention in both directions"),
    ("gemma3_text", {"sliding_window": None}, "sliding_window: is missing"),
    ("qwen2", {"use_sliding_window": True}, "sliding_window: is missing"),
    ("qwen2", {"rope_scaling": {"type": "mrope"}}, "rotary scaling of type 'mrope'"),
    ("phi", {"qk_layernorm": True}, "layer norms of q and k"),
    ("phi3", {"rope_scaling": {**LONG, "short_factor": None}}, "without a list short_factor"),
    ("phi3", {"rope_scaling": {**LONG, "short_factor": [1.0] * 7}}, "7 rotary factors for 8 frequencies"),
    ("phi3", {"rope_scaling": {**LONG, "short_factor": [0.0] * 8}}, "one is not positive"),
    ("phi3", {"rope_scaling": {**LONG, "short_factor": ["1"] * 8}}, "short_factor is '1'"),
    ("phi3", {"rope_scaling": {**LONG, "original_max_position_embeddings": 1}}, "which is no context"),
    ("phi3", {"rope_scaling": {**LONG, "original_max_position_embeddings": None}}, "is missing"),
    ("smollm3", {"no_rope_layers": [1, 1, 0]}, "no_rope_layers is not a list of 4 times"),
    ("smollm3", {"no_rope_layers": [1, 1, 0, "x"]}, "no_rope_layers is not a list of 4 times"),
    ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
    ("smollm3", {"use_sliding_window": True}, "SmolLM3 with a sliding window"),
    ("olmo3", {"sliding_window": -1}, "sliding window of -1"),
    ("ministral3", {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}}, "grows by 0.1 every 0.0 tokens"),
    ("qwen3_moe", {"decoder_sparse_step": 2}, "layers without experts"),
    ("qwen3_moe", {"mlp_only_layers": [0]}, "layers without experts"),
    ("qwen3_moe", {"num_experts_per_tok": 9}, "9 of 8 experts"),
    ("granite", {"logits_scaling": 0.0}, "logits are divided by 0.0"),
    ("granite", {"residual_multiplier": -1.0}, "are not all positive"),
    ("granite", {"attention_multiplier": 0.0}, "attention scale 0.0"),
    ("granitemoehybrid", {"layer_types": None}, "the Mamba layers of a Granite hybrid"),
    ("granitemoehybrid", {"layer_types": ["attention"] * 3 + ["linear_attention"]}, "the Mamba layers"),
    ("granitemoehybrid", {"layer_types": ["attention"] * 3}, "layer_types is not a list of 4 times"),
    ("granitemoehybrid", {"layer_types": [["attention"]] * 4}, "layer_types is not a list of 4 times"),
    ("granitemoehybrid", {"num_local_experts": None}, "the 8 experts of a Granite hybrid"),
    ("granitemoehybrid", {"num_local_experts": 62}, "the 62 experts of a Granite hybrid"),
    ("granitemoehybrid", {"position_embedding_type": "alibi"}, "position_embedding_type 'alibi'"),
    ("granitemoehybrid", {"shared_intermediate_size": None}, "shared_intermediate_size: is missing"),
]


@pytest.mark.parametrize(("model_type", "changes", "reason"), REFUSED)
def test_a_config_is_refused(model_type: str, changes: Values, reason: str) -> None:
    with pytest.raises(LoadError) as refusal:
        hf(model_type, changes)
    assert reason in refusal.value.message


REFUSED_METADATA: list[tuple[str, Values, str]] = [
    ("llama", {"rope.scaling.type": "su"}, "rotary scaling of type 'su'"),
    ("llama", {"rope.scaling.type": "yarn", "rope.scaling.factor": -4.0}, "numbers for yarn are not all positive"),
    ("llama", {"rope.scaling.type": "yarn", "rope.scaling.yarn_ext_factor": 0.5}, "a yarn_ext_factor of 0.5"),
    ("llama", {"rope.dimension_count": 17}, "rotary width of 17"),
    ("llama", {"rope.freq_base": -1.0}, "not positive"),
    ("llama", {"rope.freq_base": math.inf}, "not positive"),
    ("llama", {"rope.scaling.attn_factor": 0.0}, "not positive"),
    ("llama", {"attention.key_length": 32, "attention.value_length": 16}, "keys and values of different"),
    ("llama", {"attention.key_length": 0}, "keys and values of different"),
    ("llama", {"attention.head_count_kv": [2, 2, 1, 1]}, "not 4 times the same number"),
    ("llama", {"attention.head_count_kv": [2] * 3}, "not 4 times the same number"),
    ("llama", {"attention.head_count_kv": [True] * 4}, "not 4 times the same number"),
    ("llama", {"attention.head_count_kv": []}, "not 4 times the same number"),
    ("llama", {"attention.head_count_kv": "2"}, "expected int"),
    ("granitehybrid", {"attention.head_count_kv": [0, 2, 0, 2]}, "the Mamba layers of a Granite hybrid"),
    ("granitehybrid", {"attention.head_count_kv": 0}, "the Mamba layers of a Granite hybrid"),
    ("granitehybrid", {"expert_count": 62}, "the 62 experts of a Granite hybrid"),
    ("olmo2", {"attention.sliding_window": 20, "attention.sliding_window_pattern": [1] * 4}, "list of 4 booleans"),
    ("olmo2", {"attention.sliding_window": 20, "attention.sliding_window_pattern": [True] * 3}, "list of 4 booleans"),
    ("olmo2", {"attention.sliding_window": 20, "rope.freq_base_swa": -1.0}, "not positive"),
    ("llama", {"attention.head_count": 5}, "do not fit together"),
    ("llama", {"block_count": 0}, "0 layers"),
    ("llama", {"expert_count": 4}, "expert_used_count': is missing"),
    ("llama", {"expert_count": 4, "expert_used_count": 5}, "5 of 4 experts"),
    ("llama", {"expert_count": 5000, "expert_used_count": 5}, "5 of 5000 experts"),
    ("llama", {"attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon': is missing"),
    ("gemma2", {"attention.sliding_window": None}, "sliding_window': is missing"),
    ("gemma3", {"attention.sliding_window_pattern": 0}, "every 0th layer"),
    ("gemma3", {"attention.sliding_window_pattern": [1] * 4}, "list of 4 booleans"),
    ("phi2", {"attention.layer_norm_epsilon": 0.0}, "norm epsilon"),
]


@pytest.mark.parametrize(("name", "changes", "reason"), REFUSED_METADATA)
def test_metadata_is_refused(name: str, changes: Values, reason: str) -> None:
    with pytest.raises(LoadError) as refusal:
        gguf(name, changes)
    assert reason in refusal.value.message


@pytest.mark.parametrize("factors", [[1.0] * 7, [1.0] * 9, [1.0] * 7 + [0.0], [math.nan] * 8])
@pytest.mark.parametrize(("name", "tensor"), [("llama", "rope_freqs.weight"), ("phi3", "rope_factors_short.weight")])
def test_rotary_factors_are_checked(name: str, tensor: str, factors: list[float]) -> None:
    with pytest.raises(LoadError, match="rotary factors for 8 frequencies"):
        gguf(name, {}, {tensor: factors})


# Nothing else is raised

YARN_KEYS = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.integers(),
    st.floats(),
    st.sampled_from(["yarn", "linear", "su", "gelu"]),
)
VALUES = st.one_of(
    LEAVES,
    st.lists(LEAVES, max_size=5),
    st.dictionaries(
        st.sampled_from(["rope_type", "type", "rope_theta", *LLAMA3, *LONG, *YARN_KEYS]), LEAVES | st.lists(LEAVES)
    ),
)
KEYS = [*CONFIG, *(key for changes in MORE.values() for key in changes), *(key for _, row, _ in REFUSED for key in row)]
METADATA_KEYS = [*METADATA, *(key for _, row, _ in REFUSED_METADATA for key in row), "rope.scaling.factor"]


@pytest.mark.parametrize("model_type", HF_MODEL_TYPES)
@given(changes=st.dictionaries(st.sampled_from(sorted(set(KEYS))), VALUES, min_size=1, max_size=4))
@settings(deadline=None)
def test_any_config_is_read_or_refused(model_type: str, changes: dict[str, Any]) -> None:
    try:
        spec = hf(model_type, changes)
    except LoadError:
        return
    assert_sane(spec)


@pytest.mark.parametrize("name", GGUF_FORMS)
@given(changes=st.dictionaries(st.sampled_from(sorted(set(METADATA_KEYS))), VALUES, min_size=1, max_size=4))
@settings(deadline=None)
def test_any_metadata_is_read_or_refused(name: str, changes: dict[str, Any]) -> None:
    try:
        spec = gguf(name, changes)
    except LoadError:
        return
    assert_sane(spec)


def assert_sane(spec: DecoderSpec) -> None:
    assert spec.attention.num_heads % spec.attention.kv_heads == 0
    assert all(layer.window >= 0 and layer.rope in (None, *range(len(spec.attention.ropes))) for layer in spec.layers)
    for rope in spec.attention.ropes:
        assert all(math.isfinite(frequency) for frequency in inverse_frequencies(rope))
        assert 0 < rope.dim <= spec.attention.head_dim
        assert all(0 < number < math.inf for number in (rope.base, rope.linear_factor, rope.scale, *rope.factors))
