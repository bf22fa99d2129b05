"""The recipes of a layer's parameters, for every family that can be executed."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from taygeta.frontend.arithmetic import executable
from taygeta.frontend.mxfp4 import BLOCK, dequantise_blocks
from taygeta.frontend.recipes import Recipe, conv1d, linear, norm, plain, rows_of, ways
from taygeta.spec.mixers import Attention, LatentAttention, Weight
from taygeta.spec.model import DenseFfn, Layer, Model, MoeFfn

# Norms by our names and by transformers'; Gemma's post norms sit elsewhere than their names in other families say.
_NORMS = {"mixer_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_POST_NORMS = {
    "mixer_norm": "input_layernorm",
    "mixer_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}
_GPT2_NORMS = {"mixer_norm": "ln_1", "ffn_norm": "ln_2"}
_ROUTERS = {"gpt_oss": "router"}  # "gate" elsewhere


def layer_recipes(model: Model, layer: Layer, prefix: str, names: Collection[str]) -> dict[str, Recipe]:
    """Return the recipes of one layer by parameter; `prefix` is such as "model.layers.0."."""
    family = executable(model).family
    d = model.d_model
    shift = 2 if layer.norm_bias else 1
    norms = _GPT2_NORMS if family == "gpt2" else _POST_NORMS if layer.post_norms else _NORMS
    axes = (("scale_and_shift", shift), ("d_model", d))
    out = {ours: norm(Weight(ours, axes, "norm"), prefix + theirs) for ours, theirs in norms.items()}
    mixer, ffn = layer.mixer, layer.ffn
    if isinstance(mixer, Attention):
        found = {w.name: w for w in mixer.weights(d)}
        fused = {"gpt2": _gpt2_attention, "phi3": _phi3_attention}.get(family, _attention)
        out |= fused(found, prefix + ("attn." if family == "gpt2" else "self_attn."))
    elif isinstance(mixer, LatentAttention):
        out |= _latent(mixer, {w.name: w for w in mixer.weights(d)}, f"{prefix}self_attn.")
    if isinstance(ffn, DenseFfn):
        dense = {"gpt2": _gpt2_ffn, "phi3": _phi3_ffn}.get(family, _dense)
        out |= dense({w.name: w for w in ffn.weights(d)}, f"{prefix}mlp.")
    elif isinstance(ffn, MoeFfn):
        out |= _moe(ffn, {w.name: w for w in ffn.weights(d)}, prefix, family, names)
    return out


def _attention(w: dict[str, Weight], at: str) -> dict[str, Recipe]:
    out = {name: linear(w[name], f"{at}{name}_proj.weight") for name in ("q", "k", "v")}
    out["o"] = linear(w["o"], f"{at}o_proj.weight", inner=2)
    for name in ("q", "k", "v", "o"):
        if f"{name}_bias" in w:
            out[f"{name}_bias"] = plain(w[f"{name}_bias"], f"{at}{name}_proj.bias")
    for name in ("q_norm", "k_norm"):
        if name in w:
            out[name] = plain(w[name], f"{at}{name}.weight")
    if "sinks" in w:
        out["sinks"] = plain(w["sinks"], f"{at}sinks")
    return out


def _fused(w: dict[str, Weight], at: str, transposed: bool) -> dict[str, Recipe]:
    """q, k and v as rows of one tensor, in this order."""
    starts, total = {}, 0
    for name in ("q", "k", "v"):
        starts[name] = total
        total += w[name].elements // w[name].axes[0][1]
    out = {name: rows_of(w[name], f"{at}.weight", start, total, transposed) for name, start in starts.items()}
    for name, start in starts.items():
        if f"{name}_bias" in w:
            out[f"{name}_bias"] = rows_of(w[f"{name}_bias"], f"{at}.bias", start, total)
    return out


def _phi3_attention(w: dict[str, Weight], at: str) -> dict[str, Recipe]:
    return {**_fused(w, f"{at}qkv_proj", transposed=False), "o": linear(w["o"], f"{at}o_proj.weight", inner=2)}


def _gpt2_attention(w: dict[str, Weight], at: str) -> dict[str, Recipe]:
    return {
        **_fused(w, f"{at}c_attn", transposed=True),
        "o": conv1d(w["o"], f"{at}c_proj.weight", inner=2),
        "o_bias": plain(w["o_bias"], f"{at}c_proj.bias"),
    }


def _latent(a: LatentAttention, w: dict[str, Weight], at: str) -> dict[str, Recipe]:
    rows = a.nope_dim + a.v_head_dim
    stored = ((f"{at}kv_b_proj.weight", (a.heads * rows, a.kv_rank)),)

    def keys(x: np.ndarray) -> np.ndarray:
        return x.reshape(a.heads, rows, a.kv_rank)[:, : a.nope_dim]

    def values(x: np.ndarray) -> np.ndarray:
        return x.reshape(a.heads, rows, a.kv_rank)[:, a.nope_dim :].transpose(0, 2, 1)

    def both(x: np.ndarray) -> np.ndarray:
        return x.T.reshape(a.kv_rank, a.heads, rows)

    out = {
        "kv_a": linear(w["kv_a"], f"{at}kv_a_proj_with_mqa.weight"),
        "kv_a_norm": plain(w["kv_a_norm"], f"{at}kv_a_layernorm.weight"),
        "kv_b keys": Recipe(stored, keys),
        "kv_b values": Recipe(stored, values),
        "kv_b again": Recipe(stored, both),
        "o": linear(w["o"], f"{at}o_proj.weight", inner=2),
    }
    if a.q_rank is None:
        return {**out, "q": linear(w["q"], f"{at}q_proj.weight")}
    return {
        **out,
        "q_a": linear(w["q_a"], f"{at}q_a_proj.weight"),
        "q_a_norm": plain(w["q_a_norm"], f"{at}q_a_layernorm.weight"),
        "q_b": linear(w["q_b"], f"{at}q_b_proj.weight"),
    }


def _dense(w: dict[str, Weight], at: str, up: str = "up", down: str = "down") -> dict[str, Recipe]:
    out = {
        up: ways(w[up], f"{at}gate_proj.weight", f"{at}up_proj.weight"),
        down: linear(w[down], f"{at}down_proj.weight"),
    }
    if "up_bias" in w:
        width = w["up_bias"].axes[1][1]
        names = tuple((f"{at}{x}_proj.bias", (width,)) for x in ("gate", "up"))
        out["up_bias"] = Recipe(names, lambda *a: np.stack(a))
        out["down_bias"] = plain(w["down_bias"], f"{at}down_proj.bias")
    return out


def _phi3_ffn(w: dict[str, Weight], at: str) -> dict[str, Recipe]:
    return {
        "up": linear(w["up"], f"{at}gate_up_proj.weight"),  # the gate's rows first
        "down": linear(w["down"], f"{at}down_proj.weight"),
    }


def _gpt2_ffn(w: dict[str, Weight], at: str) -> dict[str, Recipe]:
    return {
        "up": conv1d(w["up"], f"{at}c_fc.weight"),
        "up_bias": plain(w["up_bias"], f"{at}c_fc.bias"),
        "down": conv1d(w["down"], f"{at}c_proj.weight"),
        "down_bias": plain(w["down_bias"], f"{at}c_proj.bias"),
    }


def _moe(f: MoeFfn, w: dict[str, Weight], prefix: str, family: str, names: Collection[str]) -> dict[str, Recipe]:
    old = f"{prefix}block_sparse_moe."  # Mixtral's published name
    at = old if f"{old}gate.weight" in names else f"{prefix}mlp."
    router = _ROUTERS.get(family, "gate")
    out = {"router": linear(w["router"], f"{at}{router}.weight")}
    if f.router_bias:
        out["router_bias"] = plain(w["router_bias"], f"{at}{router}.bias")
    elif f.correction_bias:
        inside = "" if family == "minimax_m2" else f"{router}."
        out["router_bias"] = plain(w["router_bias"], f"{at}{inside}e_score_correction_bias")
    if f.shared_d_ff:
        out |= _dense(w, f"{at}shared_experts.", "shared_up", "shared_down")
    inside = f"{at}experts."
    if family == "gpt_oss":
        return out | _gpt_oss_experts(f, w["experts_up"].axes[1][1], inside, names)
    if f"{inside}gate_up_proj" in names:
        return out | _stacked(f, w["experts_up"].axes[1][1], inside)
    return out | _separate(f, w["experts_up"].axes[1][1], inside, mixtral=at == old)


def _separate(f: MoeFfn, d: int, at: str, mixtral: bool) -> dict[str, Recipe]:
    """One Linear an expert and projection, as most checkpoints are published."""
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    pairs = tuple((f"{at}{e}.{x}.weight", (f.d_ff, d)) for e in range(f.experts) for x in (gate, up))
    backs = tuple((f"{at}{e}.{down}.weight", (d, f.d_ff)) for e in range(f.experts))

    def ups(*a: np.ndarray) -> np.ndarray:
        return np.stack(a).reshape(f.experts, 2, f.d_ff, d).transpose(0, 3, 1, 2)

    return {"experts_up": Recipe(pairs, ups), "experts_down": Recipe(backs, lambda *a: np.stack([x.T for x in a]))}


def _stacked(f: MoeFfn, d: int, at: str) -> dict[str, Recipe]:
    """All experts in one tensor, as transformers 5 keeps them: (experts, gate then up, d_model)."""
    ups, downs = (f.experts, 2 * f.d_ff, d), (f.experts, d, f.d_ff)
    return {
        "experts_up": Recipe(
            ((f"{at}gate_up_proj", ups),), lambda a: a.reshape(f.experts, 2, f.d_ff, d).transpose(0, 3, 1, 2)
        ),
        "experts_down": Recipe(((f"{at}down_proj", downs),), lambda a: a.transpose(0, 2, 1)),
    }


def _gpt_oss_experts(f: MoeFfn, d: int, at: str, names: Collection[str]) -> dict[str, Recipe]:
    """gpt-oss: gate and up interleaved; stored as bf16 (experts, inputs, outputs), or in MXFP4 blocks along inputs."""
    e, width = f.experts, 2 * f.d_ff

    def apart(a: np.ndarray) -> np.ndarray:  # (experts, d, 2 d_ff) -> (experts, d, ways, d_ff)
        return a.reshape(e, d, f.d_ff, 2).transpose(0, 1, 3, 2)

    if f"{at}gate_up_proj_blocks" in names:
        up = Recipe(
            _blocks(f"{at}gate_up_proj", e, width, d),
            lambda b, s: apart(dequantise_blocks(b, s)[..., :d].transpose(0, 2, 1)),
        )
        down = Recipe(
            _blocks(f"{at}down_proj", e, d, f.d_ff),
            lambda b, s: dequantise_blocks(b, s)[..., : f.d_ff].transpose(0, 2, 1),
        )
    else:
        up = Recipe(((f"{at}gate_up_proj", (e, d, width)),), apart)
        down = Recipe(((f"{at}down_proj", (e, f.d_ff, d)),), lambda a: a)
    return {
        "experts_up": up,
        "experts_down": down,
        "experts_up_bias": Recipe(
            ((f"{at}gate_up_proj_bias", (e, width)),), lambda a: a.reshape(e, f.d_ff, 2).transpose(0, 2, 1)
        ),
        "experts_down_bias": Recipe(((f"{at}down_proj_bias", (e, d)),), lambda a: a),
    }


def _blocks(name: str, experts: int, outputs: int, inputs: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    count = -(-inputs // BLOCK)
    return ((f"{name}_blocks", (experts, outputs, count, BLOCK // 2)), (f"{name}_scales", (experts, outputs, count)))
