"""The graph computes what transformers computes: every family, prompts in chunks, decode, batches of sequences."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tiny_models as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.frontend.catalog import model as catalogue_model
from taygeta.graph.build import build
from taygeta.graph.execute import COLLECTIVES, FUNCTIONS, run
from taygeta.graph.meaning import Meaning
from taygeta.graph.ops import AttentionShape, Graph
from taygeta.graph.partition import partition
from taygeta.graph.shards import shards
from taygeta.graph.step import Cache
from taygeta.spec.deployment import Parallelism

pytestmark = pytest.mark.torch
NAMES = tuple(tiny.FAMILIES)


def tokens(seed: int, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(3, 97, count)]


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_in_chunks(name):
    _, graph, weights = tiny.ours(name)
    ids = tokens(1, 40)
    expected = tiny.torch_logits(name, ids)
    assert np.abs(expected).max() > 3.0  # the models say something
    cache, at = Cache(), 0
    for count in (13, 9, 1, 1, 16):
        out = run(graph, weights, {0: ids[at : at + count]}, cache)
        at += count
        assert np.abs(out[0] - expected[at - 1]).max() < 1e-4
        assert cache.length(0) == at


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens(name):
    _, graph, weights = tiny.ours(name)
    prompt = tokens(2, 17)
    wanted, rows = tiny.torch_greedy(name, tuple(prompt), 12)
    cache, feed = Cache(), prompt
    for token, row in zip(wanted, rows, strict=True):
        logits = run(graph, weights, {3: feed}, cache)
        assert np.abs(logits[0] - row).max() < 1e-4
        feed = [int(logits[0].argmax())]
        assert feed == [token]


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "deepseek_v3", "gemma3_text", "gpt2"])
def test_sequences_of_different_lengths_in_one_step(name):
    """A long prompt beside two decodes and a chunk: every sequence has what it has alone."""
    _, graph, weights = tiny.ours(name)
    ids = {s: tokens(10 + s, 40) for s in range(4)}
    expected = {s: tiny.torch_logits(name, ids[s]) for s in ids}
    cache = Cache()
    run(graph, weights, {0: ids[0][:20], 2: ids[2][:3]}, cache)
    steps = [{2: 1, 1: 25, 0: 1, 3: 5}, {3: 2, 0: 1, 1: 1}, {3: 14, 2: 1}]
    for step in steps:
        new = {s: ids[s][cache.length(s) : cache.length(s) + n] for s, n in step.items()}
        out = run(graph, weights, new, cache)
        for row, s in zip(out, step, strict=True):
            assert np.abs(row - expected[s][cache.length(s) - 1]).max() < 1e-4
    cache.forget(1)
    again = run(graph, weights, {1: ids[1][:4]}, cache)
    assert np.abs(again[0] - expected[1][3]).max() < 1e-4


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3", "gemma2"])
@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, 23), max_size=6))
def test_any_cut_of_a_prompt_gives_the_same(name, cuts):
    _, graph, weights = tiny.ours(name)
    ids = tokens(8, 24)
    whole = run(graph, weights, {0: ids}, Cache())
    cache, edges = Cache(), [0, *sorted(cuts), 24]
    for a, b in pairwise(edges):
        last = run(graph, weights, {0: ids[a:b]}, cache)
    assert np.abs(last - whole).max() < 3e-5


def test_both_lowerings_of_latent_attention():
    """The same prompt absorbed, expanded, and as the number of new tokens chooses."""
    _, graph, weights = tiny.ours("deepseek_v3")
    ids = tokens(4, 30)
    found = []
    for switch in (1, 10_000, None):
        mine = graph if switch is None else _switched(graph, switch)
        cache = Cache()
        found.append([run(mine, weights, {0: ids[a:b]}, cache)[0] for a, b in ((0, 20), (20, 21), (21, 30))])
    shapes = [op.detail for op, _ in graph.ops() if isinstance(op.detail, AttentionShape)]
    assert 1 < shapes[0].expand_from < 20  # so that the third run has both
    for other in found[1:]:
        assert max(np.abs(a - b).max() for a, b in zip(found[0], other, strict=True)) < 2e-5
    assert not all(np.array_equal(a, b) for a, b in zip(found[0], found[1], strict=True))


def _switched(graph: Graph, expand_from: int) -> Graph:
    def one(op):
        if not hasattr(op.meaning, "expand_from"):
            return op
        return replace(op, meaning=replace(op.meaning, expand_from=expand_from))

    return replace(graph, blocks=tuple(replace(b, ops=tuple(map(one, b.ops))) for b in graph.blocks))


@pytest.mark.parametrize(
    ("name", "spread"),
    [
        *((name, {"tp": 2}) for name in NAMES if name != "minimax_m2"),  # whose norms are of one rank
        *((name, {"tp": 4}) for name in ("llama", "gpt_oss", "gpt2", "qwen3_moe", "deepseek_v3")),
        ("gpt_oss", {"tp": 4, "ep": 2}),
        ("qwen3_moe", {"tp": 4, "ep": 4}),  # six experts on four ranks: the last has one, padded
        ("deepseek_v3", {"tp": 4, "ep": 4}),
        ("mixtral", {"tp": 2, "ep": 2}),
    ],
)
def test_ranks_together_compute_what_one_computes(name, spread):
    model, graph, weights = tiny.ours(name)
    p = Parallelism(**spread)
    mine = partition(graph, p, model)
    ranks = shards(model, p, weights)
    for part in ranks:
        _same_shapes(mine, part)
    ids = tokens(5, 24)
    one, all_ = Cache(), Cache()
    for a, b in ((0, 15), (15, 16), (16, 24)):
        alone, together = run(graph, weights, {0: ids[a:b]}, one), run(mine, ranks, {0: ids[a:b]}, all_)
        assert together.shape == alone.shape
        assert np.abs(together - alone).max() < 5e-5


def test_norms_over_all_heads_are_of_one_rank():
    """A rank would take the mean over its own heads, another number; predictions keep the partitioned graph."""
    model, graph, weights = tiny.ours("minimax_m2")
    p = Parallelism(tp=2)
    assert refusal(UnsupportedError, run, partition(graph, p, model), shards(model, p, weights), {0: [1]}, Cache()) == (
        "'rotary and cache write' normalises over all heads together, of which each of 2 ranks has a share: this "
        "attention is executed with tp=1."
    )


@pytest.mark.parametrize(("change", "what"), [
    ({"qk_norm": "unit"}, "queries and keys of unit length"), ({"output_gate": True}, "a gate on its output"),
])  # fmt: skip
def test_attention_without_a_meaning_is_refused(change, what):
    model, _, _ = tiny.ours("llama")
    layers = tuple(replace(x, mixer=replace(x.mixer, **change)) for x in model.layers)
    assert refusal(UnsupportedError, build, replace(model, layers=layers), tiny.PLAIN) == (
        f"Attention with {what} has no meaning here: it can be predicted and not executed."
    )


def _same_shapes(graph: Graph, weights) -> None:
    """Every weight has the axes that its operation says."""
    for visit in graph.order:
        for op in graph.blocks[visit.block].ops:
            for w in (*op.weights, *op.extras):
                assert weights[visit.layer, w.name].shape == tuple(size for _, size in w.axes), w.name


@pytest.mark.parametrize("name", NAMES)
def test_weights_have_the_axes_of_the_graph(name):
    _, graph, weights = tiny.ours(name)
    _same_shapes(graph, weights)
    used = {
        (v.layer, w.name) for v in graph.order for op in graph.blocks[v.block].ops for w in (*op.weights, *op.extras)
    }
    assert used == set(weights)


@pytest.mark.parametrize("name", ["gemma2", "deepseek_v3"])
def test_pipeline_stages(name, deploy):
    from taygeta.graph.partition import stages

    model, graph, weights = tiny.ours(name)
    found = stages(deploy(model, 4, tp=2, pp=2))
    ids = tokens(6, 12)
    ranks = shards(model, Parallelism(tp=2, pp=2), weights)
    one, two = Cache(), Cache()
    for a, b in ((0, 11), (11, 12)):
        alone = run(graph, weights, {0: ids[a:b]}, one)
        assert np.abs(run(found, ranks, {0: ids[a:b]}, two) - alone).max() < 5e-5


@pytest.mark.parametrize("name", NAMES)
def test_values_are_given_once_and_before_they_are_taken(name):
    model, graph, _ = tiny.ours(name)
    for found in (graph, partition(graph, Parallelism(tp=4), model)):
        for block in found.blocks:
            known = {"ids", "positions", *block.inputs}
            for op in block.ops:
                assert op.meaning is not None
                assert set(op.inputs) <= known, (block.name, op.name)
                assert not set(op.outputs) & known
                known |= set(op.outputs)
            assert set(block.outputs) <= known


def test_sums_over_ranks_stand_before_what_needs_them():
    """Post norms are of the whole sum; names of sums replace those of the shares."""
    model, graph, _ = tiny.ours("gemma2")
    block = partition(graph, Parallelism(tp=2), model).blocks[1]
    mixer = ["norm", "qkv", "rotary and cache write", "attention", "o", "all-reduce", "norm"]
    assert [op.name for op in block.ops] == [*mixer, "norm", "up", "activation", "down", "all-reduce", "norm"]
    named = [(op.inputs, op.outputs) for op in block.ops]
    assert named[4:8] == [
        (("attended",), ("mixer",)),
        (("mixer",), ("mixer_summed",)),
        (("mixer_summed",), ("mixer_normed",)),
        (("mixer_x", "mixer_normed"), ("ffn_x", "ffn_h")),
    ]
    assert block.outputs == ("ffn_x", "ffn_normed")
    model, graph, _ = tiny.ours("deepseek_v3")
    last = partition(graph, Parallelism(tp=4), model).blocks[2]
    assert [(op.name, op.inputs, op.outputs) for op in last.ops[-2:]] == [
        ("shared_down", ("shared_gated", "routed"), ("ffn",)),
        ("all-reduce", ("ffn",), ("ffn_summed",)),
    ]
    assert last.outputs == ("ffn_x", "ffn_summed")


def test_every_meaning_has_a_function():
    assert set(Meaning.__args__) == set(FUNCTIONS) | set(COLLECTIVES)


def test_layers_run_in_the_order_of_the_model():
    model, graph, _ = tiny.ours("gemma3_text")
    assert [b.repeats for b in graph.blocks] == [1, 6, 1, 1]  # embedding, five of six layers slide and one more, head
    assert [(v.block, v.layer) for v in graph.order] == [
        (0, None), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 5), (1, 6), (3, None)
    ]  # fmt: skip
    assert len(model.layers) == 7


def refusal(error, function, *arguments) -> str:
    with pytest.raises(error) as caught:
        function(*arguments)
    return str(caught.value)


def test_refusals():
    model, graph, weights = tiny.ours("gpt2")
    assert refusal(InputError, run, graph, weights, {}, Cache()) == (
        "A step needs the new tokens of at least one sequence."
    )
    assert refusal(InputError, run, graph, weights, {4: []}, Cache()) == (
        "Sequence 4 adds no tokens in this step; leave it out or give one."
    )
    assert refusal(InputError, run, graph, weights, {0: [5] * 129}, Cache()) == (
        "Position 128 exceeds the 128 learned positions of the model."
    )
    assert refusal(InputError, run, graph, weights, {0: [97]}, Cache()) == (
        "Token 97 is not in the vocabulary of 97 tokens."
    )
    assert refusal(UnsupportedError, run, Graph(graph.blocks), weights, {0: [1]}, Cache()) == (
        "This graph does not say in which order its layers run: it cannot be executed."
    )
    apart = partition(graph, Parallelism(tp=2, sequence=True), model)
    assert refusal(UnsupportedError, run, apart, [weights] * 2, {0: [1]}, Cache()) == (
        "'reduce-scatter' of 'embedding' has no meaning here: this graph can be predicted and not executed."
    )
    assert refusal(UnsupportedError, shards, model, Parallelism(tp=2, dp=2), weights) == (
        "Execution under tp=2 dp=2 is not supported; it can have tp, ep and pp."
    )
    assert refusal(InputError, shards, model, Parallelism(tp=3), weights) == (
        "4 heads do not divide over tp=3; take a divisor."
    )


@pytest.mark.parametrize("name", ["llama-4-scout", "qwen3.5-27b", "deepseek-v3.2", "nemotron-3-super-120b-a12b-fp8"])
def test_what_cannot_be_executed_is_still_a_graph(name):
    found = catalogue_model(name) if "nemotron" not in name else catalogue_model(f"nvidia-{name}")
    graph = build(found, tiny.PLAIN)
    message = refusal(UnsupportedError, run, graph, {}, {0: [1]}, Cache())
    assert message == "'embedding' of 'embedding' has no meaning here: this graph can be predicted and not executed."
