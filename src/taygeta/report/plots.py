"""The plots of the pages: rooflines, times by part, fronts, ranges, sweeps. Needs the extra `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taygeta.base.interval import Interval
from taygeta.cost.result import Part, Prediction, Service
from taygeta.report.figure import GRID, INK, PAPER, Drawing, Picture, part_colour, part_order, series_colour
from taygeta.report.words import count, number, seconds
from taygeta.spec.deployment import Deployment
from taygeta.spec.model import MoeFfn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from taygeta.explore.sweep import Sensitivity

MS = 1e-3
_MARKERS = ("o", "^", "s", "D")


def roofline(d: Deployment, steps: Sequence[tuple[str, Prediction]], key: str) -> Picture:
    """Draw the roofs of a chip and the parts of some steps under them, over FLOP per byte of main memory."""
    chip = d.chip
    drawing = Drawing(4.4)
    dots = [(name, *dot) for name, p in steps for dot in _dots(p)]
    left = min([0.5, *(x for _, _, x, _ in dots)]) / 2
    knee = max(chip.peaks.values()) / chip.hbm.bandwidth
    right = max([knee, *(x for _, _, x, _ in dots)]) * 12  # room for the names of the roofs
    with drawing as (_, axes):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for peak, modes in _roofs(d):
            ridge = peak / chip.hbm.bandwidth
            axes.plot([left, ridge, right], [left * chip.hbm.bandwidth, peak, peak], color=INK, linewidth=1.4)
            axes.annotate(
                modes, (right, peak), xytext=(0, 4), textcoords="offset points", ha="right", color=INK
            )
        for n, (name, _) in enumerate(steps):
            mine = [dot for dot in dots if dot[0] == name]
            for _, part, x, y in mine:
                axes.plot(x, y, _MARKERS[n], color=part_colour(part), markersize=9, markeredgecolor=PAPER)
            axes.plot([], [], _MARKERS[n], color=INK, label=name, linestyle="")
        for part in sorted({part for _, part, _, _ in dots}, key=part_order):
            axes.plot([], [], "s", color=part_colour(part), label=part, linestyle="")
        axes.set_xlim(left, right)
        axes.set_xlabel("FLOP per byte of main memory")
        axes.set_ylabel("TFLOP/s of one chip")
        for axis, scale in ((axes.xaxis, 1.0), (axes.yaxis, 1e12)):
            axis.set_major_formatter(lambda value, _, scale=scale: f"{value / scale:g}")
        axes.minorticks_off()
        _legend(axes)
    said = "; ".join(
        f"{name} {part} at {number(x)} FLOP/byte and {number(y / 1e12)} TFLOP/s" for name, part, x, y in dots
    )
    return drawing.picture(f"Roofline of {chip.name}", f"Roofline of {chip.name}: {said}.", key)


def time_by_part(title: str, times: Sequence[tuple[str, Sequence[Part]]], of: str, key: str) -> Picture:
    """Draw times as bars of their parts. of: what each is the time of, such as "one step"."""
    drawing = Drawing(1.3 + 0.45 * len(times))
    found = [(name, {part: t for part, t, _ in parts}) for name, parts in times]
    parts = sorted({part for _, by_part in found for part in by_part}, key=part_order)
    scale, unit = _scale(max((sum(by_part.values()) for _, by_part in found), default=1.0))
    with drawing as (_, axes):
        starts = [0.0] * len(found)
        for part in parts:
            widths = [by_part.get(part, 0.0) / scale for _, by_part in found]
            axes.barh(
                range(len(found)),
                widths,
                0.62,
                left=starts,
                color=part_colour(part),
                edgecolor=PAPER,
                linewidth=0.8,
                label=part,
            )
            starts = [s + w for s, w in zip(starts, widths, strict=True)]
        _name_rows(axes, [name for name, _ in found])
        axes.set_xlabel(f"{unit} of {of}")
        _legend(axes)
    said = "; ".join(
        f"{name}: " + ", ".join(f"{p} {seconds(by_part[p])}" for p in parts if p in by_part)
        for name, by_part in found
    )
    return drawing.picture(title, f"{title}. {said}.", key)


def times_of(services: Sequence[tuple[str, Service]], keys: tuple[str, str]) -> list[Picture]:
    """Draw where the time of an output token goes, and that of a prefill: bars as long as the numbers above them."""
    tokens, prompts = [(n, s.tpot_parts()) for n, s in services], [(n, s.prefill_parts()) for n, s in services]
    return [
        time_by_part("Where the time per output token goes", tokens, "one output token", keys[0]),
        time_by_part("Where the prefill of a prompt goes", prompts, "one prompt", keys[1]),
    ]


def intervals(title: str, rows: Sequence[tuple[str, Interval]], unit: str, scale: float, key: str) -> Picture:
    """Draw nominal values with their ranges, one row each."""
    drawing = Drawing(1.0 + 0.42 * len(rows))
    with drawing as (_, axes):
        values = [i.nominal / scale for _, i in rows]
        low = [(i.nominal - i.low) / scale for _, i in rows]
        high = [(i.high - i.nominal) / scale for _, i in rows]
        axes.errorbar(
            values,
            range(len(rows)),
            xerr=(low, high),
            fmt="o",
            color=series_colour(0),
            capsize=4,
            markersize=7,
            linewidth=2,
        )
        _name_rows(axes, [name for name, _ in rows])
        axes.set_xlim(left=0)
        axes.set_xlabel(unit)
    said = "; ".join(
        f"{name} {number(i.nominal / scale)} ({number(i.low / scale)} to {number(i.high / scale)})"
        for name, i in rows
    )
    return drawing.picture(title, f"{title} in {unit}: {said}.", key)


def front(services: Sequence[tuple[str, Service]], best: Service | None, key: str) -> Picture:
    """Draw the front of a plan: tokens/s of a chip against those of a user; a star on the best."""
    drawing = Drawing(3.8)
    with drawing as (_, axes):
        line = sorted((s.per_user.nominal, s.per_chip.nominal) for _, s in services)
        axes.plot([x for x, _ in line], [y for _, y in line], color=series_colour(0), linewidth=1.2)
        for name, s in services:
            if s == best:
                _speeds(axes, s, "*", series_colour(1), f"best: {name}")
            else:
                _speeds(axes, s, "o", series_colour(0), "")
        _speed_axes(axes)
    return drawing.picture("Front of deployments", f"Front of deployments, tokens/s: {_said(services)}.", key)


def speeds(services: Sequence[tuple[str, Service]], key: str) -> Picture:
    """Draw chips by tokens/s of a chip against those of a user, with ranges."""
    drawing = Drawing(3.8)
    with drawing as (_, axes):
        for n, (name, s) in enumerate(services):
            _speeds(axes, s, _MARKERS[n // 8 % len(_MARKERS)], series_colour(n), name)
        _speed_axes(axes)
    title = "A user's speed against a chip's"
    return drawing.picture(title, f"{title}, tokens/s: {_said(services)}.", key)


def lines(
    title: str,
    label: str,
    points: Sequence[tuple[float, Interval]],
    unit: str,
    scale: float,
    key: str,
    axis_scale: float = 1.0,
) -> Picture:
    """Draw a result over one field, its range as a band. scale, axis_scale: a unit of either axis in SI."""
    drawing = Drawing(3.2)
    xs = [x / axis_scale for x, _ in points]
    with drawing as (_, axes):
        axes.fill_between(
            xs,
            [i.low / scale for _, i in points],
            [i.high / scale for _, i in points],
            color=series_colour(0),
            alpha=0.2,
            linewidth=0,
        )
        axes.plot(xs, [i.nominal / scale for _, i in points], "o-", color=series_colour(0), markersize=5)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel(unit)
    said = "; ".join(
        f"{number(x)}: {number(i.nominal / scale)}" for x, (_, i) in zip(xs, points, strict=True)
    )
    return drawing.picture(title, f"{title}, {unit} over {label}: {said}.", key)


def heat_map(
    title: str,
    down: tuple[str, Sequence[str]],
    across: tuple[str, Sequence[str]],
    values: Sequence[Sequence[float | None]],
    key: str,
) -> Picture:
    """Draw a number over two fields, each cell with its value; empty where there is none."""
    drawing = Drawing(1.4 + 0.42 * len(values))
    known = [v for row in values for v in row if v is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    with drawing as (_, axes):
        table = [[v if v is not None else float("nan") for v in row] for row in values]
        axes.pcolormesh(table, cmap="cividis", vmin=low, vmax=high, edgecolors="none")
        for i, row in enumerate(values):
            for j, v in enumerate(row):
                bright = v is not None and (v - low) > 0.55 * (high - low)
                axes.text(
                    j + 0.5,
                    i + 0.5,
                    "-" if v is None else number(v),
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=INK if v is None else "#1a1a1a" if bright else "#ffffff",
                )
        axes.set_xticks(
            [j + 0.5 for j in range(len(across[1]))], across[1], rotation=30 if len(across[1]) > 5 else 0
        )
        axes.set_yticks([i + 0.5 for i in range(len(down[1]))], down[1])
        axes.set_xlabel(across[0])
        axes.set_ylabel(down[0])
        axes.grid(visible=False)
        axes.invert_yaxis()  # the order of the table
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    said = f"from {number(low)} to {number(high)} over {count(len(known), 'point')}"
    return drawing.picture(title, f"{title} over {down[0]} and {across[0]}: {said}.", key)


def sensitivity_bars(found: Sequence[Sensitivity], key: str) -> Picture:
    """Draw how much less time a token and a prompt take with each number 10 % better."""
    drawing = Drawing(1.2 + 0.5 * len(found))
    with drawing as (_, axes):
        for n, (name, changes) in enumerate(
            (("TPOT", [s.tpot_change for s in found]), ("prefill", [s.prefill_change for s in found]))
        ):
            axes.barh(
                [i + (n - 0.5) * 0.36 for i in range(len(found))],
                [-100 * c for c in changes],
                0.34,
                color=series_colour(n),
                label=name,
            )
        axes.axvline(0, color=INK, linewidth=0.8)
        _name_rows(axes, [s.field for s in found])
        axes.set_xlabel("% less time for 10 % better")
        _legend(axes)
    said = "; ".join(
        f"{s.field} {-100 * s.tpot_change:.1f} % of TPOT, {-100 * s.prefill_change:.1f} % of prefill"
        for s in found
    )
    return drawing.picture("What 10 % better of each number buys", f"Less time for 10 % better: {said}.", key)


def _speeds(axes: Axes, s: Service, marker: str, colour: str, label: str) -> None:
    """One service as a point with its ranges."""
    x, y = s.per_user, s.per_chip
    axes.errorbar(
        x.nominal,
        y.nominal,
        xerr=([x.nominal - x.low], [x.high - x.nominal]),
        yerr=([y.nominal - y.low], [y.high - y.nominal]),
        fmt=marker,
        color=colour,
        markersize=14 if marker == "*" else 7,
        elinewidth=1,
        label=label or "_",
    )


def _speed_axes(axes: Axes) -> None:
    """Both axes from zero, once every point is drawn: limits set earlier would cut the later ones."""
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens/s of one user")
    axes.set_ylabel("tokens/s of one chip")
    _legend(axes)


def _said(services: Sequence[tuple[str, Service]]) -> str:
    return "; ".join(
        f"{name} {number(s.per_user.nominal)} a user, {number(s.per_chip.nominal)} a chip"
        for name, s in services
    )


def _dots(p: Prediction) -> list[tuple[str, float, float]]:
    """(part, FLOP per byte, FLOP/s) of the parts of a step that multiply and read main memory."""
    sums: dict[str, list[float]] = {}
    for op in p.ops:
        total = sums.setdefault(op.part, [0.0, 0.0, 0.0])
        for i, value in enumerate((op.flop, op.hbm_bytes, op.seconds)):
            total[i] += value
    return [
        (part, f / b, f / t)
        for part, (f, b, t) in sorted(sums.items(), key=lambda item: part_order(item[0]))
        if f and b and t
    ]


def _roofs(d: Deployment) -> list[tuple[float, str]]:
    """The fastest peak, that of bf16, and those the deployment computes in, with the modes that have them."""
    peaks, f = d.chip.peaks, d.formats
    used = {d.chip.mode(f.attention, f.activations)}
    if any(isinstance(layer.ffn, MoeFfn) for layer, _ in d.model.kinds()):
        used.add(d.chip.mode(f.experts, f.expert_activations))
    shown = {peaks[mode] for mode in (*used, "bf16") if mode in peaks} | {max(peaks.values())}
    return [(p, ", ".join(m for m, peak in peaks.items() if peak == p)) for p in sorted(shown)]


def _scale(longest: float) -> tuple[float, str]:
    return (1.0, "s") if longest >= 1.0 else (1e-3, "ms") if longest >= 1e-3 else (1e-6, "us")


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a chart of bars, the first on top, with lines for values only."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_color(GRID)


def _legend(axes: Axes) -> None:
    """Put the legend under the figure, in rows."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(4, max(1, len(labels))),
        handlelength=1.2,
        columnspacing=1.2,
    )
