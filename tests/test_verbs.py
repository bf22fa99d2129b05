"""The verbs that execute: the built-in assistant and a checkpoint of 8-bit codes, from Python."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import taygeta as tg
from taygeta.base.errors import UnsupportedError
from taygeta.graph.build import build
from taygeta.graph.execute import run as reference
from taygeta.graph.step import Cache
from taygeta.machine.session import checkpoint_weights

pytest.importorskip("tokenizers")
ml_dtypes = pytest.importorskip("ml_dtypes")

LAB = str(Path(__file__).parent / "chips" / "lab.toml")
FP32 = {"weights": "fp32", "activations": "fp32"}
QUESTION = "How much memory does H100 have?"


def test_the_assistant_answers_without_a_checkpoint():
    pieces = []
    answer = tg.run(QUESTION, on=LAB, max_tokens=12, said=pieces.append, **FP32)
    assert pieces[0] == ""
    assert "".join(pieces) == answer.text == str(answer)
    assert len(answer.tokens) <= 12
    assert answer.checked > 0
    assert answer.prices["prompt"].tokens == len(answer.prompt)
    assert answer.prices["decode"].tokens == len(answer.tokens) - 1
    # Greedy, by the plain definition in fp32.
    d = answer.deployment
    weights = checkpoint_weights(d.model.source.removesuffix("config.json"), d)
    graph, cache, feed, found = build(d.model, d.formats), Cache(), list(answer.prompt), []
    for _ in answer.tokens:
        found.append(int(reference(graph, weights, {0: feed}, cache)[0].argmax()))
        feed = [found[-1]]
    assert found == list(answer.tokens)
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.text = ""


def test_ids_need_no_tokenizer_and_chat_uses_the_template():
    ids = tg.run([5, 6, 7], on=LAB, max_tokens=1, **FP32)
    assert (ids.prompt, ids.text, str(ids)) == ((5, 6, 7), None, str(ids.tokens[0]))
    assert set(ids.prices) == {"prompt"}
    bare, message = (tg.run(QUESTION, on=LAB, max_tokens=1, chat=chat, **FP32) for chat in (False, True))
    assert bare.prompt == message.prompt  # as the assistant's card says


def test_drawn_tokens_follow_the_seed():
    def drawn(seed: int) -> tuple[int, ...]:
        return tg.run([5, 6, 7], on=LAB, max_tokens=8, temperature=3.0, seed=seed, **FP32).tokens

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"checkpoint": "/nowhere"}, "/nowhere is no directory: running needs a checkpoint on disk, "),
        ({"checkpoint": "\0"}, "\0 is no directory: "),
        ({"prompt": []}, "The prompt has no tokens: "),
        ({"prompt": [5, 3072]}, "Token 3072 is not in the vocabulary of 3,072 tokens of assistant."),
        ({"prompt": [-1]}, "Token -1 is not in the vocabulary"),
        ({"prompt": [5] * 256}, "The prompt has 256 tokens, and the context of assistant is 256: "),
        ({"max_tokens": 0}, "max-tokens must be 1 to 1,048,576, not 0."),
        ({"top_p": 0.0}, "top-p must be above 0"),
    ],
)
def test_what_run_refuses(how, sentence):
    with pytest.raises(tg.InputError) as caught:
        tg.run(**{"prompt": "HI", "on": LAB, **FP32, **how})
    assert str(caught.value).startswith(sentence)


def test_a_chip_without_tiles_is_refused():
    with pytest.raises(UnsupportedError, match="h100 cannot be compiled for: "):
        tg.run("HI", on="h100")


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of two layers whose matrices are codes of e4m3 with a scale each."""
    save = pytest.importorskip("safetensors.numpy").save_file
    place = tmp_path_factory.mktemp("coded")
    config = {
        "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 50,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
        "tie_word_embeddings": False, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": None},
    }  # fmt: skip
    (place / "config.json").write_text(json.dumps(config))
    random, tensors = np.random.default_rng(0), {}
    shapes = {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64)}
    for i in range(2):
        at = f"model.layers.{i}."
        inner = {f"{at}self_attn.{n}_proj.weight": shape for n, shape in shapes.items()}
        inner |= {f"{at}mlp.{n}_proj.weight": (96, 64) for n in ("gate", "up")} | {
            f"{at}mlp.down_proj.weight": (64, 96)
        }
        for name, shape in inner.items():
            tensors[name] = random.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = np.float32(random.uniform(0.1, 0.3))
        for name, width in (("input_layernorm", 64), ("post_attention_layernorm", 64), ("self_attn.q_norm", 16),
                            ("self_attn.k_norm", 16)):  # fmt: skip
            tensors[f"{at}{name}.weight"] = random.uniform(0.5, 1.5, width).astype(np.float32)
    tensors["model.norm.weight"] = np.ones(64, np.float32)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = random.standard_normal((50, 64)).astype(np.float32)
    save({name: np.asarray(t) for name, t in tensors.items()}, place / "model.safetensors")
    return place


def test_codes_and_scales_are_checked_against_the_plain_definition(coded):
    """PyTorch's libraries need a GPU for them, so the reference says what it is."""
    ids = [int(i) for i in np.random.default_rng(1).integers(0, 50, 31)]
    found = tg.check(ids, coded, on=LAB, window=10, **FP32)
    assert found.reference == "the plain definition in fp32 (weights are stored quantised)"
    assert (found.tokens, found.sequences) == (30, 3)  # the last token is alone and left out
    assert set(found.rows) == {"chip", "reference"}
    assert found.rows["chip"].error_max < 1e-4
    assert found.rows["chip"].agreement == 1.0
    assert found.first_divergence is None
    assert found.checked > 0
    coarse = tg.check(ids, coded, on=LAB, window=10, weights="mxfp4", activations="mxfp4")
    assert coarse.rows["chip"].kl > 100 * found.rows["chip"].kl
    assert coarse.first_divergence in coarse.operations
    assert coarse.first_divergence.relative > coarse.diverges == 0.05


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"text": [1]}, "The text has fewer than two tokens: there is nothing to predict."),
        ({"text": [1, 50]}, "Token 50 is not in the vocabulary of 50 tokens of "),
        ({"window": 65}, "window must be 2 to 64 tokens for "),
        ({"tokens": 1}, "tokens must be 2 to 1,048,576, not 1."),
        ({"diverges": float("nan")}, "diverges must be a relative error above 0 such as 0.05, not nan."),
        ({"text": "HI"}, "/"),  # the path of the tokenizer.json that is not there
    ],
)
def test_what_check_refuses(coded, how, sentence):
    with pytest.raises(tg.InputError) as caught:
        tg.check(**{"text": [1, 2, 3], "checkpoint": coded, "on": LAB, **FP32, **how})
    assert str(caught.value).startswith(sentence)


def test_a_model_is_deployed_as_it_is():
    """An export has a Model and no name: it is predicted as the one of the catalogue, and has no fields to set."""
    batch = tg.Batch.decode(4, 512)
    own = tg.deploy(tg.model("gpt2"), on="h100:2", tp=2)
    assert tg.predict(own, batch).seconds == tg.predict(tg.deploy("gpt2", on="h100:2", tp=2), batch).seconds
    assert tg.deploy(tg.model("gpt2"), on="h100", settings={"clock": "1GHz"}).chip.clock == 1e9
    with pytest.raises(tg.InputError, match="gpt2 is given as a model of its own and has no n_layer to set"):
        tg.deploy(tg.model("gpt2"), on="h100", settings={"n_layer": "2"})
