"""Checkpoints to parameters: names as published, packed experts, and what is refused."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "graph"))
import tiny_models as tiny

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.frontend.catalog import model as catalogue_model
from taygeta.frontend.checkpoint import open_checkpoint
from taygeta.frontend.huggingface import load_config
from taygeta.frontend.mxfp4 import dequantise_blocks
from taygeta.frontend.weights import load_weights

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", list(tiny.FAMILIES))
def test_a_saved_checkpoint_gives_the_parameters_of_the_model_in_memory(name, tmp_path):
    """transformers writes the names of published checkpoints (one tensor an expert), and its own config.json."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny.torch_model(name).save_pretrained(tmp_path)
    tensors = open_checkpoint(tmp_path)
    if name.startswith(("mixtral", "qwen3_moe", "deepseek", "minimax")):
        assert any(".experts.0." in key for key in tensors)
    model, _, expected = tiny.ours(name)
    assert replace(load_config(tmp_path), name=name, source="test", native=model.native) == model
    found = load_weights(model, tensors)
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert found[key].dtype == np.float32
        assert np.array_equal(found[key], array), key


def test_hand_counted_layouts():
    """Which element of a checkpoint is which of ours, for every layout that is not a transposed matrix."""
    _, _, llama = tiny.ours("llama")
    t = tiny.tensors("llama")
    assert llama[2, "q"][5, 3, 1] == t["model.layers.2.self_attn.q_proj.weight"][3 * 8 + 1, 5]
    assert llama[2, "o"][3, 1, 5] == t["model.layers.2.self_attn.o_proj.weight"][5, 3 * 8 + 1]
    assert llama[1, "up"][5, 0, 7] == t["model.layers.1.mlp.gate_proj.weight"][7, 5]
    assert llama[1, "up"][5, 1, 7] == t["model.layers.1.mlp.up_proj.weight"][7, 5]
    assert llama[1, "ffn_norm"][0, 4] == t["model.layers.1.post_attention_layernorm.weight"][4]
    _, _, gpt2 = tiny.ours("gpt2")
    t = tiny.tensors("gpt2")
    assert gpt2[0, "k"][5, 3, 1] == t["transformer.h.0.attn.c_attn.weight"][5, 32 + 3 * 8 + 1]
    assert gpt2[0, "v_bias"][3, 1] == t["transformer.h.0.attn.c_attn.bias"][64 + 3 * 8 + 1]
    assert gpt2[0, "mixer_norm"][1, 4] == t["transformer.h.0.ln_1.bias"][4]
    assert gpt2[None, "tied head"][4, 90] == t["transformer.wte.weight"][90, 4]
    _, _, phi3 = tiny.ours("phi3")
    t = tiny.tensors("phi3")
    assert phi3[0, "v"][5, 1, 2] == t["model.layers.0.self_attn.qkv_proj.weight"][32 + 16 + 8 + 2, 5]
    assert phi3[0, "up"][5, 1, 7] == t["model.layers.0.mlp.gate_up_proj.weight"][48 + 7, 5]
    _, _, oss = tiny.ours("gpt_oss")
    t = tiny.tensors("gpt_oss")
    assert oss[0, "experts_up"][3, 5, 1, 7] == t["model.layers.0.mlp.experts.gate_up_proj"][3, 5, 15]
    assert oss[0, "experts_up_bias"][3, 0, 7] == t["model.layers.0.mlp.experts.gate_up_proj_bias"][3, 14]
    _, _, latent = tiny.ours("deepseek_v3")
    t = tiny.tensors("deepseek_v3")
    assert latent[0, "kv_b keys"][2, 7, 9] == t["model.layers.0.self_attn.kv_b_proj.weight"][2 * 14 + 7, 9]
    assert latent[0, "kv_b values"][2, 9, 5] == t["model.layers.0.self_attn.kv_b_proj.weight"][2 * 14 + 8 + 5, 9]
    assert latent[0, "kv_b again"][9, 2, 13] == t["model.layers.0.self_attn.kv_b_proj.weight"][2 * 14 + 13, 9]


def test_other_names_of_the_same():
    """GPT-2 as it was published, without a prefix and with mask buffers; Gemma 3 inside a multimodal checkpoint."""
    model, _, expected = tiny.ours("gpt2")
    bare = {key.removeprefix("transformer."): v for key, v in tiny.tensors("gpt2").items()}
    bare |= {"h.0.attn.bias": np.zeros((1, 1, 128, 128)), "h.1.attn.masked_bias": np.float32(-1e4)}
    found = load_weights(model, bare)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    model, _, expected = tiny.ours("gemma3_text")
    inside = {f"language_model.{key}": v for key, v in tiny.tensors("gemma3_text").items()}
    inside |= {"vision_tower.vision_model.post_layernorm.weight": np.zeros(4)}
    inside |= {"multi_modal_projector.mm_soft_emb_norm.weight": np.zeros(4)}
    found = load_weights(model, inside)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_multi_token_prediction_is_left_out():
    model, _, _ = tiny.ours("deepseek_v3")
    more = tiny.tensors("deepseek_v3") | {"model.layers.3.eh_proj.weight": np.zeros((32, 64))}
    assert len(model.mtp) == 1
    assert len(load_weights(model, more)) == len(load_weights(model, tiny.tensors("deepseek_v3")))
    with pytest.raises(InputError):
        load_weights(replace(model, mtp=()), more)


def refusal(name: str, tensors, error=InputError) -> str:
    with pytest.raises(error) as caught:
        load_weights(tiny.ours(name)[0], tensors, "here")
    return str(caught.value)


def test_refusals():
    good = tiny.tensors("llama")
    name = "model.layers.3.self_attn.k_proj.bias"
    assert refusal("llama", {k: v for k, v in good.items() if k != name}) == (
        f"here: the tensor '{name}' is missing; this llama model needs it as 16."
    )
    assert refusal("llama", good | {name: np.zeros((2, 8))}) == (
        f"here: the tensor '{name}' is 2 x 8; the configuration of this llama model needs 16."
    )
    assert refusal("llama", good | {"model.layers.4.mlp.up_proj.weight": np.zeros((48, 32))}) == (
        "here: the tensor 'model.layers.4.mlp.up_proj.weight' is no part of this llama model; "
        "is it another model's checkpoint, or quantised in a way that is not supported?"
    )
    assert refusal("llama", {}) == (
        "here: the tensor 'model.embed_tokens.weight' is missing; every checkpoint of this family has it."
    )
    with pytest.raises(UnsupportedError) as caught:
        load_weights(catalogue_model("qwen3.5-27b"), {})
    assert str(caught.value).startswith(
        "Qwen/Qwen3.5-27B can be predicted and not executed: qwen3_5_text models cannot be executed yet; deepseek_v3, "
    )


def packed(rng, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // 32, 16), dtype=np.uint8)
    return blocks, rng.integers(118, 125, blocks.shape[:-1], dtype=np.uint8)


def test_mxfp4_by_hand():
    """0x2c: first -2 (code 12), then 1 (code 2); scale 2^(129 - 127)."""
    blocks = np.zeros((1, 1, 16), np.uint8)
    blocks[0, 0, :2] = 0x2C, 0xF1
    found = dequantise_blocks(blocks, np.array([[129]], np.uint8))
    assert found.shape == (1, 32)
    assert found[0, :5].tolist() == [-8.0, 4.0, 2.0, -24.0, 0.0]
    assert np.isnan(dequantise_blocks(blocks, np.array([[255]], np.uint8))).all()
    smallest = dequantise_blocks(blocks, np.array([[0]], np.uint8))[0]
    assert smallest[2] == 0.5 * 2.0**-127  # subnormal, exact


def test_mxfp4_as_transformers_unpacks_it():
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    blocks, scales = packed(np.random.default_rng(0), 3, 10, 64)
    expected = mxfp4.convert_moe_packed_tensors(
        tiny.torch.tensor(blocks), tiny.torch.tensor(scales), dtype=tiny.torch.float32
    )
    assert np.array_equal(dequantise_blocks(blocks, scales).transpose(0, 2, 1), expected.numpy())


def test_gpt_oss_with_packed_experts():
    """Blocks and scales in place of the matrices: the same parameters as from the matrices they stand for."""
    model, _, _ = tiny.ours("gpt_oss")
    wide = replace(model, d_model=64, layers=tuple(replace(x, ffn=replace(x.ffn, d_ff=96)) for x in model.layers))
    rng = np.random.default_rng(1)
    shapes = {n: s for r in _recipes(wide) for n, s in r.tensors}
    plain = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    stored = dict(plain)
    for name in [n for n in plain if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = plain[name].shape
        blocks, scales = packed(rng, experts, outputs, inputs)
        plain[name] = dequantise_blocks(blocks, scales).transpose(0, 2, 1)
        del stored[name]
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    a, b = load_weights(wide, plain), load_weights(wide, stored)
    assert set(a) == set(b)
    assert all(np.array_equal(a[key], b[key]) for key in a)


def _recipes(model):
    from taygeta.frontend.recipes import outer_recipes
    from taygeta.frontend.recipes_layers import layer_recipes

    yield from outer_recipes(model, "model.", ()).values()
    for i, layer in enumerate(model.layers):
        yield from layer_recipes(model, layer, f"model.layers.{i}.", ()).values()
