"""Pages: well-formed, self-contained, escaped, the same every time, and written as a whole."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
import result_samples as samples

from taygeta.base import errors
from taygeta.report import pages
from taygeta.report.assumptions import assumptions
from taygeta.report.html import page
from taygeta.report.view import Column, Fact, Grid, View, cells

pytest.importorskip("matplotlib")

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOAD = (1024, 1024, 16)
VOID = {"meta", "br"}


class Outline(HTMLParser):
    """Checks that every element is closed, and notes ids, tags, references and texts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has a handler {name}"
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "xlink:href"):
                self.references.append(value or "")
            elif name == "aria-label" and tag == "svg":
                self.labels.append(value or "")


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return {name: draw() for name, draw in PAGES.items()}


PAGES = {
    "service": lambda: pages.service_page(samples.service(), assumptions(samples.sheet(), samples.SECRET)),
    "step": lambda: pages.step_page(samples.service().decode),
    "comparison": lambda: pages.comparison_page("acme/small", *LOAD, samples.comparisons()),
    "plan": lambda: pages.plan_page("acme/small", "toy:4", "TPOT at most 25ms", samples.planned()),
    "sweep": lambda: pages.sweep_page("acme/small", "toy:4", samples.swept(), *LOAD),
    "crossed": lambda: pages.sweep_page("acme/small", "toy:4", samples.crossed(), *LOAD),
    "sensitivities": lambda: pages.sensitivity_page(samples.deployed(), *LOAD, samples.sensitivities()),
}
FIGURES = {"service": 3, "step": 2, "comparison": 6, "plan": 1, "sweep": 2, "crossed": 2, "sensitivities": 1}


def outline(text: str) -> Outline:
    parser = Outline()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


@pytest.mark.parametrize("name", PAGES)
def test_well_formed_and_self_contained(name: str, drawn: dict[str, str]) -> None:
    found = outline(drawn[name])
    assert len(found.ids) == len(set(found.ids))
    assert found.tags.count("svg") == len(found.labels) == FIGURES[name]
    assert all(len(label) > 20 for label in found.labels)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(found.tags)
    assert all(reference.startswith("#") and reference[1:] in found.ids for reference in found.references)
    assert all(used in found.ids for used in re.findall(r"url\(#([^)]*)\)", drawn[name]))
    assert found.tags.count("h1") == 1
    assert "th" in found.tags


@pytest.mark.parametrize("name", PAGES)
def test_colours_follow_the_page(name: str, drawn: dict[str, str]) -> None:
    assert not re.search(r"#0[1-4]0[0-9a-f]{3}", drawn[name])  # no marker is left
    assert "prefers-color-scheme: dark" in drawn[name]
    assert "DejaVu Sans'" not in drawn[name]


@pytest.mark.parametrize("name", ["service", "plan", "crossed"])
def test_deterministic(name: str, drawn: dict[str, str]) -> None:
    assert PAGES[name]() == drawn[name]


def test_alternatives_say_the_numbers(drawn: dict[str, str]) -> None:
    labels = outline(drawn["comparison"]).labels
    assert labels[0].startswith(
        "TPOT in ms per output token, lower is better: quick:4 10.0 (8.00 to 12.5); toy:4 20.0"
    )
    assert labels[2] == (
        "Where the time per output token goes. quick:4: attention 2.50 ms, ffn 1.50 ms, collectives 1.00 ms, "
        "host and engine 2.00 ms, prompts of others 3.00 ms; toy:4: attention 5.00 ms, ffn 3.00 ms, "
        "collectives 2.00 ms, host and engine 4.00 ms, prompts of others 6.00 ms."
    )
    assert "host and engine 5.00 ms" in labels[3]
    bars = outline(drawn["sensitivities"]).labels[0]
    assert "hbm.bandwidth 6.2 % of TPOT, 0.0 % of prefill" in bars


def test_roofline_dots_are_counted_by_hand(drawn: dict[str, str]) -> None:
    """Attention: 3e9 FLOP, 3e8 bytes, half of 10 ms. Feed-forward: 4e9 FLOP, 1e8 bytes, 3 ms."""
    label = outline(drawn["step"]).labels[1]
    assert label == (
        "Roofline of The Toy Chip: step attention at 10.0 FLOP/byte and 0.600 TFLOP/s;"
        " step ffn at 40.0 FLOP/byte and 1.33 TFLOP/s."
    )


def test_no_point_of_a_front_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower chips come last and are the taller ones: the limits of the axes hold their ranges too."""
    from taygeta.report import plots

    limits: list[tuple[float, float]] = []
    finish = plots._speed_axes

    def noted(axes: Axes) -> None:
        finish(axes)
        limits.append((axes.get_xlim()[1], axes.get_ylim()[1]))

    monkeypatch.setattr(plots, "_speed_axes", noted)
    plots.front([("a", s) for s in samples.planned().front], None, "k")
    plots.speeds([(c.chip, c.best) for c in samples.comparisons() if c.best], "k")
    assert limits[0] >= (125, 250)  # 100 tokens/s of a user and 200 of a chip, ranges 1.25 times as far
    assert limits[0][1] >= 250
    assert limits[1][0] >= 125
    assert limits[1][1] >= 500


def test_everything_is_escaped() -> None:
    evil = '<script>alert("x")</script>&'
    view = View(
        evil,
        (evil,),
        evil,
        (Fact(evil, evil, evil),),
        (Grid(evil, (Column(evil),), (cells(evil),), caption=evil),),
        (evil,),
    )
    text = page(view)
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;") >= 10
    named = replace(samples.SMALL, name=evil, notes=(evil,))
    chips = tuple(replace(c, chip=evil) for c in samples.comparisons())
    for drawn in (
        pages.service_page(samples.service(samples.deployed(named))),
        pages.comparison_page(evil, *LOAD, chips),
    ):
        assert "<script" not in drawn
        outline(drawn)


def test_a_comparison_without_a_result_has_no_figures() -> None:
    text = pages.comparison_page("acme/small", *LOAD, samples.comparisons()[2:])
    assert "svg" not in outline(text).tags
    assert "It needs 141 GB; 1 x tiny has 8 GB." in text


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(errors.importlib, "import_module", missing)
    with pytest.raises(errors.MissingExtraError) as caught:
        pages.step_page(samples.service().decode)
    assert str(caught.value) == "A page with plots needs matplotlib: pip install 'taygeta[plots]'"
