"""Views on a terminal, or as plain text where the output is piped.

A table drops its least important columns until it fits, and a table that is still too wide is cut into
several, each with the first column; so nothing wraps in the middle of a number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from taygeta.report.view import Cell, Fact, Grid, View

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

GAP = 2  # blanks between columns: one of padding, one where a box would have its line
PROSE = 28  # a column of sentences may be folded, down to this width


def show(view: View, console: Console) -> None:
    """Print a view: its summary, tables and notes; boxes and colours only on a terminal."""
    if console.is_terminal:
        _draw(view, console)
        return
    with console.capture() as captured:
        _draw(view, console)
    for line in captured.get().splitlines():  # without the blanks that fill a line of a terminal
        console.file.write(line.rstrip() + "\n")


def _draw(view: View, console: Console) -> None:
    from rich.console import Group
    from rich.panel import Panel

    width = console.width
    head: list[RenderableType] = [_text(line) for line in view.lines if line]
    if view.warning:
        head.insert(0, _text(view.warning, "bold yellow"))
    if view.facts:
        head += ([_text("")] if head else []) + [_facts(view.facts)]
    if console.is_terminal and head:
        console.print(Panel(Group(*head), title=_text(view.title, "bold"), title_align="left", width=width))
    else:
        for item in (_text(view.title, "bold"), *head):
            console.print(item)
    for grid in view.grids:
        _draw_grid(grid, console)
    if view.notes:
        console.print()
    for note in view.notes:
        console.print(_bullet(note))


def _draw_grid(grid: Grid, console: Console) -> None:
    parts = _fitting(grid, console.width)
    for i, part in enumerate(parts):
        console.print()
        if grid.title and i == 0:
            console.print(_text(grid.title, "bold"))
        console.print(_table(part))
    if said := grid.said(tuple(c for part in parts for c in part.columns)):
        console.print(_text(said, "dim"))


def _facts(facts: tuple[Fact, ...]) -> RenderableType:
    """Names, values and remarks in three columns."""
    from rich.table import Table

    table = Table.grid(padding=(0, GAP, 0, 0))
    table.add_column(no_wrap=True)
    with_remarks = any(f.more for f in facts)
    table.add_column(justify="right" if with_remarks else "left", no_wrap=with_remarks, style="bold")
    table.add_column(ratio=1)
    for f in facts:
        table.add_row(_text(f.name), _text(f.value), _text(f.more, "dim"))
    return table


def _fitting(grid: Grid, width: int) -> list[Grid]:
    """Return the grid with the columns that fit, cut into several where the undroppable ones are too many."""
    keep = list(range(len(grid.columns)))
    while _width(grid, keep) > width:
        worst = max(keep, key=lambda i: (grid.columns[i].drop, i))
        if grid.columns[worst].drop == 0:
            break
        keep.remove(worst)
    parts: list[list[int]] = [[keep[0]]]
    for i in keep[1:]:
        if len(parts[-1]) > 1 and _width(grid, [*parts[-1], i]) > width:
            parts.append([keep[0]])
        parts[-1].append(i)
    return [_pick(grid, part) for part in parts]


def _pick(grid: Grid, keep: list[int]) -> Grid:
    columns = tuple(grid.columns[i] for i in keep)
    rows = tuple(tuple(row[i] for i in keep if i < len(row)) for row in grid.rows)
    return Grid(grid.title, columns, rows, grid.marked, grid.caption)


def _width(grid: Grid, keep: list[int]) -> int:
    return (
        sum(_column_width(grid, i) for i in keep)
        + GAP * (len(keep) - 1)
        + (1 + GAP if grid.marked is not None else 0)
    )


def _column_width(grid: Grid, i: int) -> int:
    """The width that a column needs: its longest cell, or less where it holds sentences, which fold."""
    cells = [row[i] for row in grid.rows if i < len(row)]
    longest = max((max(len(c.text), len(c.below)) for c in cells), default=0)
    if not grid.columns[i].numeric and longest > PROSE and i == len(grid.columns) - 1:
        longest = PROSE
    return max(longest, len(grid.columns[i].head))


def _table(grid: Grid) -> Table:
    """A grid as a table of the console; the marked row is bold and has a star."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), show_edge=False, pad_edge=False, header_style="bold"
    )
    if grid.marked is not None:
        table.add_column("", width=1, no_wrap=True)
    for i, c in enumerate(grid.columns):
        folds = not c.numeric and i == len(grid.columns) - 1
        justify = "right" if c.numeric else "left"
        table.add_column(
            _text(c.head), justify=justify, no_wrap=not folds, overflow="fold" if folds else "ellipsis"
        )
    for n, row in enumerate(grid.rows):
        style = "bold" if n == grid.marked else ""
        mark = [_text("*")] if grid.marked == n else [_text("")] if grid.marked is not None else []
        table.add_row(*mark, *(_cell(c, style) for c in row))
    return table


def _cell(c: Cell, style: str) -> Text:

    text = _text(c.text, style)
    return text.append("\n").append_text(_text(c.below, "dim")) if c.below else text


def _bullet(note: str) -> RenderableType:
    from rich.table import Table

    line = Table.grid(padding=(0, 1, 0, 0))
    line.add_row(_text("*"), _text(note))
    return line


def _text(text: str, style: str = "") -> Text:
    """Text as it is: no markup, and no control characters, which a file from outside may hold."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() else " " for c in text), style=style)
