"""Models from their code: the exported graph is the built-in one, and computes what eager torch computes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from taygeta.base.errors import InputError, MissingExtraError, UnsupportedError
from taygeta.frontend.checkpoint import open_checkpoint
from taygeta.frontend.huggingface import import_config
from taygeta.graph.build import build
from taygeta.graph.execute import run
from taygeta.graph.ops import AttentionShape
from taygeta.graph.step import Cache

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sys.path.append(str(Path(__file__).parents[1] / "graph"))
import tiny_models as tiny  # noqa: E402

from taygeta.frontend.exported import PLAIN, export_model  # noqa: E402

pytestmark = pytest.mark.torch

BASE = {
    **{k: v for k, v in tiny.SIZES.items() if k != "head_dim"}, "vocab_size": 96, "hidden_size": 48,
    "intermediate_size": 72, "num_hidden_layers": 3, "max_position_embeddings": 256,
}  # fmt: skip
GPT2 = {"vocab_size": 96, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
TIED = {"tie_word_embeddings": True}
# name: (configuration class, settings, layer kinds)
MODELS = {
    "llama": ("Llama", {"rope_parameters": tiny.LLAMA3}, 1),
    "mistral": ("Mistral", {"sliding_window": 4, "head_dim": 12}, 1),
    "qwen2": ("Qwen2", TIED, 1),
    "qwen3": ("Qwen3", {"head_dim": 16}, 1),
    "qwen3_moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
         "mlp_only_layers": [1]},
        2,
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, 1),
    "gpt_oss": (
        "GptOss",
        {"num_hidden_layers": 4, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
         "sliding_window": 4},
        2,
    ),
    "deepseek_v3": ("DeepseekV3", tiny.LATENT, 2),
    "minimax_m2": (
        "MiniMaxM2",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": {
            "rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 0.5}},
        1,
    ),
    "gemma2": ("Gemma2", {**TIED, "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 20}, 2),
    "gemma3_text": (
        "Gemma3Text", {**TIED, "num_hidden_layers": 7, "head_dim": 16, "sliding_window": 4}, 2
    ),
    "phi3": ("Phi3", {}, 1),
    "gpt2": ("GPT2", GPT2, 1),
}  # fmt: skip
# Classes that the importer of config.json does not know, which are understood from their code alone.
OTHERS = {
    "starcoder2": ("Starcoder2", {}, 1),
    "nemotron": ("Nemotron", {}, 1),  # squared ReLU, a norm that subtracts the mean and adds one to its scale
    "glm4_moe": (
        "Glm4Moe",
        {"head_dim": 12, "moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 2,
         "n_shared_experts": 1, "first_k_dense_replace": 1},
        2,
    ),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}, 1),  # norms over all heads together
    "glm4": ("Glm4", {"head_dim": 12}, 1),  # neighbours turn, half a head
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}, 2),  # every fourth layer without rotation
}  # fmt: skip


def config_of(kind: str, settings: dict) -> transformers.PretrainedConfig:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, f"{kind}Config")(**(settings if kind == "GPT2" else {**BASE, **settings}))


@cache
def exported(name: str):
    kind, settings, _ = {**MODELS, **OTHERS}[name]
    return export_model(config_of(kind, settings))


@cache
def eager(name: str):
    """The model with random parameters on the CPU, attention and experts as transformers writes them."""
    kind, settings, _ = {**MODELS, **OTHERS}[name]
    config = config_of(kind, settings)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for n, b in model.named_buffers() if "correction" in n)):
            tensor.copy_(torch.randn_like(tensor) * (0.15 if tensor.ndim > 1 else 0.5))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_the_built_in_one(name):
    """Every operation with its axes, weights, FLOP, cache and meaning: the same from the code and from the file."""
    kind, settings, kinds = MODELS[name]
    text = config_of(kind, settings).to_json_string()
    model, found = import_config(json.loads(text), name, "test"), exported(name)
    theirs = build(model, PLAIN)
    assert found.graph.blocks == theirs.blocks
    assert found.graph.order == theirs.order
    assert len(found.graph.blocks) == kinds + 2  # the embedding and the head
    assert found.model.parameters() == model.parameters()
    assert (found.model.tied, found.model.vocab, found.model.arithmetic) == (model.tied, model.vocab, model.arithmetic)


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_values_of_eager_torch(name):
    found = exported(name)
    tensors = {key: value.detach().numpy() for key, value in eager(name).state_dict().items()}
    weights, ids = found.weights(tensors), [int(i) for i in np.random.default_rng(0).integers(3, 95, 23)]
    with torch.no_grad():
        expected = eager(name)(torch.tensor([ids])).logits[0].numpy()
    cache, at = Cache(), 0
    for count in (9, 1, 1, 12):
        logits = run(found.graph, weights, {0: ids[at : at + count]}, cache)
        at += count
        assert np.abs(logits[0] - expected[at - 1]).max() < 2e-5
    assert np.abs(expected).max() > 1.0


@pytest.mark.parametrize("name", OTHERS)
def test_parameters_of_classes_that_no_importer_knows(name):
    held = {id(p): p.numel() for p in eager(name).parameters()}
    buffers = sum(b.numel() for n, b in eager(name).named_buffers() if "correction" in n)
    assert exported(name).model.parameters() == sum(held.values()) + buffers


def test_flop_and_cache_by_hand():
    """Llama: 2 x rows x (d (h + 2 g) dim + h dim d + 3 d f) a layer, and 2 x 2 x 12 elements of cache a token."""
    graph = exported("llama").graph
    layer = graph.blocks[1]
    assert layer.repeats == 3
    flop = sum(op.matmul_flop(5) for op in layer.ops if op.kind == "matmul")
    assert flop == 2 * 5 * (48 * (4 + 2 * 2) * 12 + 48 * 48 + 3 * 48 * 72)
    (shape,) = (op.detail for op in layer.ops if isinstance(op.detail, AttentionShape))
    assert (shape.kv_heads * (shape.qk_dim + shape.v_dim), shape.window) == (48, 0)
    assert [op.kind for op in layer.ops] == [
        "vector", "matmul", "vector", "attention", "matmul", "vector", "matmul", "vector", "matmul",
    ]  # fmt: skip


def test_a_large_model_needs_no_memory(tmp_path):
    """Llama 3.1 405B from its config.json alone: one layer is exported, 126 stand in the graph."""
    settings = {
        "model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
        "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "max_position_embeddings": 131072, "tie_word_embeddings": False, "hidden_act": "silu",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(settings))
    graph = export_model(tmp_path).graph
    assert [block.repeats for block in graph.blocks] == [1, 126, 1]
    assert graph.weight_elements() == 405_853_388_800  # as published


REFUSED = {
    # scaled residuals, both halves beside each other, gated shared experts, norms after only, offset positions
    "granite": ("Granite", {"residual_multiplier": 0.5}, r"model\.layers\.0\.self_attn\.o_proj \(Linear\): "),
    "cohere": ("Cohere", {}, r"model\.layers\.0 \(CohereDecoderLayer\): aten\.add\.Tensor is read by 0 norms; "),
    "qwen2_moe": (
        "Qwen2Moe",
        {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
         "shared_expert_intermediate_size": 32},
        r"model\.layers\.0\.mlp \(Qwen2MoeSparseMoeBlock\): aten\.add\.Tensor adds shared experts that are gated ",
    ),
    "olmo2": ("Olmo2", {}, r"model\.layers\.0\.self_attn\.q_proj \(Linear\): aten\.linear\.default begins the "),
    "apertus": ("Apertus", {}, r"model\.layers\.0\.mlp\.act_fn \(XIELUActivation\): aten\.where\.self is an activ"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_named(name):
    kind, settings, message = REFUSED[name]
    with pytest.raises(UnsupportedError, match=message):
        export_model(config_of(kind, settings))


def test_missing_and_misshapen_tensors():
    found = exported("llama")
    with pytest.raises(InputError, match=r"^LlamaForCausalLM: tensor 'model\.embed_tokens\.weight' is missing; the "):
        found.weights({})
    tensors = {key: value.detach().numpy() for key, value in eager("llama").state_dict().items()}
    tensors["lm_head.weight"] = tensors["lm_head.weight"][1:]
    with pytest.raises(InputError) as caught:
        found.weights(tensors)
    assert str(caught.value) == (
        "LlamaForCausalLM: tensor 'lm_head.weight' has the shape 95 x 48; the exported class has it as 96 x 48."
    )


def test_from_a_checkpoint_on_disk(tmp_path):
    """Two shards of bf16 beside a config.json: exported, opened, run, as transformers runs them."""
    pytest.importorskip("ml_dtypes")
    model = eager("qwen2").to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    found, checkpoint = export_model(tmp_path), open_checkpoint(tmp_path)
    assert len(checkpoint.files) > 1
    assert checkpoint.bytes == 2 * found.model.parameters()
    with torch.no_grad():
        expected = model.float()(torch.tensor([[5, 17, 40]])).logits[0, -1].numpy()
    logits = run(found.graph, found.weights(checkpoint), {0: [5, 17, 40]}, Cache())
    assert np.abs(logits[0] - expected).max() < 2e-5


def test_inputs_that_are_no_configuration(tmp_path):
    with pytest.raises(InputError, match=r"or a configuration object of transformers, not from a int\.$"):
        export_model(3)
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(InputError, match="transformers cannot read this configuration: "):
        export_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json: model_type must be a text, not null\.$"):
        export_model(tmp_path)


def test_without_torch_the_pip_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"^exporting a model needs torch: pip install 'taygeta\[torch\]'$"):
        export_model("nowhere")


def test_imports_are_light():
    code = (
        "import sys\n"
        "import taygeta.frontend.exported, taygeta.frontend.export_module, taygeta.frontend.checkpoint\n"
        "import taygeta.frontend.tokenizer\n"
        "heavy = {'torch', 'transformers', 'ml_dtypes', 'tokenizers', 'jinja2', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
