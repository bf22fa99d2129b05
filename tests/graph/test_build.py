"""The graph of a model: FLOP, bytes and weights counted by hand."""

from __future__ import annotations

import pytest

from taygeta.frontend.catalog import model, model_names
from taygeta.graph.build import expand_from
from taygeta.graph.ops import Op
from taygeta.graph.partition import stages
from taygeta.spec.deployment import Deployment
from taygeta.spec.mixers import LatentAttention


def ops(d: Deployment) -> dict[str, Op]:
    return {op.name: op for graph in stages(d) for op, _ in graph.ops()}


def test_flop_of_a_layer(deploy, dense):
    found = ops(deploy(dense))
    assert found["qkv"].matmul_flop(10) == 2 * 10 * 64 * (8 * 8 + 4 * 8 + 4 * 8)
    assert found["o"].matmul_flop(10) == 2 * 10 * (8 * 8) * 64
    assert found["up"].matmul_flop(10) == 2 * 10 * 64 * (2 * 128)
    assert found["down"].matmul_flop(10) == 2 * 10 * 128 * 64
    assert found["head"].matmul_flop(3) == 2 * 3 * 64 * 100


def test_flop_of_llama_3_1_70b_layer(deploy):
    found = ops(deploy(model("llama-3.1-70b")))
    layer = sum(found[name].matmul_flop(1) for name in ("qkv", "o", "up", "down"))
    # q and o 8192 x 8192, k and v 8192 x 1024, gate, up and down 8192 x 28672
    assert layer == 2 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)


def test_bytes_of_weights(deploy, dense):
    graph = stages(deploy(dense))[0]
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64  # q, k and v, o, gate up down, two norms
    assert graph.weight_elements() == 4 * layer + 2 * 100 * 64 + 64  # embedding, head, final norm
    assert graph.weight_bytes() == 2 * graph.weight_elements()


@pytest.mark.parametrize("name", model_names())
def test_graph_holds_every_parameter_once(deploy, name):
    found = model(name)
    assert sum(graph.weight_elements() for graph in stages(deploy(found))) == found.parameters()


def test_absorbed_and_expanded_take_the_same_weights(deploy, latent):
    found = ops(deploy(latent))
    kv_b = 32 * 8 * (8 + 8)
    assert found["absorb keys"].weight_elements() + found["absorb values"].weight_elements() == kv_b
    assert found["expand latents"].weight_elements() == 0  # stored by the absorbed form, read again
    assert found["expand latents"].read_weight_bytes() == 2 * kv_b
    assert found["absorb keys"].matmul_flop(1) == 2 * 8 * 8 * 32  # per head: nope 8 into the latent 32


def test_deepseek_expands_from_171_tokens():
    # 2 x 512 x 256 / (2 x (576 + 512) - 2 x (192 + 128)) = 170.67
    assert expand_from(LatentAttention(128, 1536, 512, 128, 64, 128)) == 171


def test_layers_that_choose_their_keys(deploy):
    found = ops(deploy(model("glm-5"), 8, tp=8))
    assert "expand latents" not in found  # queries share no keys
    attend, scores = found["latent attention"].detail, found["index scores"].detail
    assert (attend.heads, attend.kv_heads, attend.qk_dim, attend.v_dim, attend.top_k) == (8, 1, 576, 512, 2048)
    assert attend.rebuilt == (192 + 64, 256)
    assert attend.expand_from > 2**50  # never
    assert (scores.heads, scores.qk_dim, scores.v_dim, scores.top_k) == (32, 128, 0, 2048)  # all heads on every rank
    assert scores.scores_only
    assert not attend.scores_only
    written = found["index quantise and cache write"].writes
    assert [s.row_bytes for s in written] == [32 * 128, 128]  # fp8
    assert found["index norm and rotary"].weight_elements() == 2 * 128  # scale and shift of the keys' norm


def test_native_formats_of_gpt_oss(deploy):
    found = ops(deploy(model("gpt-oss-120b")))
    assert found["experts"].weight_format == "mxfp4"
    assert found["qkv"].weight_format == "bf16"
    experts = 128 * (2880 * 2 * 2880 + 2880 * 2880) + 128 * (2 * 2880 + 2880)  # matrices and biases
    assert found["experts"].weight_bytes() == experts * 0.53125


def test_activations_follow_what_the_chip_computes():
    from taygeta.spec.catalog import chip
    from taygeta.spec.deployment import choose_formats

    found = model("gpt-oss-120b")
    assert choose_formats(found, chip("maia-100")).expert_activations == "mx9"
    assert choose_formats(found, chip("b200")).expert_activations == "mxfp8"
    assert choose_formats(found, chip("h100")).expert_activations == "bf16"
    assert choose_formats(found, chip("a100"), weights="fp8").activations == "bf16"  # no fp8 arithmetic: widened
    assert choose_formats(found, chip("h100"), weights="fp8").activations == "fp8"
    assert choose_formats(found, chip("h100"), weights="fp8", activations="bf16").activations == "bf16"


def test_a_pairing_that_the_chip_lacks_is_not_taken():
    from dataclasses import replace
    from types import MappingProxyType

    from taygeta.spec.catalog import chip
    from taygeta.spec.deployment import choose_formats

    plain = replace(chip("b200"), peaks=MappingProxyType({"bf16": 1e15}))
    assert choose_formats(model("gpt-oss-120b"), plain).expert_activations == "bf16"
