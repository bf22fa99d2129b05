"""Grouped-query decoders with mixtures of experts: Mixtral, Qwen3 MoE, gpt-oss, MiniMax M2, Llama 4."""

from __future__ import annotations

from dataclasses import replace

from taygeta.base.errors import InputError
from taygeta.frontend.config import MAX_CONTEXT, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, Fields
from taygeta.frontend.dense import STYLES, Style, read_biases, read_windows
from taygeta.frontend.parts import (
    Size,
    need_window,
    read_activation,
    read_grouped,
    read_layer_types,
    read_size,
    read_window,
)
from taygeta.spec.model import DenseFfn, Ffn, Layer, Model, MoeFfn


def read_top_k(fields: Fields, experts: int) -> int:
    """Return num_experts_per_tok. Raises InputError when it exceeds the number of experts."""
    top_k = fields.count("num_experts_per_tok", MAX_EXPERTS)
    if top_k > experts:
        raise InputError(f"{fields.where}: num_experts_per_tok = {top_k} must not exceed the {experts} experts.")
    return top_k


def read_groups(fields: Fields, experts: int) -> tuple[int, int]:
    """Return the number of expert groups and how many of them a token may use. Raises InputError."""
    groups = fields.count("n_group", MAX_EXPERTS, default=1)
    top_groups = fields.count("topk_group", MAX_EXPERTS, default=1)
    if experts % groups or top_groups > groups:
        raise InputError(
            f"{fields.where}: n_routed_experts = {experts} must be a multiple of n_group = {groups}, "
            f"and topk_group = {top_groups} must not exceed it."
        )
    return groups, top_groups


def import_mixtral(fields: Fields) -> Model:
    """Return a Mixtral: every feed-forward block is a mixture of gated experts."""
    size = read_size(fields)
    style = Style(bias="none", window="all")
    attention = read_grouped(fields, size.d_model, **read_biases(fields, style))
    experts = fields.count("num_local_experts", MAX_EXPERTS)
    ffn = MoeFfn(
        experts,
        read_top_k(fields, experts),
        fields.count("intermediate_size", MAX_WIDTH),
        activation=read_activation(fields),
    )
    windows = read_windows(fields, size, style)
    return _model(size, tuple(Layer(replace(attention, window=w), ffn) for w in windows))


def import_qwen3_moe(fields: Fields) -> Model:
    """Return a Qwen3 with experts; decoder_sparse_step and mlp_only_layers say which layers stay dense."""
    size = read_size(fields)
    style = STYLES["qwen3"]
    fields.only("qkv_bias", False)
    fields.only("use_qk_norm", True)
    fields.only("shared_expert_intermediate_size", 0)
    attention = read_grouped(fields, size.d_model, qk_norm=style.qk_norm, **read_biases(fields, style))
    activation = read_activation(fields)
    # transformers 5 writes num_local_experts, published files have num_experts
    name = "num_local_experts" if fields.has("num_local_experts") and not fields.has("num_experts") else "num_experts"
    experts = fields.count(name, MAX_EXPERTS)
    moe = MoeFfn(
        experts,
        read_top_k(fields, experts),
        fields.count("moe_intermediate_size", MAX_WIDTH),
        activation=activation,
    )
    step = fields.count("decoder_sparse_step", MAX_LAYERS, default=1)
    dense_layers = set(fields.counts("mlp_only_layers", MAX_LAYERS))
    sparse = [i not in dense_layers and (i + 1) % step == 0 for i in range(size.layers)]
    dense: Ffn = moe
    if not all(sparse):
        dense = DenseFfn(fields.count("intermediate_size", MAX_WIDTH), activation=activation)
    fields.get("intermediate_size")  # the width of dense layers, which most of these models do not have
    windows = read_windows(fields, size, style)
    return _model(
        size,
        tuple(Layer(replace(attention, window=w), moe if s else dense) for w, s in zip(windows, sparse, strict=True)),
    )


def import_gpt_oss(fields: Fields) -> Model:
    """Return a gpt-oss: alternating windows, one sink a head, biases on attention, router and experts."""
    size = read_size(fields)
    attention = read_grouped(fields, size.d_model, sinks=True, **read_biases(fields, Style()))
    experts = fields.count("num_local_experts", MAX_EXPERTS)
    top_k = read_top_k(fields, experts)
    fields.same("experts_per_token", top_k, "num_experts_per_tok")
    ffn = MoeFfn(
        experts,
        top_k,
        fields.count("intermediate_size", MAX_WIDTH),
        bias=True,
        router_bias=True,
        activation=read_activation(fields),
    )
    window = read_window(fields)
    kinds = ("sliding_attention", "full_attention")
    types = read_layer_types(fields, kinds, [kinds[i % 2] for i in range(size.layers)])
    sliding = [need_window(fields, window) if kind == "sliding_attention" else None for kind in types]
    return _model(size, tuple(Layer(replace(attention, window=w), ffn) for w in sliding))


def import_minimax_m2(fields: Fields) -> Model:
    """Return a MiniMax M2: norms over all heads' queries and keys, sigmoid routing with a correction bias.

    The file announces multi-token prediction modules; the published checkpoints and modelling code have none, and
    nothing says their shape, so they are left out and a note says so.
    """
    size = read_size(fields)
    normed = fields.flag("use_qk_norm", True)
    fields.text("qk_norm_type", ("per_layer",), "per_layer")
    fields.only("shared_intermediate_size", 0)
    attention = read_grouped(fields, size.d_model, qk_norm="full" if normed else "none")
    fields.only("attention_bias", False)
    experts = fields.count("num_local_experts", MAX_EXPERTS)
    ffn = MoeFfn(
        experts,
        read_top_k(fields, experts),
        fields.count("intermediate_size", MAX_WIDTH),
        correction_bias=fields.flag("use_routing_bias", True),
        activation=read_activation(fields),
    )
    fields.only("sliding_window")
    modules = fields.count("num_mtp_modules", MAX_LAYERS, least=0, default=0)
    fields.count("mtp_transformer_layers", MAX_LAYERS, least=0, default=0)
    announced = fields.flag("use_mtp", False) and modules > 0
    note = f"{modules} multi-token prediction modules are announced and unpublished: left out"
    return replace(_model(size, (Layer(attention, ffn),) * size.layers), notes=(note,) if announced else ())


def import_llama4(fields: Fields) -> Model:
    """Return the text model of a Llama 4.

    Three layers of four attend inside chunks, with rotary keys; the fourth attends to all keys, without. Every
    mixture has one shared expert.
    """
    size = read_size(fields)
    attention = read_grouped(fields, size.d_model, **read_biases(fields, Style()))
    activation = read_activation(fields)
    experts = fields.count("num_local_experts", MAX_EXPERTS)
    d_ff = fields.count("intermediate_size", MAX_WIDTH)
    moe = MoeFfn(experts, read_top_k(fields, experts), d_ff, shared_d_ff=d_ff, activation=activation)
    dense = DenseFfn(fields.count("intermediate_size_mlp", MAX_WIDTH, default=2 * d_ff), activation=activation)
    sparse = set(fields.counts("moe_layers", MAX_LAYERS))
    step = fields.count("interleave_moe_layer_step", MAX_LAYERS, least=0, default=1)
    if not fields.has("moe_layers"):
        sparse = set(range(step - 1, size.layers, step)) if step else set()
    rotary = _rotary_layers(fields, size.layers)
    # Queries and keys of rotary layers are scaled to unit length, without weights.
    norm = "unit" if fields.flag("use_qk_norm", True) else "none"
    chunk = fields.count("attention_chunk_size", MAX_CONTEXT, default=8192)
    kinds = ("full_attention", "chunked_attention")
    types = read_layer_types(fields, kinds, [kinds[r] for r in rotary])
    layers: list[Layer] = []
    for i, (turns, kind) in enumerate(zip(rotary, types, strict=True)):
        mixer = replace(
            attention,
            rotary=turns,
            qk_norm=norm if turns else "none",
            chunk=chunk if kind == "chunked_attention" else None,
        )
        layers.append(Layer(mixer, moe if i in sparse else dense))
    return _model(size, tuple(layers))


def _rotary_layers(fields: Fields, layers: int) -> list[bool]:
    """Return which layers turn their queries and keys: no_rope_layers holds a 1 where they do (as Llama 4 names it)."""
    interval = fields.count("no_rope_layer_interval", MAX_LAYERS, default=4)
    given = fields.counts("no_rope_layers", 1)
    if given and len(given) != layers:
        raise InputError(
            f"{fields.where}: no_rope_layers has {len(given)} entries and num_hidden_layers is {layers}; "
            "it needs one for each layer."
        )
    return [bool(g) for g in given] or [bool((i + 1) % interval) for i in range(layers)]


def _model(size: Size, layers: tuple[Layer, ...]) -> Model:
    return Model("", size.d_model, size.vocab, layers, size.max_context, size.tied)
