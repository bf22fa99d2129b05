"""Native formats: what each method of published checkpoints makes of each part, and what is refused."""

import json

import pytest

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.base.formats import FORMATS
from taygeta.frontend import entries, import_config, load_config, model
from taygeta.spec.model import NativeFormats

MOE = {
    "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 100,
    "max_position_embeddings": 100, "hidden_act": "silu", "num_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "intermediate_size": 128, "mlp_only_layers": [0],
}  # fmt: skip


def quantised(**config):
    return import_config({**MOE, "quantization_config": config}, "tiny", "test")


def refusal(**config):
    with pytest.raises(InputError) as caught:
        quantised(**config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "attention", "ffn", "experts", "shared", "activations", "kv"),
    [
        ("llama-3.1-70b", "bf16", "bf16", "bf16", "bf16", "bf16", "bf16"),
        ("gpt2", "fp32", "fp32", "fp32", "fp32", "fp32", "fp32"),
        ("gpt-oss-120b", "bf16", "bf16", "mxfp4", "bf16", "bf16", "bf16"),
        ("deepseek-r1", "fp8_block", "fp8_block", "fp8_block", "fp8_block", "fp8_block", "bf16"),
        ("glm-5-fp8", "fp8_block", "fp8_block", "fp8_block", "fp8_block", "fp8_block", "bf16"),
        ("minimax-m2.5", "fp8_block", "bf16", "fp8_block", "bf16", "fp8_block", "bf16"),
        ("qwen3-32b-fp8-static-pertensor", "fp8_static", "fp8_static", "bf16", "bf16", "fp8_static", "fp8_static"),
        ("nvidia/llama-3.1-8b-instruct-fp8", "fp8_static", "fp8_static", "bf16", "bf16", "fp8_static", "fp8_static"),
        ("deepseek-v3.1-nvfp4", "bf16", "nvfp4", "nvfp4", "nvfp4", "nvfp4", "fp8_static"),
        ("kimi-k2.5", "bf16", "bf16", "int4", "bf16", "bf16", "bf16"),
    ],
)
def test_published_checkpoints(name, attention, ffn, experts, shared, activations, kv):
    base = "fp32" if name == "gpt2" else "bf16"
    expected = NativeFormats(attention, ffn, experts, shared, base, activations, kv, base)
    assert model(name).native == expected


def test_every_native_format_is_a_format():
    for entry in entries():
        assert set(vars(model(entry.name).native).values()) <= set(FORMATS)


def test_base_format_is_the_dtype():
    assert import_config({**MOE, "torch_dtype": "float16"}, "tiny", "test").native == NativeFormats(*["fp16"] * 8)
    with pytest.raises(UnsupportedError) as caught:
        import_config({**MOE, "dtype": "float8"}, "tiny", "test")
    assert str(caught.value) == "tiny: dtype = 'float8' is not supported; it can be bfloat16, float16 or float32."


def test_fp8_by_tensor_and_by_blocks():
    assert quantised(quant_method="fp8").native.experts == "fp8"
    assert quantised(quant_method="fp8", activation_scheme="static").native.experts == "fp8_static"
    blocks = quantised(quant_method="fp8", weight_block_size=[128, 128]).native
    assert (blocks.experts, blocks.ffn, blocks.head, blocks.embedding) == ("fp8_block", "fp8_block", "bf16", "bf16")


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("self_attn", {"attention"}),
        ("model.layers", {"attention", "ffn", "experts"}),
        ("re:.*self_attn.*", {"attention"}),
        ("*self_attn*", {"attention"}),
        ("model.layers.*.self_attn", {"attention"}),
        ("re:.*mlp\\.(gate|up|down)_proj$", {"ffn"}),
        ("re:.*experts.*", {"experts"}),
        ("mlp.gate", set()),
        ("lm_head", set()),
        ("model.layers.9.self_attn", set()),
    ],
)
def test_patterns_of_modules(pattern, kept):
    config = {"quant_method": "fp8", "modules_to_not_convert": [pattern]}
    native = quantised(**config).native
    assert {part for part in ("attention", "ffn", "experts") if getattr(native, part) == "bf16"} == kept


def test_a_part_that_differs_between_layers_is_noted():
    few = quantised(quant_method="fp8", modules_to_not_convert=["model.layers.1.self_attn"])
    assert few.native.attention == "fp8"
    assert few.notes == ("attention: 1 of 4 layers keep bf16, the others are fp8; all are taken as fp8",)
    most = quantised(quant_method="fp8", modules_to_not_convert=[f"model.layers.{i}.self_attn" for i in range(3)])
    assert most.native.attention == "bf16"


def test_model_optimizer():
    native = quantised(quant_method="modelopt", quant_algo="NVFP4", group_size=16, exclude_modules=["lm_head"]).native
    assert (native.attention, native.head, native.activations, native.kv) == ("nvfp4", "bf16", "nvfp4", "bf16")
    assert quantised(quant_algo="FP8").native.head == "fp8_static"


def test_model_optimizer_beside_the_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MOE))
    assert load_config(tmp_path).native.experts == "bf16"
    quantisation = {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, **quantisation}))
    native = load_config(tmp_path).native
    assert (native.experts, native.kv) == ("nvfp4", "fp8_static")


def weights(**scheme):
    return {"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["Linear"], **scheme}}}


@pytest.mark.parametrize(
    ("scheme", "inputs", "expected"),
    [
        ({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}, None, ("int4", "bf16")),
        ({"num_bits": 8, "type": "int", "strategy": "channel"}, {"dynamic": True}, ("int8", "int8")),
        ({"num_bits": 8, "type": "float", "strategy": "channel"}, {"dynamic": True}, ("fp8", "fp8")),
        ({"num_bits": 8, "type": "float", "strategy": "tensor"}, {"dynamic": False}, ("fp8_static", "fp8_static")),
        ({"num_bits": 8, "type": "float", "strategy": "tensor"}, {"dynamic": True}, ("fp8", "fp8")),
        ({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}, None, ("nvfp4", "bf16")),
        (
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]},
            {"dynamic": True},
            ("fp8_block", "fp8_block"),
        ),
    ],
)
def test_compressed_tensors(scheme, inputs, expected):
    found = quantised(**weights(weights=scheme, input_activations=inputs)).native
    assert (found.experts, found.activations) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"quant_method": "awq"},
            "tiny: quantization_config: quant_method = 'awq' is not supported; "
            "it can be fp8, mxfp4, modelopt or compressed-tensors.",
        ),
        ({}, "tiny: quantization_config: quant_method must be the name of a method such as 'fp8', not null."),
        (
            {"quant_method": "fp8", "weight_block_size": [64, 64]},
            "tiny: quantization_config: weight_block_size = [64, 64] is not supported; it can be [128, 128].",
        ),
        (
            {"quant_method": "fp8", "fmt": "e5m2"},
            "tiny: quantization_config: fmt = 'e5m2' is not supported; it can be e4m3 or float8_e4m3fn.",
        ),
        (
            {"quant_method": "fp8", "zero_point": True},
            "tiny: quantization_config: zero_point = true is not a field that the import of quantised models "
            "understands; if it does not change the computation, remove it.",
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
            "tiny: quantization_config: quant_algo = 'W4A8_AWQ' is not supported; it can be FP8 or NVFP4.",
        ),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["re:(a+)+$"]},
            "tiny: quantization_config: the pattern 're:(a+)+$' is not understood; it can be the name of a module with "
            "'*' in it, or an expression after 're:' with words, '.*', escaped dots and (a|b).",
        ),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["transformer.wte"]},
            "tiny: quantization_config: 'transformer.wte' names no module that is known here; module names look like "
            "'lm_head', 'model.layers.0.self_attn' or 're:.*mlp.*'.",
        ),
        (
            weights(weights={"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}),
            "tiny: quantization_config: config_groups: g: weights: 4-bit int with strategy group and group_size 128 is "
            "not supported; it can be int4 in groups of 32, int8 or fp8 by channel, fp8 by tensor or in blocks of "
            "128 x 128, or NVFP4.",
        ),
        (
            weights(weights=None),
            "tiny: quantization_config: config_groups: g: weights is missing; "
            "it must be a table with num_bits and type.",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {}},
            "tiny: quantization_config: config_groups must hold one group of layers, not 0.",
        ),
    ],
)
def test_refusals_word_for_word(config, message):
    assert refusal(**config) == message


def test_long_lists_of_patterns_are_read_in_time_or_refused():
    # Ten thousand layers, each named once: the work is bounded by the kinds of layers, not by their number.
    each = [f"model.layers.{i}.self_attn" for i in range(10_000)]
    config = {**MOE, "num_hidden_layers": 10_000}
    config["quantization_config"] = {"quant_method": "fp8", "modules_to_not_convert": each + ["*mlp.gate*"] * 400}
    assert import_config(config, "tiny", "test").native.attention == "bf16"
    many = [f"*x{i}*" for i in range(501)]
    message = "tiny: quantization_config: 501 different patterns of modules are too many to be read."
    assert refusal(quant_method="fp8", modules_to_not_convert=many) == message
