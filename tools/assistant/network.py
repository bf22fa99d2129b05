"""The assistant's network, a Qwen3 decoder, written for training on one CPU thread: the same arithmetic and the same
parameters as Qwen3ForCausalLM of transformers, with the head applied to the tokens of answers only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_sliding_window": False,
    "dtype": "bfloat16",
}


class Norm(nn.Module):
    """A root-mean-square norm over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, CONFIG["rms_norm_eps"])


class Attention(nn.Module):
    """Grouped-query attention with a norm on queries and keys, causal."""

    def __init__(self) -> None:
        super().__init__()
        width, d = CONFIG["hidden_size"], CONFIG["head_dim"]
        self.heads, self.groups, self.width = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], d
        self.q_proj = nn.Linear(width, self.heads * d, bias=False)
        self.k_proj = nn.Linear(width, self.groups * d, bias=False)
        self.v_proj = nn.Linear(width, self.groups * d, bias=False)
        self.o_proj = nn.Linear(self.heads * d, width, bias=False)
        self.q_norm, self.k_norm = Norm(d), Norm(d)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, _ = x.shape
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        parts = functional.linear(x, weight).view(batch, length, -1, self.width).transpose(1, 2)
        q, k, v = parts.split((self.heads, self.groups, self.groups), dim=1)
        q, k = rotated(self.q_norm(q), rope), rotated(self.k_norm(k), rope)
        repeat = self.heads // self.groups
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    """A gated feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), Mlp()
        self.input_layernorm, self.post_attention_layernorm = Norm(CONFIG["hidden_size"]), Norm(CONFIG["hidden_size"])

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings, layers and the last norm."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, CONFIG["hidden_size"])
        self.layers = nn.ModuleList(Layer() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = Norm(CONFIG["hidden_size"])


class Assistant(nn.Module):
    """The whole network; its state has the names of a Hugging Face checkpoint, head and embedding shared."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.model = Decoder(vocabulary)
        d, longest = CONFIG["head_dim"], CONFIG["max_position_embeddings"]
        angles = torch.outer(torch.arange(longest), CONFIG["rope_theta"] ** (-torch.arange(0, d, 2) / d))
        both = torch.cat((angles, angles), dim=-1)
        self.rope = (both.cos(), both.sin())
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * CONFIG["num_hidden_layers"]) ** -0.5 if deep else 1.0
                nn.init.normal_(weight, std=0.04 * scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Return what the head sees, (batch, length, hidden): the normalised state after every token."""
        length = ids.shape[1]
        rope = self.rope[0][:length], self.rope[1][:length]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, rope)
        return self.model.norm(x)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of states."""
        return functional.linear(states, self.model.embed_tokens.weight)


def rotated(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Return queries or keys turned by their positions, halves against each other as Llama turns them."""
    first, second = x.chunk(2, dim=-1)
    return x * rope[0] + torch.cat((-second, first), dim=-1) * rope[1]
