"""Steps of tiny models compiled for the chip of the tests."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from taygeta.compiler.compile import Compiled, compile_graph
from taygeta.compiler.program import Instruction, Loop, Program
from taygeta.frontend.huggingface import import_config
from taygeta.graph.build import build
from taygeta.graph.ops import Graph
from taygeta.spec.catalog import chip
from taygeta.spec.deployment import Deployment, Parallelism, deployment
from taygeta.spec.engine import engine
from taygeta.spec.model import Model

LAB = str(Path(__file__).parents[1] / "chips" / "lab.toml")
WIDE = {
    "hidden_size": 64, "vocab_size": 100, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
CONFIGS = {
    "llama": {"model_type": "llama", "num_hidden_layers": 3, "intermediate_size": 128, **WIDE, **HEADS},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 101, "n_positions": 256},
    "gemma2": {
        "model_type": "gemma2", "num_hidden_layers": 4, "intermediate_size": 96, "sliding_window": 8,
        "query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, **{k: v for k, v in WIDE.items() if k != "hidden_act"}, **HEADS,
    },
    "gpt_oss": {
        "model_type": "gpt_oss", "num_hidden_layers": 4, "intermediate_size": 32, "num_experts_per_tok": 2,
        "num_local_experts": 6, "sliding_window": 8, "attention_bias": True, **WIDE, **HEADS,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3", "num_hidden_layers": 3, "intermediate_size": 96, "moe_intermediate_size": 32,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
        "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8, "v_head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 4,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "moe_layer_freq": 1, **WIDE,
    },
}  # fmt: skip


@cache
def model(name: str) -> Model:
    return import_config(CONFIGS[name], name, "the tests")


def deployed(name: str, chips: int = 1, fmt: str | None = "mx9", kv: str = "bf16") -> Deployment:
    found = chip(LAB)
    return deployment(model(name), found, chips, engine("vllm"), Parallelism(tp=chips), fmt, fmt, kv)


def reducing(name: str, chips: int, fmt: str | None = "mx9") -> Deployment:
    d = deployed(name, chips, fmt)
    return replace(d, chip=replace(d.chip, tiles=replace(d.chip.tiles, parallel="reduce")))


@cache
def step(name: str, requests: int, new: int, context: int, chips: int = 1, fmt: str | None = "mx9") -> Compiled:
    d = deployed(name, chips, fmt)
    return compile_graph(build(d.model, d.formats), d, requests, new, context)


def weights_of(graph: Graph, seed: int = 5) -> dict[tuple[int | None, str], np.ndarray]:
    """Random weights of a graph; norms near one."""
    random = np.random.default_rng(seed)
    out: dict[tuple[int | None, str], np.ndarray] = {}
    for visit in graph.order:
        for op in graph.blocks[visit.block].ops:
            for w in (*op.weights, *op.extras):
                shape = tuple(n for _, n in w.axes)
                scale = 1.0 if "norm" in w.name else 0.4 * shape[0] ** -0.5
                out[visit.layer, w.name] = (random.standard_normal(shape) * scale).astype(np.float32)
    return out


def without(program: Program, number: int) -> Program:
    """The program without the n-th instruction of its listing."""
    count = iter(range(1 << 30))

    def walk(body):
        out = []
        for item in body:
            if isinstance(item, Loop):
                out.append(replace(item, body=walk(item.body)))
            elif not isinstance(item, Instruction) or next(count) != number:
                out.append(item)
        return tuple(out)

    return replace(program, body=walk(program.body))
