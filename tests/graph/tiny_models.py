"""Tiny random models of transformers, one of each family that can be executed, and the same in our terms."""

from __future__ import annotations

import json
import logging
import warnings
from functools import cache

import numpy as np
import pytest

from taygeta.frontend.huggingface import import_config
from taygeta.frontend.weights import load_weights
from taygeta.graph.build import build
from taygeta.spec.deployment import Formats

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PLAIN = Formats(*["bf16"] * 8)
SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.7,
    "original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
    "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_shared_experts": 2,
    "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7, "rope_parameters": YARN, "num_hidden_layers": 3,
}  # fmt: skip
LATENT_DROPS = ("head_dim",)

# name: (configuration class, model class, what differs from SIZES)
FAMILIES = {
    "llama": ("Llama", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}),
    "mistral": ("Mistral", {"sliding_window": 6}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}),
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "mlp_only_layers": [1],
         "norm_topk_prob": True},
    ),
    "qwen3_moe-unnormed": ("Qwen3Moe", {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6, "head_dim": 16}),
    "deepseek_v3": ("DeepseekV3", LATENT),
    "deepseek_v3-plain": (
        "DeepseekV3",
        {**LATENT, "q_lora_rank": None, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
         "rope_interleave": False, "norm_topk_prob": False},
    ),
    "gemma2": ("Gemma2", {"sliding_window": 6, "query_pre_attn_scalar": 20, "tie_word_embeddings": True}),
    "gemma3_text": (
        "Gemma3Text",
        {"sliding_window": 6, "num_hidden_layers": 7, "tie_word_embeddings": True, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}},
    ),
    "phi3": ("Phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 900.0, "partial_rotary_factor": 0.5}}),
    "gpt2": ("GPT2", {}),
    "minimax_m2": (
        "MiniMaxM2",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "rope_parameters": {
            "rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.5}},
    ),
}  # fmt: skip
_MODELS = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}
_GPT2 = {
    "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2
}  # fmt: skip


@cache
def torch_model(name: str):
    """The model of transformers, in fp32 with eager attention, every parameter random."""
    kind, changes = FAMILIES[name]
    settings = _GPT2 if kind == "GPT2" else {**SIZES, **changes}
    if kind in ("DeepseekV3", "Phi3"):
        settings.pop("head_dim", None)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{kind}Config")(**settings, attn_implementation="eager")
        torch.manual_seed(7)
        model = getattr(transformers, _MODELS.get(kind, f"{kind}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for n, b in model.named_buffers() if "correction" in n)):
            spread = 0.3 if tensor.ndim == 1 else 0.25 if tensor.ndim == 2 else 0.2
            start = tensor if tensor.ndim == 1 else 0.0 * tensor
            tensor.copy_(start + spread * torch.randn(tensor.shape))
    return model


def settings(name: str) -> dict:
    """The config.json that transformers would write."""
    return json.loads(torch_model(name).config.to_json_string())


@cache
def tensors(name: str) -> dict[str, np.ndarray]:
    """The checkpoint."""
    found = {k: v.detach().numpy() for k, v in torch_model(name).state_dict().items()}
    if torch_model(name).config.tie_word_embeddings:
        found.pop("lm_head.weight")
    return found


@cache
def ours(name: str):
    """The model in our terms, its graph and its weights."""
    model = import_config(settings(name), name, "test")
    return model, build(model, PLAIN), dict(load_weights(model, tensors(name)))


def torch_logits(name: str, ids: list[int]) -> np.ndarray:
    """Logits (tokens, vocab) of one sequence in one forward pass."""
    with torch.no_grad():
        return torch_model(name)(torch.tensor([ids])).logits[0].numpy()


@cache
def torch_greedy(name: str, prompt: tuple[int, ...], count: int) -> tuple[list[int], np.ndarray]:
    """Tokens and logits (count, vocab) of greedy decoding with a cache."""
    model, feed, past = torch_model(name), torch.tensor([prompt]), None
    found, rows = [], []
    with torch.no_grad():
        for _ in range(count):
            out = model(feed, past_key_values=past, use_cache=True)
            past = out.past_key_values
            rows.append(out.logits[0, -1].numpy())
            found.append(int(rows[-1].argmax()))
            feed = torch.tensor([[found[-1]]])
    return found, np.stack(rows)
