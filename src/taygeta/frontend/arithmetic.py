"""The arithmetic of a configuration: what execution needs beside the shapes.

Norms, rotary positions, scales and caps are read for the families whose models can be executed, with the defaults of
their configuration classes in transformers 5. A model of another family, or one with a setting that is not understood,
is still predicted: its `refusal` says why it cannot be executed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from taygeta.base.errors import UnsupportedError
from taygeta.frontend.config import MAX_CONTEXT, Fields
from taygeta.spec.arithmetic import Arithmetic, NormRule, Rope, yarn_magnitude
from taygeta.spec.mixers import Attention, LatentAttention
from taygeta.spec.model import Layer, Mixer, Model, MoeFfn


@dataclass(frozen=True)
class Defaults:
    """What a family takes where its configuration is silent (configuration_*.py of transformers 5.23)."""

    eps: float = 1e-6
    theta: float = 10_000.0


FAMILIES = {
    "gpt2": Defaults(eps=1e-5),
    "llama": Defaults(),
    "mistral": Defaults(),
    "phi3": Defaults(eps=1e-5),
    "qwen2": Defaults(),
    "qwen3": Defaults(),
    "gemma2": Defaults(),
    "gemma3_text": Defaults(theta=1_000_000.0),
    "mixtral": Defaults(eps=1e-5, theta=1_000_000.0),
    "qwen3_moe": Defaults(),
    "gpt_oss": Defaults(eps=1e-5, theta=150_000.0),
    "deepseek_v3": Defaults(),
    "kimi_k2": Defaults(),
    "minimax_m2": Defaults(theta=5_000_000.0),
}
_GEMMA = ("gemma2", "gemma3_text")
_LATENT = ("deepseek_v3", "kimi_k2")
_LOCAL_THETA = 10_000.0  # Gemma 3's sliding layers
# gpt-oss stretches its context unless told otherwise (configuration_gpt_oss.py).
_GPT_OSS_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
_MOST = 1e9
_LEAST_THETA = 1.01  # at 1 all pairs would turn alike, and yarn's ramp has no place
_LEAST_TURNS = 1e-6
_HARMLESS = ("mrope_section", "type")


def with_arithmetic(fields: Fields, model_type: str, model: Model) -> Model:
    """Return a model with its arithmetic, or with the reason why it cannot be executed.

    Raises InputError for a field of a wrong type.
    """
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        return replace(model, refusal=f"{model_type} models cannot be executed yet; {known} can.")
    try:
        return _read(fields, model_type, model)
    except UnsupportedError as error:
        return replace(model, refusal=str(error))


def _read(fields: Fields, family: str, model: Model) -> Model:
    gemma = family in _GEMMA
    eps_field = "layer_norm_epsilon" if family == "gpt2" else "rms_norm_eps"
    eps = fields.number(eps_field, FAMILIES[family].eps, least=0.0, most=1.0)
    norm = NormRule("layer" if family == "gpt2" else "rms", eps, 1.0 if gemma else 0.0)
    arithmetic = Arithmetic(
        family,
        norm,
        embedding_scale=float(model.d_model) ** 0.5 if gemma else 1.0,
        logit_softcap=_cap(fields, "final_logit_softcapping", 30.0 if family == "gemma2" else 0.0) if gemma else 0.0,
    )
    mixers = _mixer_reader(fields, family, model, norm)
    route = _router_reader(fields, family)
    seen: dict[Layer, Layer] = {}  # layers of a kind stay one object
    for layer in (*model.layers, *model.mtp):
        if layer not in seen:
            mixer = None if layer.mixer is None else mixers(layer.mixer)
            ffn = route(layer.ffn) if isinstance(layer.ffn, MoeFfn) else layer.ffn
            seen[layer] = replace(layer, mixer=mixer, ffn=ffn)
    return replace(
        model,
        layers=tuple(seen[layer] for layer in model.layers),
        mtp=tuple(seen[layer] for layer in model.mtp),
        arithmetic=arithmetic,
    )


def _mixer_reader(fields: Fields, family: str, model: Model, norm: NormRule) -> Callable[[Mixer], Mixer]:
    """Return the function that completes the attention of a layer."""
    if family == "gpt2":
        return _gpt2(fields)
    if family in _LATENT:
        return _latent(fields, model)
    scale, softcap = None, 0.0
    if family in _GEMMA:
        scale = fields.number("query_pre_attn_scalar", 256.0, least=1e-9, most=_MOST) ** -0.5
        softcap = _cap(fields, "attn_logit_softcapping", 50.0 if family == "gemma2" else 0.0)
    first = next(layer.mixer for layer in model.layers if isinstance(layer.mixer, Attention))
    default = _GPT_OSS_ROPE if family == "gpt_oss" else {}
    theta = FAMILIES[family].theta
    if family == "gemma3_text":
        ropes = _two_ropes(fields, first.head_dim, theta, model.max_context)
    else:
        turned = fields.count("rotary_dim", first.head_dim, default=first.head_dim) if family == "minimax_m2" else 0
        share = turned / first.head_dim if turned else 1.0
        one = read_rope(fields, first.head_dim, theta, model.max_context, default, share)
        ropes = (one, one)

    def complete(mixer: Mixer) -> Mixer:
        if not isinstance(mixer, Attention):
            return mixer
        rope = ropes[mixer.window is not None]
        return replace(
            mixer, scale=scale, softcap=softcap, rope=rope, norm_eps=norm.eps, norm_offset=norm.offset
        )  # fmt: skip

    return complete


def _gpt2(fields: Fields) -> Callable[[Mixer], Mixer]:
    scale = None if fields.flag("scale_attn_weights", True) else 1.0
    fields.only("scale_attn_by_inverse_layer_idx", False)
    return lambda mixer: replace(mixer, scale=scale) if isinstance(mixer, Attention) else mixer


def _latent(fields: Fields, model: Model) -> Callable[[Mixer], Mixer]:
    first = next(layer.mixer for layer in model.layers if isinstance(layer.mixer, LatentAttention))
    rope = read_rope(fields, first.rope_dim, FAMILIES["deepseek_v3"].theta, model.max_context, {})
    rope = replace(rope, interleaved=fields.flag("rope_interleave", True))
    table = _table(fields)
    all_dim = table.number("mscale_all_dim", 0.0, most=_MOST) if table and rope.kind != "default" else 0.0
    stretch = yarn_magnitude(rope.factor, all_dim) if all_dim else 1.0
    scale = (first.nope_dim + first.rope_dim) ** -0.5 * stretch * stretch

    def complete(mixer: Mixer) -> Mixer:
        return replace(mixer, scale=scale, rope=rope) if isinstance(mixer, LatentAttention) else mixer

    return complete


def _router_reader(fields: Fields, family: str) -> Callable[[MoeFfn], MoeFfn]:
    """Return the function that completes the mixture of experts of a layer."""
    if family == "qwen3_moe":
        return partial(replace, normalise=fields.flag("norm_topk_prob", False))
    if family == "gpt_oss":
        limit = fields.number("swiglu_limit", 7.0, most=_MOST)
        alpha = fields.number("swiglu_alpha", 1.702, most=_MOST)
        return partial(replace, limit=limit, alpha=alpha, shift=1.0)
    if family == "minimax_m2":  # its modelling code knows no other, and always divides by the sum of the chosen
        fields.text("scoring_func", ("sigmoid",), "sigmoid")
        return partial(replace, scoring="sigmoid", normalise=True)
    if family in _LATENT:
        fields.text("scoring_func", ("sigmoid",), "sigmoid")
        normalise = fields.flag("norm_topk_prob", True)
        scale = fields.number("routed_scaling_factor", 2.5, most=_MOST)
        return partial(replace, scoring="sigmoid", normalise=normalise, route_scale=scale)
    return lambda ffn: ffn


def _cap(fields: Fields, name: str, default: float) -> float:
    """Return a soft cap, 0 where the field is null."""
    if name in fields.values and fields.get(name) is None:
        return 0.0
    return fields.number(name, default, most=_MOST)


def _table(fields: Fields) -> Fields | None:
    """Return the table of rotary settings, by its new name or the old one."""
    old, new = fields.section("rope_scaling"), fields.section("rope_parameters")
    return old or new


def _two_ropes(fields: Fields, head_dim: int, theta: float, context: int) -> tuple[Rope, Rope]:
    """Return Gemma 3's rotations: of layers that see all keys, and of sliding layers."""
    nested = fields.section("rope_parameters")
    if nested is not None:
        wide, near = (nested.section(kind) or Fields({}, nested.where) for kind in _KINDS)
        nested.finish("gemma3_text", (), ())
    else:
        scaling = fields.section("rope_scaling")
        wide, near = scaling or Fields({}, fields.where), Fields({}, fields.where)
    theta = fields.number("rope_theta", theta, least=_LEAST_THETA, most=1e12)
    local = fields.number("rope_local_base_freq", _LOCAL_THETA, least=_LEAST_THETA, most=1e12)
    return _rope(wide, head_dim, theta, context), _rope(near, head_dim, local, context)


_KINDS = ("full_attention", "sliding_attention")


def read_rope(
    fields: Fields, head_dim: int, theta: float, context: int, default: dict[str, object], share: float = 1.0
) -> Rope:
    """Return the rotation of a model; `default` is the table where the file has none, `share` the part of a head.

    Raises InputError, and UnsupportedError for a kind that is not understood.
    """
    theta = fields.number("rope_theta", theta, least=_LEAST_THETA, most=1e12)
    share = fields.number("partial_rotary_factor", share, most=1.0)
    context = fields.count("original_max_position_embeddings", MAX_CONTEXT, default=context)
    stated = fields.has("original_max_position_embeddings")
    table = _table(fields) or Fields(default, fields.where)
    return _rope(table, int(head_dim * share), theta, context, head_dim, stated, fields)


def _rope(
    table: Fields,
    dim: int,
    theta: float,
    context: int,
    head_dim: int = 0,
    stated: bool = False,
    outer: Fields | None = None,
) -> Rope:
    kinds = ("default", "linear", "llama3", "yarn")
    kind = table.text("rope_type" if table.has("rope_type") else "type", kinds, "default")
    theta = table.number("rope_theta", theta, least=_LEAST_THETA, most=1e12)
    if table.has("partial_rotary_factor"):
        dim = int((head_dim or dim) * table.number("partial_rotary_factor", 1.0, most=1.0))
    original = table.count("original_max_position_embeddings", MAX_CONTEXT, default=context)
    original = context if stated else original  # transformers prefers the outer field
    if dim % 2:
        raise UnsupportedError(f"{table.where}: {dim} rotary elements a head are not supported; they turn in pairs.")
    rope = Rope(dim, theta, kind, original=original)
    if kind != "default":
        longest = outer.count("max_position_embeddings", MAX_CONTEXT) if outer else original
        rope = replace(rope, factor=table.number("factor", longest / original, least=1e-9, most=_MOST))
    if kind == "llama3":
        rope = replace(
            rope,
            low=table.number("low_freq_factor", 1.0, most=_MOST),
            high=table.number("high_freq_factor", 4.0, most=_MOST),
        )
    if kind == "yarn":
        rope = _yarn(table, rope)
    table.finish("rotary", _HARMLESS + (("factor",) if kind == "default" else ()), ())
    return rope


def _yarn(table: Fields, rope: Rope) -> Rope:
    scale, all_dim = (table.number(name, 0.0, most=_MOST) for name in ("mscale", "mscale_all_dim"))
    if scale and all_dim:
        magnitude = yarn_magnitude(rope.factor, scale) / yarn_magnitude(rope.factor, all_dim)
    else:
        magnitude = yarn_magnitude(rope.factor)
    return replace(
        rope,
        magnitude=table.number("attention_factor", magnitude, most=_MOST),
        beta_fast=table.number("beta_fast", 32.0, least=_LEAST_TURNS, most=_MOST),
        beta_slow=table.number("beta_slow", 1.0, least=_LEAST_TURNS, most=_MOST),
        truncate=table.flag("truncate", True),
    )


def executable(model: Model) -> Arithmetic:
    """Return the arithmetic of a model. Raises UnsupportedError for one that can be predicted only."""
    if model.arithmetic is None:
        why = model.refusal or "it was not read from a configuration."
        raise UnsupportedError(f"{model.name or 'This model'} can be predicted and not executed: {why}")
    return model.arithmetic
