"""Decoders that mix attention with recurrent layers: Qwen3.5 (gated DeltaNet) and Nemotron-H (Mamba-2)."""

from __future__ import annotations

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.frontend.config import MAX_EXPERTS, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields, shown
from taygeta.frontend.experts import read_groups, read_top_k
from taygeta.frontend.parts import Size, mtp_weights, read_activation, read_grouped, read_layer_types, read_size
from taygeta.spec.mixers import LinearAttention, StateSpace
from taygeta.spec.model import DenseFfn, Ffn, Layer, Model, MoeFfn

# One letter of Nemotron's pattern for each kind of layer, and the newer spelling of the same.
_LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}


def import_qwen3_5(fields: Fields, model_type: str) -> Model:
    """Return a Qwen3.5 text model: every fourth layer attends, output gated; the others keep a recurrent state."""
    size = read_size(fields)
    biased = fields.flag("attention_bias", False)
    fields.only("attn_output_gate", True)
    attention = read_grouped(
        fields, size.d_model, qk_norm="head", output_gate=True, qkv_bias=biased, output_bias=biased
    )
    linear = _delta_net(fields)
    ffn = _qwen3_5_ffn(fields, "moe" in model_type)
    fields.only("mlp_only_layers", [], ())
    fields.only("decoder_sparse_step", 1)
    interval = fields.count("full_attention_interval", MAX_LAYERS, default=4)
    kinds = ("full_attention", "linear_attention")
    types = read_layer_types(fields, kinds, [kinds[bool((i + 1) % interval)] for i in range(size.layers)])
    full, recurrent = Layer(attention, ffn), Layer(linear, ffn)
    modules = fields.count("mtp_num_hidden_layers", MAX_LAYERS, least=0, default=0)
    fields.only("mtp_use_dedicated_embeddings", False)
    return Model(
        name="",
        d_model=size.d_model,
        vocab=size.vocab,
        layers=tuple(full if kind == "full_attention" else recurrent for kind in types),
        max_context=size.max_context,
        tied=size.tied,
        mtp=(full,) * modules,
        mtp_weights=mtp_weights(size.d_model, 1 if modules else 0),
    )


def _delta_net(fields: Fields) -> LinearAttention:
    key_heads = fields.count("linear_num_key_heads", MAX_HEADS)
    value_heads = fields.count("linear_num_value_heads", MAX_HEADS)
    if value_heads % key_heads:
        raise InputError(
            f"{fields.where}: linear_num_value_heads = {value_heads} must be a multiple of "
            f"linear_num_key_heads = {key_heads}."
        )
    return LinearAttention(
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=fields.count("linear_key_head_dim", MAX_WIDTH),
        value_dim=fields.count("linear_value_head_dim", MAX_WIDTH),
        conv_kernel=fields.count("linear_conv_kernel_dim", MAX_WIDTH),
    )


def _qwen3_5_ffn(fields: Fields, sparse: bool) -> Ffn:
    activation = read_activation(fields)
    if not sparse:
        return DenseFfn(fields.count("intermediate_size", MAX_WIDTH), activation=activation)
    experts = fields.count("num_experts", MAX_EXPERTS)
    shared = fields.count("shared_expert_intermediate_size", MAX_WIDTH)
    return MoeFfn(
        experts,
        read_top_k(fields, experts),
        fields.count("moe_intermediate_size", MAX_WIDTH),
        shared_d_ff=shared,
        shared_gate=True,
        activation=activation,
    )


def import_nemotron_h(fields: Fields) -> Model:
    """Return a Nemotron-H: each layer is one block: Mamba-2, attention without rotary keys, or feed-forward."""
    fields.only("use_bias", False)
    fields.only("mamba_proj_bias", False)
    fields.only("attention_bias", False)  # the modelling code has no such bias whatever the field says
    fields.only("sliding_window")
    letters = _pattern(fields, "hybrid_override_pattern", "layers_block_type")
    if not letters:
        raise InputError(
            f"{fields.where}: hybrid_override_pattern is missing; it must be a text of one letter a layer."
        )
    size = read_size(fields, layers=len(letters))
    if len(letters) != size.layers:
        raise InputError(
            f"{fields.where}: hybrid_override_pattern has {len(letters)} letters and num_hidden_layers is "
            f"{size.layers}; it needs one for each layer."
        )
    blocks = _nemotron_blocks(fields, size, letters)
    modules = fields.count("num_nextn_predict_layers", MAX_LAYERS, least=0, default=0)
    inner = _pattern(fields, "mtp_hybrid_override_pattern", "mtp_layers_block_type") or "*E"
    if modules and not set(inner) <= set(blocks):
        raise UnsupportedError(
            f"{fields.where}: mtp_hybrid_override_pattern = {shown(inner)} has a kind of layer that the model has not; "
            f"it can use {' '.join(sorted(blocks))}."
        )
    return Model(
        name="",
        d_model=size.d_model,
        vocab=size.vocab,
        layers=tuple(blocks[letter] for letter in letters),
        max_context=size.max_context,
        tied=size.tied,
        mtp=tuple(blocks[letter] for letter in inner) * modules if modules else (),
        mtp_weights=mtp_weights(size.d_model, modules),
    )


def _pattern(fields: Fields, name: str, newer: str) -> str:
    """Return the layers as letters, from the pattern or its newer spelling in words; "" when both are absent."""
    words = fields.texts(newer, tuple(_LETTERS.values()))
    if words:
        back = {word: letter for letter, word in _LETTERS.items()}
        return "".join(back[word] for word in words)
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_LAYERS:
        raise InputError(f"{fields.where}: {name} must be a text of one letter a layer, not {shown(value)}.")
    unknown = sorted(set(value) - set(_LETTERS))
    if unknown:
        raise UnsupportedError(
            f"{fields.where}: {name} has the letter {shown(unknown[0])}, which is not supported; "
            "it can have M, *, - and E."
        )
    return value


def _nemotron_blocks(fields: Fields, size: Size, letters: str) -> dict[str, Layer]:
    """Return the layer that each letter of the pattern stands for."""
    activation = read_activation(fields, "mlp_hidden_act", "relu2")
    biased = fields.flag("mlp_bias", False)
    attention = read_grouped(fields, size.d_model, rotary=False)
    mamba = _mamba(fields)
    blocks = {"M": Layer(mamba, None, norms=1), "*": Layer(attention, None, norms=1)}
    d_ff = fields.get("intermediate_size")
    if "-" in letters:
        d_ff = fields.count("intermediate_size", MAX_WIDTH)
        blocks["-"] = Layer(None, DenseFfn(d_ff, gated=False, bias=biased, activation=activation), norms=1)
    if "E" in letters:
        fields.only("mlp_bias", False)
        blocks["E"] = Layer(None, _nemotron_experts(fields, activation), norms=1)
    return blocks


def _mamba(fields: Fields) -> StateSpace:
    heads = fields.count("mamba_num_heads", MAX_HEADS)
    groups = fields.count("n_groups", MAX_HEADS)
    if heads % groups:
        raise InputError(f"{fields.where}: mamba_num_heads = {heads} must be a multiple of n_groups = {groups}.")
    fields.text("mamba_hidden_act", ("silu",), "silu")
    return StateSpace(
        heads=heads,
        head_dim=fields.count("mamba_head_dim", MAX_WIDTH),
        state_dim=fields.count("ssm_state_size", MAX_WIDTH),
        groups=groups,
        conv_kernel=fields.count("conv_kernel", MAX_WIDTH),
        conv_bias=fields.flag("use_conv_bias", True),
    )


def _nemotron_experts(fields: Fields, activation: str) -> MoeFfn:
    experts = fields.count("n_routed_experts", MAX_EXPERTS)
    groups, top_groups = read_groups(fields, experts)
    fields.only("n_shared_experts", 1)
    return MoeFfn(
        experts,
        read_top_k(fields, experts),
        fields.count("moe_intermediate_size", MAX_WIDTH),
        gated=False,
        shared_d_ff=fields.count("moe_shared_expert_intermediate_size", MAX_WIDTH),
        groups=groups,
        top_groups=top_groups,
        correction_bias=True,
        latent=fields.count("moe_latent_size", MAX_WIDTH) if fields.has("moe_latent_size") else 0,
        activation=activation,
    )
