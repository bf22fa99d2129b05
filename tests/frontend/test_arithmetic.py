"""What configurations say about arithmetic: rotary positions as transformers computes them, defaults, refusals."""

from __future__ import annotations

import sys
import warnings
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "graph"))

from taygeta.base.errors import InputError
from taygeta.frontend.catalog import model as catalogue_model
from taygeta.frontend.huggingface import import_config
from taygeta.spec.arithmetic import NormRule, Rope

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 100, "max_position_embeddings": 131072,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}  # fmt: skip


def read(**changes):
    return import_config({**LLAMA, **changes}, "tiny", "test")


def rope(**changes) -> Rope:
    return read(**changes).layers[0].mixer.rope


def test_frequencies_by_hand():
    assert Rope(4, 100.0).frequencies() == pytest.approx((1.0, 0.1))
    assert Rope(4, 100.0, "linear", factor=4.0).frequencies() == pytest.approx((0.25, 0.025))
    # llama3 over an original context of 2 pi x 100: 100 and 10 turns are above `high`, 1 turn below `low`,
    # and 3 turns in the middle keep (3 - 2) / (4 - 2) of themselves and take half of an eighth
    r = Rope(6, 1000.0, "llama3", factor=8.0, original=628, low=2.0, high=4.0)
    assert r.frequencies() == pytest.approx((1.0, 0.1, 0.01 / 8), rel=1e-3)
    middle = Rope(2, 1000.0, "llama3", factor=8.0, original=19, low=2.0, high=4.0)  # 19 / 2 pi = 3.02 turns
    share = (19 / (2 * np.pi) - 2) / 2
    assert middle.frequencies() == pytest.approx((share + (1 - share) / 8,))


SCALINGS = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.5},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768,
    },
    "yarn-untruncated": {
        "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 4096,
        "beta_fast": 30.0, "beta_slow": 2.0, "truncate": False,
    },
    "yarn-deepseek": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096,
        "mscale": 1.0, "mscale_all_dim": 0.5,
    },
    "yarn-given": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64,
        "attention_factor": 1.3,
    },
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("name", SCALINGS)
def test_rotations_as_transformers_has_them(name):
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        config = transformers.LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"} | {
            "head_dim": 64, "rope_parameters": dict(SCALINGS[name])})  # fmt: skip
        kind = SCALINGS[name]["rope_type"]
        function = LlamaRotaryEmbedding.compute_default_rope_parameters
        inverse, magnitude = (function if kind == "default" else ROPE_INIT_FUNCTIONS[kind])(config)
    found = rope(head_dim=64, rope_parameters=SCALINGS[name])
    assert np.allclose(found.frequencies(), inverse.numpy(), rtol=1e-5, atol=0)
    assert found.magnitude == pytest.approx(magnitude)
    old = dict(SCALINGS[name])
    theta = old.pop("rope_theta")
    old["type"] = old.pop("rope_type")  # as before transformers 5
    assert rope(head_dim=64, rope_theta=theta, rope_scaling=old) == found


def test_defaults_of_the_families():
    assert rope() == Rope(8, 10_000.0, original=131072)
    assert read().arithmetic.norm == NormRule("rms", 1e-6)
    gpt2 = catalogue_model("gpt2")
    assert (gpt2.arithmetic.norm, gpt2.layers[0].mixer.rope) == (NormRule("layer", 1e-5), None)
    oss = catalogue_model("gpt-oss-20b")
    r = oss.layers[0].mixer.rope
    assert (r.kind, r.factor, r.theta, r.original, r.truncate) == ("yarn", 32.0, 150_000.0, 4096, False)
    assert r.magnitude == pytest.approx(0.1 * log(32) + 1)
    ffn = oss.layers[0].ffn
    assert (ffn.limit, ffn.alpha, ffn.shift, ffn.normalise) == (7.0, 1.702, 1.0, True)
    gemma = catalogue_model("gemma-2-9b")
    assert gemma.arithmetic.embedding_scale == 3584**0.5
    assert (gemma.arithmetic.logit_softcap, gemma.layers[0].mixer.softcap) == (30.0, 50.0)
    assert gemma.layers[0].post_norms
    deepseek = catalogue_model("deepseek-v3").layers[-1]
    assert deepseek.mixer.rope.interleaved
    assert (deepseek.ffn.scoring, deepseek.ffn.route_scale) == ("sigmoid", 2.5)


def test_deepseek_as_published():
    """The scale grows with the stretched context, 1 / sqrt(192) x (0.1 ln 40 + 1)^2, sines and cosines do not."""
    latent = {
        "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "num_key_value_heads": 8, "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 3,
        "rope_theta": 10000, "rope_scaling": {
            "type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1,
            "original_max_position_embeddings": 4096}}  # fmt: skip
    mixer = import_config({**LLAMA, **latent, "model_type": "deepseek_v3"}, "tiny", "test").layers[0].mixer
    assert mixer.scale == pytest.approx((0.1 * log(40) + 1) ** 2 / 192**0.5)
    assert mixer.rope == Rope(64, 10000.0, "yarn", 40.0, 4096, interleaved=True)


def test_gemma3_before_and_after_transformers_5():
    plain = {**LLAMA, "model_type": "gemma3_text", "hidden_act": None, "sliding_window": 16, "num_hidden_layers": 6}
    old = {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    new = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    found = import_config({**plain, **old}, "tiny", "test")
    assert found == import_config({**plain, "rope_parameters": new}, "tiny", "test")
    local, wide = found.layers[0].mixer.rope, found.layers[5].mixer.rope
    assert (local.theta, local.kind, wide.theta, wide.kind) == (2e4, "default", 1e6, "linear")
    silent = import_config(plain, "tiny", "test").layers
    assert (silent[0].mixer.rope.theta, silent[5].mixer.rope.theta) == (1e4, 1e6)


def test_null_soft_caps_are_none():
    gemma = {**LLAMA, "model_type": "gemma2", "sliding_window": 16, "hidden_act": None}
    plain = import_config(gemma, "tiny", "test")
    nothing = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    bare = import_config({**gemma, **nothing}, "tiny", "test")
    assert (plain.arithmetic.logit_softcap, bare.arithmetic.logit_softcap) == (30.0, 0.0)
    assert (plain.layers[0].mixer.softcap, bare.layers[0].mixer.softcap) == (50.0, 0.0)


def test_layers_of_one_kind_stay_one_object():
    found = catalogue_model("llama-3.1-70b")
    assert len({id(layer) for layer in found.layers}) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
         "tiny: rope_scaling: rope_type = 'longrope' is not supported; it can be default, linear, llama3 or yarn."),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "spin": 3}},
         "tiny: rope_parameters: spin = 3 is not a field that the import of rotary models understands; "
         "if it does not change the computation, remove it."),
        ({"head_dim": 10, "partial_rotary_factor": 0.5},
         "tiny: 5 rotary elements a head are not supported; they turn in pairs."),
        ({"model_type": "mimo"},
         "mimo models cannot be executed yet; deepseek_v3, gemma2, gemma3_text, gpt2, gpt_oss, kimi_k2, llama, "
         "minimax_m2, mistral, mixtral, phi3, qwen2, qwen3, qwen3_moe can."),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_predicted_and_not_executed(changes, reason):
    found = read(**changes)
    assert found.arithmetic is None
    assert found.refusal == reason
    assert found.parameters() > 0


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**7), st.floats(), st.text(max_size=3),
    st.sampled_from(["default", "linear", "llama3", "yarn"]), st.lists(st.integers(), max_size=2),
)  # fmt: skip
NAMES = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "truncate",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "partial_rotary_factor",
]


@settings(max_examples=300, deadline=None)
@given(
    table=st.dictionaries(st.sampled_from(NAMES), VALUES),
    where=st.sampled_from(["rope_scaling", "rope_parameters"]),
    kind=st.sampled_from(["default", "linear", "llama3", "yarn"]),
    outer=st.dictionaries(st.sampled_from(["rope_theta", "partial_rotary_factor", "rms_norm_eps"]), VALUES),
)
def test_whatever_a_table_holds_is_read_or_refused(table, where, kind, outer):
    try:
        found = read(**outer, **{where: {"rope_type": kind, **table}})
    except InputError:
        return
    if found.arithmetic is not None:
        r = found.layers[0].mixer.rope
        assert len(r.frequencies()) == r.dim // 2
        assert np.isfinite(r.frequencies()).all()
    else:
        assert found.refusal


def test_gpt2_that_scales_by_layer_is_not_executed():
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 9}
    config["scale_attn_by_inverse_layer_idx"] = True
    assert import_config(config, "tiny", "test").refusal == (
        "tiny: scale_attn_by_inverse_layer_idx = true is not supported; it can be false."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm_eps": "small"}, "tiny: rms_norm_eps must be a number from 0 to 1, not 'small'."),
        ({"rms_norm_eps": True}, "tiny: rms_norm_eps must be a number from 0 to 1, not true."),
        ({"rms_norm_eps": float("nan")}, "tiny: rms_norm_eps must be a number from 0 to 1, not nan."),
        ({"rope_theta": -1}, "tiny: rope_theta must be a number from 1.01 to 1e+12, not -1."),
        ({"rope_scaling": 3}, "tiny: rope_scaling must be a table of fields, not 3."),
    ],
)
def test_wrong_types_are_refused(changes, message):
    with pytest.raises(InputError) as caught:
        read(**changes)
    assert str(caught.value) == message


def test_minimax_turns_half_a_head_and_norms_over_all_heads():
    """rotary_dim 64 of 128, theta 5e6, sigmoid scores that are divided by the sum of the chosen."""
    config = {
        "model_type": "minimax_m2", "hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 50, "hidden_act": "silu",
        "max_position_embeddings": 64, "tie_word_embeddings": False, "num_local_experts": 4, "num_experts_per_tok": 2,
        "rotary_dim": 64, "use_qk_norm": True, "use_routing_bias": True, "scoring_func": "sigmoid",
    }  # fmt: skip
    found = import_config(config, "tiny", "test").layers[0]
    assert (found.mixer.rope.dim, found.mixer.rope.theta, found.mixer.qk_norm) == (64, 5e6, "full")
    assert found.mixer.norm_eps == 1e-6
    assert (found.ffn.scoring, found.ffn.normalise, found.ffn.correction_bias) == ("sigmoid", True, True)
    assert found.ffn.route_scale == 1.0
    del config["rotary_dim"]
    assert import_config(config, "tiny", "test").layers[0].mixer.rope.dim == 128
