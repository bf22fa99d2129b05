"""Each view at 80 columns, letter by letter: golden/NAME.txt is what is printed into a pipe."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import result_samples as samples
from rich.console import Console

from taygeta.report.assumptions import assumptions
from taygeta.report.catalogue import chips_view, fields_view, models_view
from taygeta.report.lists import comparison_view, plan_view, sensitivity_view, sweep_view
from taygeta.report.service import service_view, step_view
from taygeta.report.sheets import model_view, sheet_view
from taygeta.report.terminal import show
from taygeta.report.view import View
from taygeta.spec.deployment import Batch, Parallelism

GOLDEN = Path(__file__).parent / "golden"
LOAD = (1024, 1024, 16)


def views() -> dict[str, View]:
    d = samples.deployed()
    secret = samples.deployed(samples.SECRET)
    staged = samples.deployed(parallelism=Parallelism(tp=2, pp=2))
    return {
        "service": service_view(samples.service(), assumptions(samples.sheet(), samples.SMALL)),
        "unpublished": service_view(samples.service(secret), assumptions(samples.sheet(), samples.SECRET)),
        "step": step_view(samples.step(d, Batch.decode(16, 1536), 0.01)),
        "pipeline": step_view(samples.step(staged, Batch.prefill(1, 1024), 0.01)),
        "comparison": comparison_view("acme/small", *LOAD, samples.comparisons()),
        "refused": comparison_view("acme/small", *LOAD, samples.comparisons()[2:]),
        "plan": plan_view("acme/small", "toy:4", "TPOT at most 25ms", samples.planned()),
        "sweep": sweep_view("acme/small", "toy:4", samples.swept(), *LOAD),
        "crossed": sweep_view("acme/small", "toy:4", samples.crossed(), *LOAD),
        "sensitivities": sensitivity_view(d, *LOAD, samples.sensitivities()),
        "chips": chips_view([(samples.sheet(), samples.chip())]),
        "models": models_view([samples.SMALL, samples.EXPERTS, samples.SECRET]),
        "sheet": sheet_view(samples.sheet()),
        "model": model_view(samples.EXPERTS),
        "unpublished_model": model_view(samples.SECRET),
    }


def printed(view: View, width: int = 80, terminal: bool = False) -> str:
    out = io.StringIO()
    show(view, Console(file=out, width=width, force_terminal=terminal, color_system=None, highlight=False))
    return out.getvalue()


@pytest.mark.parametrize("name", sorted(views()))
def test_golden(name: str) -> None:
    assert printed(views()[name]) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_every_golden_file_has_a_view() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == sorted(views())


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", sorted(views()))
def test_no_line_is_wider_than_the_screen(name: str, width: int, terminal: bool) -> None:
    assert max(len(line) for line in printed(views()[name], width, terminal).splitlines()) <= width


def test_piped_text_has_no_colours_boxes_or_trailing_blanks() -> None:
    text = printed(views()["unpublished"])
    assert "\x1b" not in text
    assert not set(text) & set("╭╮╰╯│")
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_terminal_gets_a_box() -> None:
    assert printed(views()["service"], terminal=True).startswith("╭─ acme/small on toy:4 ─")


def test_numbers_survive_80_columns_uncut() -> None:
    """An ellipsis would hide digits: columns are dropped as a whole instead."""
    for name, view in views().items():
        assert "…" not in printed(view), name


def test_wide_screens_show_more_columns() -> None:
    view = views()["plan"]
    assert "bound by" not in printed(view, 72)
    assert "bound by" in printed(view, 120)
    assert "$/Mtok" in printed(view, 120)


def test_a_grid_that_is_too_wide_is_cut_into_tables_with_the_same_rows() -> None:
    text = printed(views()["crossed"], 40)
    assert text.count("hbm.bandwidth / clock") == 3
    for value in ("21.0", "20.5", "20.2", "11.0", "10.5"):
        assert text.count(value) == 1


def test_an_unpublished_model_is_named_in_every_view_of_its_results() -> None:
    s = samples.service(samples.deployed(samples.SECRET))
    from taygeta.explore.plan import Comparison, Plan
    from taygeta.explore.sweep import Sweep, SweepPoint

    sentence = "acme/secret is unpublished: its shapes are estimates, and every result is a range."
    for view in (
        service_view(s),
        step_view(s.decode),
        comparison_view("acme/secret", *LOAD, [Comparison("toy:4", s)]),
        plan_view("acme/secret", "toy:4", "", Plan(s, (s,), 1, ())),
        sweep_view("acme/secret", "toy:4", Sweep(("clock",), (SweepPoint((1e9,), s),)), *LOAD),
        sensitivity_view(s.deployment, *LOAD, samples.sensitivities()),
    ):
        assert view.warning == sentence


def test_constants_of_calibration_are_counted_not_listed() -> None:
    from dataclasses import replace

    found = assumptions(samples.sheet(), samples.SMALL)
    more = replace(found[0], field="calibration.core_port")
    grid = service_view(samples.service(), (*found, more, more)).grids[-1]
    assert [row[0].text for row in grid.rows] == ["clock"]
    assert grid.caption == "And 2 constants of calibration. Reasons: `taygeta show toy`."


def test_a_plan_without_a_deployment_says_so() -> None:
    from taygeta.explore.plan import Plan

    text = printed(
        plan_view("acme/small", "toy:4", "TPOT at most 1ms", Plan(None, (), 3, (("too slow", 3),)))
    )
    assert "best  none  nothing tried meets the goal" in text
    assert "* 3 combinations refused: too slow" in text


def test_sensitivities_are_sorted_by_what_they_buy() -> None:
    rows = sensitivity_view(samples.deployed(), *LOAD, samples.sensitivities()).grids[0].rows
    assert [row[0].text for row in rows] == ["hbm.bandwidth", "clock", "link.latency"]


def test_what_buys_nothing_is_only_named() -> None:
    view = sensitivity_view(samples.deployed(), *LOAD, samples.sensitivities())
    assert view.notes[-1] == "Of no use here: host.bandwidth."
    alone = sensitivity_view(samples.deployed(), *LOAD, samples.sensitivities()[2:3])
    assert alone.grids == ()


def test_chips_of_one_name_keep_what_was_typed() -> None:
    from dataclasses import replace

    from taygeta.report.lists import named

    quick, toy, tiny = samples.comparisons()
    assert [name for name, _ in named((quick, toy, tiny))] == ["quick:4", "toy:4"]
    mine = replace(toy, chip="./mine.toml:4")
    assert [name for name, _ in named((toy, mine))] == ["toy:4", "./mine.toml:4"]


def test_notes_of_a_comparison_name_their_chip_unless_all_share_them() -> None:
    from dataclasses import replace

    quick, toy, _ = samples.comparisons()
    assert toy.best is not None
    noted = replace(toy, best=replace(toy.best, notes=("A note.", "1 of 4 chips is idle")))
    notes = comparison_view("acme/small", *LOAD, (quick, noted)).notes
    assert notes == ("A note.", "toy:4: 1 of 4 chips is idle")


def test_fields_view_lists_every_field() -> None:
    from taygeta.spec.fields import FIELDS, TEXTS

    numbers, texts = fields_view().grids
    assert [row[0].text for row in numbers.rows] == list(FIELDS)
    assert [row[0].text for row in texts.rows] == list(TEXTS)
