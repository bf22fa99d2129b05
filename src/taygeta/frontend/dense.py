"""GPT-2, and the decoders of the Llama family with dense feed-forward blocks: what tells them apart is one table."""

from __future__ import annotations

from dataclasses import dataclass, replace

from taygeta.base.errors import InputError
from taygeta.frontend.config import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, Fields
from taygeta.frontend.parts import (
    Size,
    mtp_weights,
    need_window,
    read_activation,
    read_grouped,
    read_layer_types,
    read_size,
    read_window,
)
from taygeta.spec.mixers import Attention
from taygeta.spec.model import DenseFfn, Layer, Model

_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Style:
    """How a family of decoders departs from Llama.

    bias: "field" (attention_bias sets all four projections), "qkv" (always on queries, keys and values) or "none".
    window: "none", "all" (a sliding_window holds in every layer), "upper" (in layers from max_window_layers on, if
    use_sliding_window) or "alternate" (all but every `period`-th layer). norms: d_model-wide norms of one layer.
    """

    bias: str = "field"
    mlp_bias: bool = False
    qk_norm: str = "none"
    window: str = "none"
    period: int = 0
    norms: int = 2
    tied: bool = False
    activation_field: str = "hidden_act"
    mtp_field: str = ""


# Sources: the modelling code of each family in transformers 5; MiMo's, in its hub repository, derives from Qwen2's.
STYLES = {
    "llama": Style(mlp_bias=True),
    "mistral": Style(bias="none", window="all"),
    "phi3": Style(bias="none", window="all"),
    "qwen2": Style(bias="qkv", window="upper"),
    "qwen3": Style(qk_norm="head", window="upper"),
    "mimo": Style(bias="qkv", window="upper", mtp_field="num_nextn_predict_layers"),
    "gemma2": Style(window="alternate", period=2, norms=4, tied=True, activation_field="hidden_activation"),
    "gemma3_text": Style(
        qk_norm="head", window="alternate", period=6, norms=4, tied=True, activation_field="hidden_activation"
    ),
}


def import_gpt2(fields: Fields) -> Model:
    """Return a GPT-2: learned positions, biases everywhere, norms with shifts, head tied to the embedding."""
    d_model = fields.count("n_embd", MAX_WIDTH)
    heads = fields.count("n_head", MAX_HEADS)
    if d_model % heads:
        raise InputError(f"{fields.where}: n_embd = {d_model} must be a multiple of n_head = {heads}.")
    layers = fields.count("n_layer", MAX_LAYERS)
    positions = fields.count("n_positions", MAX_CONTEXT)
    fields.same("n_ctx", positions, "n_positions")
    fields.only("add_cross_attention", False)
    d_ff = fields.count("n_inner", MAX_WIDTH, default=4 * d_model)
    head_dim = d_model // heads
    attention = Attention(heads, heads, head_dim, head_dim, qkv_bias=True, output_bias=True, rotary=False)
    activation = read_activation(fields, "activation_function", "gelu_new")
    ffn = DenseFfn(d_ff, gated=False, bias=True, activation=activation)
    return Model(
        name="",
        d_model=d_model,
        vocab=fields.count("vocab_size", MAX_VOCABULARY),
        layers=(Layer(attention, ffn, norm_bias=True),) * layers,
        max_context=positions,
        tied=fields.flag("tie_word_embeddings", True),
        positions=positions,
        final_norm_bias=True,
    )


def import_dense(fields: Fields, model_type: str) -> Model:
    """Return a decoder of the Llama family with dense, gated feed-forward blocks."""
    style = STYLES[model_type]
    size = read_size(fields, style.tied)
    attention = read_grouped(fields, size.d_model, qk_norm=style.qk_norm, **read_biases(fields, style))
    ffn = DenseFfn(
        fields.count("intermediate_size", MAX_WIDTH),
        bias=fields.flag("mlp_bias", False) if style.mlp_bias else False,
        activation=read_activation(fields, style.activation_field, "gelu_pytorch_tanh" if style.tied else None),
    )
    if style.activation_field != "hidden_act":
        fields.only("hidden_act", ffn.activation, "gelu")  # Gemma keeps this field and does not read it
    windows = read_windows(fields, size, style)
    post = style.norms == 4
    if post:
        fields.only("use_bidirectional_attention", False)
    layers = tuple(Layer(replace(attention, window=w), ffn, style.norms, post_norms=post) for w in windows)
    modules = fields.count(style.mtp_field, MAX_LAYERS, least=0, default=0) if style.mtp_field else 0
    return Model(
        name="",
        d_model=size.d_model,
        vocab=size.vocab,
        layers=layers,
        max_context=size.max_context,
        tied=size.tied,
        mtp=(Layer(attention, ffn),) * modules,
        mtp_weights=mtp_weights(size.d_model, modules),
    )


def read_biases(fields: Fields, style: Style) -> dict[str, bool]:
    """Return which projections of the attention carry a bias."""
    if style.bias == "field":
        both = fields.flag("attention_bias", False)
        return {"qkv_bias": both, "output_bias": both}
    fields.only("attention_bias", style.bias == "qkv")
    return {"qkv_bias": style.bias == "qkv", "output_bias": False}


def read_windows(fields: Fields, size: Size, style: Style) -> tuple[int | None, ...]:
    """Return the window of every layer, None where all keys are seen."""
    count = size.layers
    window = None if style.window == "none" else read_window(fields)
    used = fields.flag("use_sliding_window", False) if style.window == "upper" else True
    first = fields.count("max_window_layers", MAX_LAYERS, least=0, default=28) if style.window == "upper" else 0
    again = fields.count("_sliding_window_pattern", MAX_LAYERS, default=style.period) if style.period else 0
    period = style.period and fields.count("sliding_window_pattern", MAX_LAYERS, default=again)
    if style.window == "none":
        fields.only("sliding_window")
        sliding = [False] * count
    elif period:
        sliding = [bool((i + 1) % period) for i in range(count)]
    else:
        sliding = [used and window is not None and i >= first for i in range(count)]
    types = read_layer_types(fields, _TYPES, [_TYPES[s] for s in sliding])
    return tuple(need_window(fields, window) if kind == "sliding_attention" else None for kind in types)
