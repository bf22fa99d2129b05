"""Texts of the command line to values, and every message word for word."""

from __future__ import annotations

import inspect

import pytest
import typer

from taygeta.app.options import (
    ModelName,
    Options,
    deployment_options,
    match_prices,
    parse_settings,
    split_chips,
    split_ranges,
)
from taygeta.base.errors import InputError
from taygeta.spec.deployment import ROUTING_SKEW


def test_settings() -> None:
    assert parse_settings(["clock=1GHz", " hbm.bandwidth = 3 TB/s "]) == {
        "clock": "1GHz",
        "hbm.bandwidth": "3 TB/s",
    }


@pytest.mark.parametrize("text", ["clock", "=1GHz", "clock=", "", "="])
def test_a_setting_without_a_value(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_settings([text])
    assert str(caught.value) == f"--set takes FIELD=VALUE such as hbm.bandwidth=3TB/s, not {text!r}."


def test_a_setting_given_twice() -> None:
    with pytest.raises(InputError) as caught:
        parse_settings(["clock=1GHz", "clock=2GHz"])
    assert str(caught.value) == "--set clock is given twice: '1GHz' and '2GHz'."


def test_ranges_are_settings_with_dots() -> None:
    how: Options = {"tp": 4, "settings": {"clock": "1GHz..2GHz", "hbm.bandwidth": "3TB/s"}}
    assert split_ranges(how) == ({"clock": "1GHz..2GHz"}, {"tp": 4, "settings": {"hbm.bandwidth": "3TB/s"}})


def test_chips() -> None:
    assert split_chips("h100:8, b200:4") == ["h100:8", "b200:4"]
    with pytest.raises(InputError) as caught:
        split_chips("h100:8,,b200")
    assert (
        str(caught.value)
        == "--chips takes chips with commas between them such as h100:8,b200:4, not 'h100:8,,b200'."
    )


def test_prices_find_their_chip() -> None:
    assert match_prices(["b200:4=3 $/h"], ["h100:8", "b200:4"]) == [None, "3 $/h"]
    for text in ("3 $/h", "a100=3 $/h", "h100:8="):
        with pytest.raises(InputError) as caught:
            match_prices([text], ["h100:8", "b200:4"])
        expected = f"--price takes CHIP=PRICE with a chip of --chips such as 'h100:8=2.50 $/h', not {text!r}."
        assert str(caught.value) == expected


def test_shared_options_reach_the_command_as_one() -> None:
    seen: dict[str, object] = {}

    @deployment_options
    def command(model: ModelName, how: Options, isl: int = 1) -> None:
        seen.update(how, model=model, isl=isl)

    names = list(inspect.signature(command).parameters)
    assert names[:2] == ["model", "isl"]
    assert "how" not in names
    app = typer.Typer()
    app.command()(command)
    app(["m", "--isl", "7", "--tp", "4", "--set", "clock=1GHz", "--sequence"], standalone_mode=False)
    assert seen == {
        "model": "m",
        "isl": 7,
        "tp": 4,
        "pp": 1,
        "ep": None,
        "dp": 1,
        "cp": 1,
        "sequence": True,
        "weights": None,
        "activations": None,
        "kv": None,
        "engine": "vllm",
        "skew": ROUTING_SKEW,
        "settings": {"clock": "1GHz"},
    }


def test_the_words_are_those_of_the_library() -> None:
    from taygeta.api import Options as Library
    from taygeta.app.options import _SPREAD

    assert {name for name, _, _ in _SPREAD} == set(Library.__annotations__)
