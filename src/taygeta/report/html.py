"""A page: one file that needs nothing else, for any screen, light or dark, and screen readers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from taygeta import __version__
from taygeta.report.view import Cell, Fact, Grid, View

if TYPE_CHECKING:
    from taygeta.report.figure import Picture

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'"  # the page can load nothing, whatever a name in it says
)


def page(view: View, pictures: Sequence[Picture] = ()) -> str:
    """Return a view with its pictures as an HTML document. Every text is escaped."""
    style = (resources.files("taygeta.report") / "page.css").read_text(encoding="utf-8")
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(view.title)}</title>",
        f"<style>\n{style}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{escape(view.title)}</h1>",
        *(f'<p class="line">{escape(line)}</p>' for line in view.lines if line),
    ]
    if view.warning:
        parts.append(f'<p class="warning" role="note">{escape(view.warning)}</p>')
    if view.facts:
        parts.append(_facts(view.facts))
    first, *rest = [_grid(g) for g in view.grids] or [
        ""
    ]  # the main table, the plots, then what explains them
    parts += [first, *(_picture(p) for p in pictures), *rest]
    if view.notes:
        parts += [
            "<section>",
            "<h2>Notes</h2>",
            "<ul>",
            *(f"<li>{escape(n)}</li>" for n in view.notes),
            "</ul>",
            "</section>",
        ]
    parts += [
        f"<footer>Taygeta {escape(__version__)}: a prediction, not a measurement.</footer>",
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _facts(facts: tuple[Fact, ...]) -> str:
    rows = [
        f'<tr><th scope="row">{escape(f.name)}</th><td class="value">{escape(f.value)}</td>'
        f'<td class="more">{escape(f.more)}</td></tr>'
        for f in facts
    ]
    return "\n".join(
        ['<table class="facts">', '<caption class="hidden">Summary</caption>', *rows, "</table>"]
    )


def _picture(p: Picture) -> str:
    drawing = f'<div class="scroll" tabindex="0">{p.svg}</div>'
    return f"<figure>\n<figcaption>{escape(p.title)}</figcaption>\n{drawing}\n</figure>"


def _grid(g: Grid) -> str:
    title = g.title or "Table"
    heads = "".join(f'<th scope="col"{_align(c.numeric)}>{escape(c.head)}</th>' for c in g.columns)
    rows = []
    for n, row in enumerate(g.rows):
        marked = ' class="marked"' if n == g.marked else ""
        first, rest = row[0], list(zip(row, g.columns, strict=False))[1:]
        cells = "".join(f"<td{_align(c.numeric)}>{_cell(cell)}</td>" for cell, c in rest)
        rows.append(
            f'<tr{marked}><th scope="row"{_align(g.columns[0].numeric)}>{_cell(first)}</th>{cells}</tr>'
        )
    caption = f"<p>{escape(g.said())}</p>" if g.said() else ""
    return "\n".join(
        [
            "<section>",
            f"<h2>{escape(title)}</h2>",
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">',
            f"<table><thead><tr>{heads}</tr></thead>",
            "<tbody>",
            *rows,
            "</tbody></table>",
            f"</div>{caption}",
            "</section>",
        ]
    )


def _align(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _cell(c: Cell) -> str:
    below = f'<br><span class="below">{escape(c.below)}</span>' if c.below else ""
    return escape(c.text) + below
