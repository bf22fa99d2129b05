"""Decoders with multi-head latent attention: DeepSeek V3, R1 and V3.2, Kimi K2, GLM-5."""

from __future__ import annotations

from taygeta.base.errors import InputError
from taygeta.frontend.config import MAX_CONTEXT, MAX_EXPERTS, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Fields
from taygeta.frontend.experts import read_groups, read_top_k
from taygeta.frontend.parts import mtp_weights, read_activation, read_size
from taygeta.spec.mixers import Indexer, LatentAttention
from taygeta.spec.model import DenseFfn, Layer, Model, MoeFfn

# The families whose attention picks its keys with an indexer.
SPARSE = ("deepseek_v32", "glm_moe_dsa")


def import_latent(fields: Fields, model_type: str) -> Model:
    """Return a decoder with latent attention, first layers dense and the rest mixtures with shared experts."""
    size = read_size(fields)
    attention = _attention(fields, model_type in SPARSE)
    activation = read_activation(fields)
    dense = DenseFfn(fields.count("intermediate_size", MAX_WIDTH), activation=activation)
    moe = _experts(fields, activation)
    first = fields.count("first_k_dense_replace", MAX_LAYERS, least=0, default=0)
    fields.only("moe_layer_freq", 1)
    layers = [Layer(attention, dense if i < first else moe) for i in range(size.layers)]
    types = fields.texts("mlp_layer_types", ("dense", "sparse"))
    if types and list(types) != ["dense" if i < first else "sparse" for i in range(size.layers)]:
        raise InputError(
            f"{fields.where}: mlp_layer_types contradicts first_k_dense_replace = {first}; leave one of them out."
        )
    modules = fields.count("num_nextn_predict_layers", MAX_LAYERS, least=0, default=0)
    return Model(
        name="",
        d_model=size.d_model,
        vocab=size.vocab,
        layers=tuple(layers),
        max_context=size.max_context,
        tied=size.tied,
        mtp=(Layer(attention, moe),) * modules,
        mtp_weights=mtp_weights(size.d_model, modules),
    )


def _attention(fields: Fields, sparse: bool) -> LatentAttention:
    heads = fields.count("num_attention_heads", MAX_HEADS)
    fields.same("num_key_value_heads", heads, "num_attention_heads")
    fields.only("attention_bias", False)
    nope = fields.count("qk_nope_head_dim", MAX_WIDTH)
    rope = fields.count("qk_rope_head_dim", MAX_WIDTH)
    fields.same("qk_head_dim", nope + rope, "qk_nope_head_dim + qk_rope_head_dim")
    fields.get("head_dim")  # GLM repeats the rotary width here; the attention does not read it
    q_rank = fields.count("q_lora_rank", MAX_WIDTH) if fields.has("q_lora_rank") else None
    indexer = None
    if sparse:
        indexer = Indexer(
            heads=fields.count("index_n_heads", MAX_HEADS),
            dim=fields.count("index_head_dim", MAX_WIDTH),
            top_k=fields.count("index_topk", MAX_CONTEXT),
        )
    return LatentAttention(
        heads=heads,
        q_rank=q_rank,
        kv_rank=fields.count("kv_lora_rank", MAX_WIDTH),
        nope_dim=nope,
        rope_dim=rope,
        v_head_dim=fields.count("v_head_dim", MAX_WIDTH),
        indexer=indexer,
    )


def _experts(fields: Fields, activation: str) -> MoeFfn:
    experts = fields.count("n_routed_experts", MAX_EXPERTS)
    groups, top_groups = read_groups(fields, experts)
    fields.text("topk_method", ("noaux_tc",), "noaux_tc")
    d_ff = fields.count("moe_intermediate_size", MAX_WIDTH)
    return MoeFfn(
        experts,
        read_top_k(fields, experts),
        d_ff,
        shared_d_ff=d_ff * fields.count("n_shared_experts", MAX_EXPERTS, least=0, default=0),
        groups=groups,
        top_groups=top_groups,
        correction_bias=True,
        activation=activation,
    )
