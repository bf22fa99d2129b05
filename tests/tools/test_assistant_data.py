"""The assistant's questions: answers counted by hand, and a test that shares nothing with the training data."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from taygeta.base.errors import UnknownNameError
from taygeta.frontend.catalog import model, model_names
from taygeta.spec.catalog import chip, chip_names

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.assistant import data, more_wordings, wordings
from tools.assistant.facts import FORMAT_SENTENCES, chips, formats, glossary, models

PAIRS = ("chips compared", "models compared", "difference", "ratio", "chips needed", "fits on one chip")


def named(entities, name):
    return next(e for e in entities if e.name == name)


@pytest.mark.parametrize(
    ("name", "field", "sentence"),
    [
        ("H100", "memory", "H100 has 80 GiB of memory."),
        ("H100", "bandwidth", "H100 has 3350 GB/s of memory bandwidth."),
        ("H100", "peak fp8", "H100 has 1979 TFLOP/s in fp8."),  # 1,978.9 on the sheet
        ("H100", "peak fp4", "H100 has no fp4 mode."),
        ("Maia 100", "power", "Maia 100 is designed for about 700 W."),  # 500 to 700 W are both published
        ("Maia 100", "peak mx6", "Maia 100 has 3000 TFLOP/s in mx6."),
        ("B300", "memory", "B300 has 268 GiB of memory."),  # 268.6 rounded down
        ("Cobalt 100", "power", "The catalogue does not state the power of Cobalt 100."),
        ("TPU v7", "vendor", "TPU v7 is made by Google."),
    ],
)
def test_facts_of_chips(name, field, sentence):
    assert named(chips(), name).says(field) == sentence


@pytest.mark.parametrize(
    ("name", "field", "sentence"),
    [
        ("Llama-3.1-8B", "parameters", "Llama-3.1-8B has 8.03 B parameters."),
        ("Llama-3.1-8B", "weights bf16", "Llama-3.1-8B takes 15 GiB in bf16."),  # 8.03e9 x 2 / 2^30 = 14.96, up
        ("Llama-3.1-70B", "weights mxfp4", "Llama-3.1-70B takes 35 GiB in mxfp4."),  # 70.55e9 x 0.53125 / 2^30 = 34.9
        ("gpt-4", "layers", "gpt-4 has about 120 layers."),
        ("gpt-oss-120b", "native format", "gpt-oss-120b stores its weights in mxfp4."),
    ],
)
def test_facts_of_models(name, field, sentence):
    assert named(models(), name).says(field) == sentence


def test_every_entry_of_the_catalogue_is_known_by_names_that_find_it():
    assert len(chips()) == len(chip_names())
    assert len(models()) == len(model_names())
    for e in (*chips(), *models()):
        assert e.name == e.names[0]
    assert len({e.name for e in (*chips(), *models(), *formats())}) == len(chips()) + len(models()) + len(formats())
    for c, name in zip(chips(), chip_names(), strict=True):
        assert chip(c.names[0] if c.sort == "chip" and name in c.names else name).id == name


def test_every_field_has_wordings_for_both_parts():
    for e in (*chips()[:1], *models()[:1], *formats()[:1]):
        for name in e.values:
            key, _ = data._noun(name)
            assert wordings.NOUNS[key]
            assert wordings.trained(wordings.OWN[key])
            assert wordings.held_out(wordings.OWN[key])
    assert set(FORMAT_SENTENCES) == {"bits", "bytes", "meaning"}


def test_glossary_is_read_from_the_design_page():
    assert dict(glossary())["goodput"] == "answered requests a second that keep the limits"
    assert len(glossary()) > 20


@pytest.mark.parametrize(
    ("high", "low", "said"),
    [(141, 80, "1.8"), (180, 32, "5.6"), (96, 48, "2.0"), (1024, 24, "43"), (80, 64, "1.3"), (715, 72, "9.9")],
)
def test_quotients_by_hand(high, low, said):
    """1.7625; 5.625; 2; 42.7; 1.25, halves up; 9.93."""
    assert data.divided(high, low) == said


def test_wordings_are_held_out_once():
    lists = {name: both for name, both in vars(wordings).items() if isinstance(both, tuple) and wordings.HELD in both}
    lists |= wordings.OWN
    assert {"FACT", "COMPARE", "HOLD", "OTHER_NOUNS", "OFF_TOPIC", "THINGS"} <= set(lists)
    assert {*lists.values()} - set(more_wordings.ADDED) == {wordings.LARGER}
    for both in lists.values():
        assert not set(more_wordings.ADDED.get(both, ())) & set(wordings.held_out(both))
        assert not set(wordings.trained(both)) & set(wordings.held_out(both))


def asked_about(example):
    """The combination of a question about two entities, in any order: its two sentences of facts, and the rest."""
    sentences = example.answer.split(". ")
    return example.kind, frozenset(sentences[:2])


def test_held_out_shares_no_question_and_no_pair_with_training():
    draw = data.Draw(1000)  # as the training begins
    trained = [draw.example() for _ in range(20_000)]
    test = data.held_out(800)
    assert len({e.question for e in test}) == 800
    assert not {e.question for e in trained} & {e.question for e in test}
    pairs = {asked_about(e) for e in trained if e.kind in PAIRS}
    held = [asked_about(e) for e in test if e.kind in PAIRS]
    assert len(pairs) > 2_000
    assert len(held) > 200
    assert not pairs & set(held)


def test_one_question_has_one_answer():
    draw, answers = data.Draw(3), {}
    for _ in range(15_000):
        e = draw.example()
        assert answers.setdefault(e.question.lower(), e.answer) == e.answer, e.question


def test_a_seed_draws_the_same_examples():
    first, second, other = data.Draw(7), data.Draw(7), data.Draw(8)
    ours = [first.example() for _ in range(200)]
    assert ours == [second.example() for _ in range(200)]
    assert ours != [other.example() for _ in range(200)]


@pytest.mark.parametrize("held", [False, True])
def test_made_up_names_are_not_in_the_catalogue(held):
    draw = data.Draw(5, held)
    for _ in range(300):
        name = data.made_up(draw)
        with pytest.raises(UnknownNameError):
            chip(name)
        with pytest.raises(UnknownNameError):
            model(name)


def test_chips_needed_by_hand():
    """Answers are checked by their own numbers: the count holds the weights, and half of it does not."""
    draw = data.Draw(9)
    for _ in range(300):
        e = draw.example("chips needed")
        need = int(e.answer.split(" takes ")[1].split()[0])
        memory = int(e.answer.split(" has ")[1].split()[0])
        last = e.answer.removesuffix(".").rpartition(" ")[2]
        if e.answer.endswith("More than 8 chips."):
            assert need > 8 * memory
        else:
            assert need <= int(last) * memory
            assert last == "1" or need > int(last) // 2 * memory
