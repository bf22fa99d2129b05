"""Weights of 8 bits with scales: values as torch dequantises them, and every scale that is missing or wrong named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.frontend.checkpoint import open_checkpoint
from taygeta.frontend.huggingface import load_config
from taygeta.frontend.recipes import outer_recipes
from taygeta.frontend.recipes_layers import layer_recipes
from taygeta.frontend.scales import dequantise_codes, with_scales
from taygeta.frontend.weights import load_weights

torch = pytest.importorskip("torch")
ml_dtypes = pytest.importorskip("ml_dtypes")
write = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.torch

# Sides that are no multiples of 128: the last blocks of rows and of columns are cut.
QWEN3 = {
    "model_type": "qwen3", "hidden_size": 144, "intermediate_size": 272, "num_hidden_layers": 2, "vocab_size": 40,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 40, "max_position_embeddings": 64,
    "tie_word_embeddings": False, "hidden_act": "silu", "rms_norm_eps": 1e-6,
}  # fmt: skip
EXPERTS = {
    **QWEN3, "model_type": "qwen3_moe", "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 136,
    "norm_topk_prob": True,
}  # fmt: skip
LATENT = {
    **{k: v for k, v in QWEN3.items() if k != "head_dim"}, "model_type": "deepseek_v3", "num_key_value_heads": 4,
    "moe_intermediate_size": 136, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1, "kv_lora_rank": 136, "q_lora_rank": 130, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 40, "v_head_dim": 36, "n_group": 2, "topk_group": 1, "num_nextn_predict_layers": 1,
}  # fmt: skip
BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": "FP8", "ignore": ["lm_head"]}


def compressed(strategy: str, bits: int = 8, kind: str = "float") -> dict:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": False}
    weights |= {"block_structure": [128, 128]} if strategy == "block" else {}
    inputs = {"num_bits": bits, "type": kind, "strategy": "token", "symmetric": True, "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


# name: configuration, its quantization_config, what follows the name of a tensor, the scale's layout, type and bits
LAYOUTS = {
    "blocks": (QWEN3, BLOCKS, "_scale_inv", "blocks", torch.float32),
    "blocks-experts": (EXPERTS, BLOCKS, "_scale_inv", "blocks", torch.bfloat16),
    "blocks-latent": (LATENT, {**BLOCKS, "scale_fmt": "ue8m0"}, "_scale_inv", "blocks", torch.float8_e8m0fnu),
    "tensor": (QWEN3, {**BLOCKS, "weight_block_size": None}, "_scale_inv", "tensor", torch.float32),
    "modelopt": (QWEN3, MODELOPT, "_scale", "tensor", torch.float32),
    "one": (QWEN3, compressed("tensor"), "_scale", "one", torch.bfloat16),
    "channel": (QWEN3, compressed("channel"), "_scale", "channel", torch.bfloat16),
    "channel-experts": (EXPERTS, compressed("channel"), "_scale", "channel", torch.float16),
    "block": (QWEN3, compressed("block"), "_scale", "blocks", torch.float32),
    "int8": (QWEN3, compressed("channel", 8, "int"), "_scale", "channel", torch.float32),
}  # fmt: skip


def random_codes(shape: tuple[int, ...], bits: torch.Generator, whole: bool) -> torch.Tensor:
    """Any code of e4m3 but the two that are no number, or any whole number of 8 bits."""
    codes = torch.randint(0, 256, shape, generator=bits, dtype=torch.uint8)
    if whole:
        return codes.view(torch.int8)
    codes[(codes & 127) == 127] -= 1
    return codes.view(torch.float8_e4m3fn)


def random_scale(shape: tuple[int, int], layout: str, dtype: torch.dtype, bits: torch.Generator) -> torch.Tensor:
    rows, columns = shape
    sides = {"blocks": (-(-rows // 128), -(-columns // 128)), "channel": (rows, 1), "one": (1,), "tensor": ()}[layout]
    if dtype == torch.float8_e8m0fnu:
        return torch.randint(110, 130, sides, generator=bits, dtype=torch.uint8).view(dtype)
    return (torch.rand(sides, generator=bits) * 0.01 + 1e-4).to(dtype)


def dequantised(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What the layouts say, element by element: each scale is repeated over all that share it."""
    rows, columns = codes.shape
    wide = scale.float()
    if wide.ndim == 2 and wide.shape != (rows, 1):
        wide = wide.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return codes.float() * wide


def stored_as(name: str, place: Path, seed: int = 0):
    """Write a checkpoint in a layout; returns its model, and the values that its tensors stand for."""
    config, quantisation, ending, layout, dtype = LAYOUTS[name]
    (place / "config.json").write_text(json.dumps({**config, "quantization_config": quantisation}))
    model = load_config(place)
    bits = torch.Generator().manual_seed(seed)
    stored, values = {}, {}
    for key, shape in shapes_of(model).items():
        if not key.endswith("_proj.weight"):
            values[key] = stored[key] = torch.randn(shape, generator=bits)
            continue
        stored[key] = random_codes(shape, bits, name == "int8")
        stored[key + ending] = random_scale(shape, layout, dtype, bits)
        values[key] = dequantised(stored[key], stored[key + ending])
        if name == "modelopt":
            stored[key.replace(".weight", ".input_scale")] = torch.tensor(0.5)
            if "k_proj" in key:
                stored[key.replace(".weight", ".k_scale")] = torch.tensor(1.0)
    if model.mtp:  # a module that predicts further tokens is no part of the next one
        stored["model.layers.2.self_attn.o_proj.weight"] = random_codes((144, 144), bits, False)
        stored["model.layers.2.self_attn.o_proj.weight_scale_inv"] = torch.ones(2, 2)
    write(stored, place / "model.safetensors", {"format": "pt"})
    return model, {key: value.numpy() for key, value in values.items()}


def shapes_of(model) -> dict[str, tuple[int, ...]]:
    found = list(outer_recipes(model, "model.", ()).values())
    for i, layer in enumerate(model.layers):
        found += layer_recipes(model, layer, f"model.layers.{i}.", ()).values()
    return {name: shape for recipe in found for name, shape in recipe.tensors}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_is_what_torch_dequantises(name, tmp_path):
    model, values = stored_as(name, tmp_path)
    found, expected = load_weights(model, open_checkpoint(tmp_path)), load_weights(model, values)
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert found[key].dtype == np.float32
        assert np.array_equal(found[key], array), key


@settings(max_examples=60, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    layout=st.sampled_from(["blocks", "channel", "one", "tensor"]),
    seed=st.integers(0, 2**31),
    whole=st.booleans(),
)
def test_any_shape_and_layout(sides, layout, seed, whole):
    bits = torch.Generator().manual_seed(seed)
    codes, scale = random_codes(sides, bits, whole), random_scale(sides, layout, torch.float32, bits)
    ours = codes.view(torch.uint8).numpy().view(np.int8 if whole else ml_dtypes.float8_e4m3fn)
    assert np.array_equal(dequantise_codes(ours, scale.numpy()), dequantised(codes, scale).numpy())


def test_by_hand():
    """e4m3: 0x38 = 1, 0xC0 = -2, 0x7E = 448, 0x01 = 2^-9; row 128 is the first of the second block."""
    codes = np.zeros((129, 130), np.uint8)
    codes[0, 0], codes[0, 129], codes[128, 0], codes[128, 129] = 0x38, 0xC0, 0x7E, 0x01
    found = dequantise_codes(codes.view(ml_dtypes.float8_e4m3fn), np.float32([[3, 5], [7, 11]]))
    assert (found[0, 0], found[0, 129], found[128, 0], found[128, 129]) == (3.0, -10.0, 3136.0, 11 / 512)
    assert np.count_nonzero(found) == 4
    stack = np.stack((codes, codes)).view(ml_dtypes.float8_e4m3fn)
    scale = np.float32([[[3, 5], [7, 11]], [[1, 1], [2, 1]]])
    assert np.array_equal(dequantise_codes(stack, scale)[1], dequantise_codes(stack[1], scale[1]))
    assert dequantise_codes(stack, scale)[1, 128, 0] == 896.0


W = "model.layers.1.mlp.up_proj.weight"  # 272 x 144


def refusal(name: str, place: Path, changed: dict, error: type[Exception] = InputError, read: bool = False) -> str:
    """Load a checkpoint with tensors replaced, or removed where None."""
    model, _ = stored_as(name, place)
    tensors = {**open_checkpoint(place), **changed}
    kept = {key: value for key, value in tensors.items() if value is not None}
    found = load_weights(model, kept, "here") if read else {}
    with pytest.raises(error) as caught:
        _ = found[1, "up"] if read else load_weights(model, kept, "here")
    return str(caught.value)


def test_scales_that_are_missing_or_wrong_are_named(tmp_path):
    scale = f"{W}_scale_inv"
    assert refusal("blocks", tmp_path, {scale: None}) == (
        f"here: the tensor '{W}' is F8_E4M3 and its scale is missing; it is called '{scale}' or '{W}_scale'."
    )
    assert refusal("blocks", tmp_path, {scale: np.ones((2, 3), np.float32)}) == (
        f"here: the scale '{scale}' is 2 x 3; for a tensor of 272 x 144 it is 3 x 2 (blocks of 128 x 128), "
        "or a single number."
    )
    assert refusal("channel", tmp_path, {f"{W}_scale": np.ones((144, 1), np.float32)}) == (
        f"here: the scale '{W}_scale' is 144 x 1; for a tensor of 272 x 144 it is 272 x 1 (one an output), "
        "3 x 2 (blocks of 128 x 128), or a single number."
    )
    assert refusal("blocks", tmp_path, {scale: np.ones((3, 2), np.int32)}) == (
        f"here: the scale '{scale}' is int32; scales are F32, F16, BF16 or F8_E8M0."
    )
    assert refusal("blocks", tmp_path, {f"{W}_scale": np.ones((3, 2), np.float32)}) == (
        f"here: the tensor '{W}' has two scales, '{scale}' and '{W}_scale'; it has one."
    )
    assert "'model.layers.9.up.weight_scale_inv' is no part of" in refusal(
        "blocks", tmp_path, {"model.layers.9.up.weight_scale_inv": np.ones((3, 2), np.float32)}
    )
    plain = "model.norm.weight_scale_inv"  # beside a tensor that is not stored in codes
    assert f"'{plain}' is no part of" in refusal("blocks", tmp_path, {plain: np.ones((), np.float32)})
    assert f"'{W}' is 272 x 143; " in refusal("blocks", tmp_path, {W: np.zeros((272, 143), ml_dtypes.float8_e4m3fn)})
    activations = W.replace("weight", "input_scale")
    assert refusal("modelopt", tmp_path, {activations: np.ones(3, np.float32)}) == (
        f"here: the scale '{activations}' is 3; a scale of activations is a single number."
    )
    assert "'model.input_scaled' is no part" in refusal("modelopt", tmp_path, {"model.input_scaled": np.ones(1)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e37])
def test_scales_that_are_no_scales(value, tmp_path):
    scale = np.ones((3, 2), np.float32)
    scale[1, 1] = value
    assert refusal("blocks", tmp_path, {f"{W}_scale_inv": scale}, read=True) == (
        f"here: a scale of '{W}' is negative, not a number or too large for fp32; every scale must be a number from "
        "0 on."
    )


@pytest.mark.parametrize(
    ("beside", "method"),
    [
        ({W: None, "qweight": np.zeros((18, 272), np.int32)}, "GPTQ or AWQ"),
        ({W: None, "weight_packed": np.zeros((272, 18), np.int32)}, "compressed-tensors"),
        ({W: np.zeros((272, 72), np.uint8), "weight_scale_2": np.float32(1)}, "ModelOpt's NVFP4"),
        ({W: np.zeros((19584, 1), np.uint8), "weight.absmax": np.ones(612)}, "bitsandbytes"),
        ({W: np.zeros((272, 144), np.int8), "SCB": np.ones(272)}, "bitsandbytes"),
    ],
)
def test_packed_weights_are_refused_by_the_name_of_the_method(beside, method, tmp_path):
    named = {k if k == W else W.replace("weight", k, 1): v for k, v in beside.items()}
    found = refusal("blocks", tmp_path, named, UnsupportedError)
    assert found.startswith(f"here: '{next(k for k in named if k != W)}' says that '{W}' is packed by {method}, which ")
    assert found.endswith("; weights can be BF16, F16 or F32, F8_E4M3 or I8 with scales, and MXFP4 as gpt-oss has it.")


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e5m2, np.uint8, np.int32])
def test_types_that_are_no_weights(kind, tmp_path):
    found = refusal("blocks", tmp_path, {W: np.zeros((272, 144), kind)}, UnsupportedError)
    assert found.startswith(f"here: the tensor '{W}' is {np.dtype(kind)}, which is no format of weights; ")


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes"])
def test_methods_that_no_configuration_may_name(method, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**QWEN3, "quantization_config": {"quant_method": method}}))
    with pytest.raises(UnsupportedError, match=f"quant_method = '{method}' is not supported; it can be fp8, mxfp4, "):
        load_config(tmp_path)


def test_what_is_not_used_is_not_touched():
    given = {"a.weight": np.zeros((2, 2), np.float32), "b.weight": np.zeros(2, np.uint8), "b.input_scale": np.ones(1)}
    assert with_scales(given, ["a.weight"], "here") == given
