"""What the families of architectures share: widths, grouped-query attention, windows, activations, MTP modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taygeta.base.errors import InputError
from taygeta.frontend.config import (
    MAX_CONTEXT,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    MAX_WIDTH,
    Fields,
    shown,
)
from taygeta.spec.mixers import Attention, Weight, weight

# Names of Hugging Face's activations; the gated ones multiply by a second projection.
ACTIVATIONS = ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "silu", "swish")


@dataclass(frozen=True)
class Size:
    """The outer sizes of a model."""

    d_model: int
    layers: int
    vocab: int
    max_context: int
    tied: bool


def read_size(fields: Fields, tied: bool = False, layers: int | None = None) -> Size:
    """Return the outer sizes; `tied` and `layers` hold when the file is silent about the head and the depth."""
    depth = {} if layers is None else {"default": layers}
    return Size(
        d_model=fields.count("hidden_size", MAX_WIDTH),
        layers=fields.count("num_hidden_layers", MAX_LAYERS, **depth),
        vocab=fields.count("vocab_size", MAX_VOCABULARY),
        max_context=fields.count("max_position_embeddings", MAX_CONTEXT),
        tied=fields.flag("tie_word_embeddings", tied),
    )


def read_activation(fields: Fields, name: str = "hidden_act", default: str | None = None) -> str:
    """Return the activation of the feed-forward blocks ("swish" is silu)."""
    found = fields.text(name, ACTIVATIONS, default)
    return "silu" if found == "swish" else found


def read_grouped(fields: Fields, d_model: int, **traits: bool | str) -> Attention:
    """Return grouped-query attention over all keys; `traits` are the other fields of Attention.

    Raises InputError when heads do not divide into key-value heads, or d_model into heads where head_dim is absent.
    """
    heads = fields.count("num_attention_heads", MAX_HEADS)
    kv_heads = fields.count("num_key_value_heads", MAX_HEADS, default=heads)
    if heads % kv_heads:
        raise InputError(
            f"{fields.where}: num_attention_heads = {heads} must be a multiple of num_key_value_heads = {kv_heads}."
        )
    if not fields.has("head_dim") and d_model % heads:
        raise InputError(
            f"{fields.where}: head_dim is missing, and hidden_size = {d_model} is not a multiple of "
            f"num_attention_heads = {heads}; give head_dim."
        )
    head_dim = fields.count("head_dim", MAX_WIDTH, default=max(1, d_model // heads))
    return Attention(heads, kv_heads, head_dim, head_dim, **traits)  # type: ignore[arg-type]


def read_layer_types(fields: Fields, allowed: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
    """Return the kind of attention of every layer; `default` is the family's rule, one entry a layer.

    Raises InputError.
    """
    given = fields.texts("layer_types", allowed)
    if given and len(given) != len(default):
        raise InputError(
            f"{fields.where}: layer_types has {len(given)} entries and num_hidden_layers is {len(default)}; "
            "it needs one for each layer."
        )
    return given or tuple(default)


def read_window(fields: Fields) -> int | None:
    """Return sliding_window, None when it is absent or null."""
    if not fields.has("sliding_window"):
        fields.get("sliding_window")
        return None
    return fields.count("sliding_window", MAX_CONTEXT)


def need_window(fields: Fields, window: int | None) -> int:
    """Return the window that a sliding layer needs. Raises InputError when there is none."""
    if window is None:
        raise InputError(
            f"{fields.where}: layer_types has sliding layers and sliding_window is {shown(window)}; "
            "give the window in tokens."
        )
    return window


def mtp_weights(d_model: int, modules: int) -> tuple[Weight, ...]:
    """Return what multi-token prediction modules have besides their layers (DeepSeek-V3 report, section 2.2).

    A projection of the embedding and the hidden state, joined, onto d_model; a norm of each; the norm before the
    head. Embedding and head are the model's own and are not counted again. The projection stays in the format of the
    head.
    """
    one = (
        weight("mtp_projection", "head", joined=2 * d_model, d_model=d_model),
        weight("mtp_norm", "norm", norms=3, d_model=d_model),
    )
    return one * modules
