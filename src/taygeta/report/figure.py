"""Figures as SVG inside a page: drawn by matplotlib without global state, coloured by the page's style sheet.

Colours are drawn as markers that no figure uses by chance and are then replaced by names of the style sheet,
so that one drawing fits a light and a dark page. Text stays text. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from taygeta.base.errors import require
from taygeta.cost.result import HOST, OTHERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, PAPER = "#010101", "#020202", "#030303"
_SERIES = tuple(f"#0400{i:02x}" for i in range(11))
_NAMES = {INK: "currentColor", GRID: "var(--grid)", PAPER: "var(--paper)"} | {
    marker: f"var(--c{i})" for i, marker in enumerate(_SERIES)
}
OTHER = _SERIES[8]

# One colour for each part of a model, the same in every figure; and for what no model has.
_PARTS = ("attention", "ffn", "experts", "collectives", "norms", "head", "embedding", "shared")
_BEYOND = {HOST: _SERIES[9], OTHERS: _SERIES[10]}

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "taygeta",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Picture:
    """A figure of a page: its heading, the drawing, and what it shows in words."""

    title: str
    svg: str
    alt: str


def part_colour(part: str) -> str:
    """Return the colour of a part of a model, or of a time."""
    return _SERIES[_PARTS.index(part)] if part in _PARTS else _BEYOND.get(part, OTHER)


def series_colour(index: int) -> str:
    """Return the colour of the n-th series; they repeat after eight."""
    return _SERIES[index % 8]


def part_order(part: str) -> tuple[int, str]:
    """Return the place of a part in a legend."""
    return (_PARTS.index(part) if part in _PARTS else len(_PARTS), part)


class Drawing:
    """A figure under construction: `with Drawing(...) as (figure, axes)`, then `picture()`; sizes in inches.

    Raises MissingExtraError without matplotlib.
    """

    def __init__(self, height: float, width: float = 5.6) -> None:
        matplotlib = require("matplotlib", "plots", "A page with plots")
        figure = require("matplotlib.figure", "plots", "A page with plots")
        self._context = matplotlib.rc_context(_STYLE)
        self._figure_class = figure.Figure
        self._size = (width, height)

    def __enter__(self) -> tuple[Figure, Axes]:
        self._context.__enter__()
        self.figure: Figure = self._figure_class(figsize=self._size, layout="constrained")
        self.figure.patch.set_alpha(0.0)
        axes: Axes = self.figure.add_subplot()
        axes.patch.set_alpha(0.0)
        return self.figure, axes

    def __exit__(self, *problem: object) -> None:
        if problem[0] is None:
            buffer = io.StringIO()
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
            self._svg = buffer.getvalue()
        self._context.__exit__(None, None, None)

    def picture(self, title: str, alt: str, key: str) -> Picture:
        """Return the finished figure. key: letters that make its ids unique in the page."""
        return Picture(title, _inline(self._svg, alt, key), alt)


def _inline(svg: str, alt: str, key: str) -> str:
    """Make an SVG file part of a page: no prolog, ids of its own, the page's colours and font, a label."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = re.sub(r'(xlink:href|href)="#', rf'\1="#{key}-', body)
    body = body.replace("url(#", f"url(#{key}-")
    body = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", body)
    for marker, name in _NAMES.items():
        body = body.replace(marker, name)
    opening = body[: body.index(">") + 1]
    box = re.search(r'viewBox="[^"]*"', opening)
    label = f'role="img" aria-label="{escape(alt)}"'
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0] if box else ""} {label}>'
    return head + body[len(opening) :].rstrip()
