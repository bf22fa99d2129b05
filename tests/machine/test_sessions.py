"""Checkpoints executed on simulated chips: the text, the logits and the bits, for every family that can run."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "graph"))
import tiny_models as tiny

from taygeta import api
from taygeta.base.errors import DoesNotFitError, InputError, UnsupportedError
from taygeta.compiler.compile import Compiled
from taygeta.frontend.checkpoint import open_checkpoint
from taygeta.frontend.huggingface import import_config
from taygeta.machine import quality
from taygeta.machine.checks import Checker
from taygeta.machine.constants import Constants
from taygeta.machine.generate import Sampling, choose, generate
from taygeta.machine.price import Pricer
from taygeta.machine.session import Session, checkpoint_weights
from taygeta.machine.sweep import Row, format_pairs, pareto
from taygeta.spec import catalog
from taygeta.spec.deployment import Deployment, deployment
from taygeta.spec.engine import Engine

pytestmark = pytest.mark.torch

LAB = str(Path(__file__).parents[1] / "chips" / "lab.toml")
PROMPT = tuple(np.random.default_rng(1).integers(3, 97, 21).tolist())
COUNT, CAPACITY = 5, 40
PLAIN = Engine(
    "plain", memory_fraction=1.0, token_budget=8192, host_step=0.0, host_request=0.0, policy="mixed",
    quantise_launches=0.0, fused_all_reduce=False, fused_epilogues=False, direct_start=4.0, direct_second=6.0,
    direct_efficiency=0.6,
)  # fmt: skip


def deployed(name: str, chips: int = 1, fmt: str = "fp32", chip: str = LAB, kv: str = "bf16") -> Deployment:
    model = import_config(tiny.settings(name), name, "test")
    return deployment(model, catalog.chip(chip), chips, PLAIN, None, fmt, fmt, kv)


class Noted(Session):
    """A session that keeps the logits of every call."""

    def extend(self, new):
        found = super().extend(new)
        self.noted = [*getattr(self, "noted", []), found.copy()]
        return found


def greedy(name: str, chips: int = 1, fmt: str = "fp32", chunk: int = 8) -> tuple[list[int], np.ndarray]:
    """Tokens and logits (count, vocab) of a prompt in chunks and of decoding; every 16th multiply is checked."""
    d = deployed(name, chips, fmt)
    checker = Checker(16)
    session = Noted(d, tiny.ours(name)[2], CAPACITY, chunk=chunk, checker=checker)
    tokens = [found[0] for found in generate(session, [PROMPT], COUNT)]
    assert checker.checked > 5
    return tokens, np.concatenate(session.noted)


@cache
def single(name: str) -> tuple[list[int], np.ndarray]:
    return greedy(name)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_greedy_text_and_logits_are_those_of_eager(name):
    tokens, logits = single(name)
    expected, rows = tiny.torch_greedy(name, PROMPT, COUNT)
    assert tokens == expected
    assert np.abs(logits - rows).max() < 1e-4


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3_moe", "gpt_oss", "deepseek_v3", "gemma2", "phi3", "gpt2"])
def test_two_chips_compute_the_same_bits(name):
    """No sum is split over chips."""
    assert np.array_equal(greedy(name, chips=2)[1], single(name)[1])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3", "mistral", "phi3"])
def test_bf16_is_within_twice_the_error_of_eager_bf16(name, tmp_path):
    """The tolerance: the root mean square of the logits' error against fp32, at most twice that of PyTorch in bf16."""
    directory = saved(name, tmp_path)
    windows = [PROMPT]
    half = quality.torch_logits(directory, windows, "bfloat16")[0]
    session = Session(deployed(name, 1, "bf16"), tiny.ours(name)[2], CAPACITY, every=True)
    ours = quality.chip_logits(session, windows)[0]
    exact = tiny.torch_logits(name, list(PROMPT))
    assert rms(ours - exact) < 2.0 * rms(half - exact)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x.astype(np.float64) ** 2)))


@pytest.mark.parametrize("fmt", ["mxfp8", "mx9", "mxint8"])
def test_narrow_formats_compute_the_same_bits_on_two_chips(fmt):
    first, second = (greedy("qwen3", chips, fmt)[1] for chips in (1, 2))
    assert np.isfinite(first).all()
    assert np.array_equal(first, second)


def test_several_sequences_end_apart_and_do_not_touch_each_other():
    d, weights = deployed("llama"), tiny.ours("llama")[2]
    prompts = [PROMPT, PROMPT[:5], PROMPT[3:16]]
    alone = [[t[0] for t in generate(Session(d, weights, CAPACITY, chunk=8), [p], COUNT)] for p in prompts]
    together = list(generate(Session(d, weights, CAPACITY, 3, chunk=8), prompts, COUNT))
    assert [[row[i] for row in together] for i in range(3)] == alone
    eos = {alone[0][1]}
    stopped = list(generate(Session(d, weights, CAPACITY, 3, chunk=8), prompts, COUNT, eos=eos))
    for i in range(3):
        own = [row[i] for row in stopped if row[i] is not None]
        end = next((k for k, t in enumerate(alone[i]) if t in eos), COUNT - 1)
        assert own == alone[i][: end + 1]


def test_a_cache_that_is_nearly_full_is_used_to_the_end():
    d, weights = deployed("llama"), tiny.ours("llama")[2]
    session = Session(d, weights, len(PROMPT) + 3, chunk=16)
    tokens = [t[0] for t in generate(session, [PROMPT], 4)]
    assert tokens == tiny.torch_greedy("llama", PROMPT, 4)[0]
    with pytest.raises(InputError, match=r"25 tokens exceed the 24 that the KV cache of this session holds; the con"):
        session.extend([[1]])


def test_sampling_by_hand():
    logits = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))
    random = np.random.default_rng(0)
    assert choose(logits, Sampling(), random) == 1
    drawn = np.bincount([choose(logits, Sampling(1.0), random) for _ in range(4000)], minlength=4) / 4000
    assert np.abs(drawn - [0.1, 0.5, 0.15, 0.25]).max() < 0.03
    assert {choose(logits, Sampling(1.0, top_k=2), random) for _ in range(200)} == {1, 3}
    assert {choose(logits, Sampling(1.0, top_p=0.8), random) for _ in range(400)} == {1, 2, 3}
    assert {choose(logits, Sampling(0.01), random) for _ in range(50)} == {1}
    with pytest.raises(InputError, match="logits are not numbers"):
        choose(np.array([np.nan, 1.0], np.float32), Sampling(), random)


def test_the_same_seed_draws_the_same_text():
    d, weights = deployed("gpt2"), tiny.ours("gpt2")[2]
    runs = [
        [t[0] for t in generate(Session(d, weights, CAPACITY), [PROMPT], 8, Sampling(2.0, seed=seed))]
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_weights_beyond_the_budget_are_prepared_again_and_give_the_same_bits():
    d, weights = deployed("llama", fmt="mxfp8"), tiny.ours("llama")[2]
    small, large = (Session(d, weights, CAPACITY, budget=b) for b in (20_000, 1 << 30))
    assert np.array_equal(small.extend([PROMPT]), large.extend([PROMPT]))
    assert 0 < small.constants.prepared_bytes <= 20_000 < large.constants.prepared_bytes


def test_every_value_of_every_operation_agrees_with_the_plain_definition():
    for name, least in (("gpt2", 33), ("gpt_oss", 50), ("deepseek_v3", 40)):
        session = Session(deployed(name), tiny.ours(name)[2], CAPACITY, every=True)
        errors = quality.op_errors(session, tiny.ours(name)[2], PROMPT)
        assert len(errors) >= least
        assert max(e.relative for e in errors) < 1e-5
        assert quality.first_divergence(errors) is None
        assert errors[-1].value == "logits"


def test_the_first_divergence_is_where_it_was_put():
    """One wrong weight in layer 2: what comes before it is right."""
    wrong = dict(tiny.ours("gpt2")[2])
    wrong[2, "up"] = wrong[2, "up"] * np.float32(1.5)
    session = Session(deployed("gpt2"), wrong, CAPACITY, every=True)
    found = quality.first_divergence(quality.op_errors(session, tiny.ours("gpt2")[2], PROMPT))
    assert found is not None
    assert (found.layer, found.value) == (2, "gated")


def test_quality_by_hand():
    """Two tokens: the second has probability 1/4 by the reference, 1/2 by the other."""
    theirs, ours = (np.log(np.array([[1 - p, p], [0.5, 0.5]])) for p in (0.25, 0.5))
    found = quality.quality([ours], [theirs], [[0, 1]])
    assert found.predictions == 2
    assert found.perplexity == pytest.approx(2.0)
    assert found.kl_max == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert found.kl == pytest.approx(found.kl_max / 2)
    assert found.agreement == 1.0
    assert found.error_max == pytest.approx(np.log(2.0))


def test_steps_are_priced_with_their_own_programs():
    d, weights = deployed("qwen3_moe"), tiny.ours("qwen3_moe")[2]
    session = Session(d, weights, CAPACITY, chunk=8)
    list(generate(session, [PROMPT], 3))
    assert [(s.context, s.new) for s in session.steps] == [(0, 8), (8, 8), (16, 5), (21, 1), (22, 1)]
    assert all(len(row) for s in session.steps for row in s.lists)
    found = Pricer(d).price(session.steps)
    assert (found.steps, found.tokens) == (5, 23)
    assert sum(timed for timed, _ in found.parts.values()) == pytest.approx(found.seconds)
    assert sum(modelled for _, modelled in found.parts.values()) == pytest.approx(found.modelled.nominal)
    assert found.seconds > 0.0
    assert found.modelled.low <= found.modelled.nominal <= found.modelled.high


def test_format_pairs_are_those_that_the_chip_multiplies():
    found = format_pairs(catalog.chip("maia-100"))
    assert {("mx9", "mx9"), ("mx6", "mx9"), ("mx6", "mx6"), ("bf16", "bf16"), ("mxfp4", "mx6")} <= set(found)
    assert ("mxfp8", "mxfp8") not in found  # multiplied as mx9
    assert not {a for _, a in found} - {"bf16", "mx9", "mx6", "mx4"}
    point = quality.Quality(1, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    rows = [
        Row("a", "a", "m", quality.Quality(1, 1.0, kl, 0.0, 1.0, 0.0, 0.0), seconds, size)
        for kl, seconds, size in ((0.1, 1.0, 1.0), (0.2, 1.0, 2.0), (0.05, 2.0, 2.0), (0.1, 1.0, 1.0))
    ]
    assert pareto([*rows, Row("b", "b", "m", point, 9.0, 9.0)]) == {0, 2, 3, 4}


def saved(name: str, directory: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny.torch_model(name).save_pretrained(directory)
    return directory


def test_a_checkpoint_directory_runs(tmp_path):
    directory = saved("gpt2", tmp_path)
    d = api.deploy(directory, LAB, weights="fp32", activations="fp32", kv="bf16")
    session = Session(d, checkpoint_weights(directory, d), CAPACITY)
    assert [t[0] for t in generate(session, [PROMPT], COUNT)] == single("gpt2")[0]


def test_what_cannot_run_is_refused_by_name(tmp_path, monkeypatch):
    weights = tiny.ours("llama")[2]

    def session(capacity: int = 8, sequences: int = 1, **how: str) -> Session:
        return Session(deployed("llama", **how), weights, capacity, sequences)

    cases = [
        (UnsupportedError, "h100 cannot be compiled for: it does not state", lambda: session(chip="h100")),
        (InputError, "maia-100 cannot multiply fp32 by fp32", lambda: session(chip="maia-100")),
        (InputError, "must hold 1 to 128 tokens, the context of llama, not 129", lambda: session(129)),
        (InputError, "A session has 1 to 64 sequences, not 0", lambda: session(8, 0)),
        (UnsupportedError, "A KV cache in fp8 is not compiled", lambda: session(kv="fp8")),
        (InputError, "At least one token must be asked for", lambda: next(generate(session(), [[1]], 0))),
        (InputError, "adds at least one token to each of the 1", lambda: session().extend([[]])),
        (InputError, "temperature must be 0", lambda: Sampling(-1.0)),
        (InputError, "top-p must be above 0", lambda: Sampling(1.0, top_p=0.0)),
    ]
    for kind, sentence, call in cases:
        with pytest.raises(kind, match=sentence):
            call()
    directory = saved("llama", tmp_path)
    d = api.deploy(directory, LAB, weights="fp32", activations="fp32", kv="bf16")
    found = open_checkpoint(directory)
    with pytest.raises(
        InputError, match=r"parameters, 0\.0 GB in bf16, and running a checkpoint is bounded to 0\.0 GB"
    ):
        found.check_size(1e4)
    monkeypatch.setattr(type(found), "parameters", lambda self: 10**12)
    with pytest.raises(InputError, match=r"2000\.0 GB in bf16, and running a checkpoint is bounded to 8\.0 GB"):
        checkpoint_weights(directory, d)


def test_constants_know_their_program():
    """Programs of other shapes share what they prepared, and each packs with its own layout."""
    session = Session(deployed("llama"), tiny.ours("llama")[2], CAPACITY, chunk=16)
    session.extend([PROMPT])
    assert isinstance(session.constants, Constants)
    assert isinstance(session.program(1, 21), Compiled)
    assert session.program(1, 21) is session.program(1, 22)
    small = api.deploy("gpt2", LAB, weights="bf16", settings={"hbm.capacity": "1 MB"})
    with pytest.raises(DoesNotFitError, match="main memory"):
        Session(small, {}, 8)
