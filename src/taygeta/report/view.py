"""What a result shows, before it is drawn on a terminal or a page: a title, facts, tables and notes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Column:
    """A column of a table. drop: 0 is always shown; on a narrow screen the highest goes first."""

    head: str
    numeric: bool = True
    drop: int = 0


@dataclass(frozen=True)
class Cell:
    """One cell: a text, and below it a smaller second line such as its range."""

    text: str
    below: str = ""


@dataclass(frozen=True)
class Grid:
    """A table. marked: the row to point out, such as the best one. about: the head of a column and a sentence about
    it, which stands below the table where that column is shown.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    marked: int | None = None
    caption: str = ""
    about: tuple[tuple[str, str], ...] = ()

    def said(self, columns: tuple[Column, ...] | None = None) -> str:
        """Return what stands below the table: about the columns that are shown (None: all), then its caption."""
        heads = {c.head for c in (self.columns if columns is None else columns)}
        return " ".join([*(text for head, text in self.about if head in heads), *filter(None, (self.caption,))])


@dataclass(frozen=True)
class Fact:
    """One line of a summary: its name, its value, and its range or a remark."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class View:
    """Everything that one result shows, in order. warning: what must not be overlooked."""

    title: str
    lines: tuple[str, ...] = ()
    warning: str = ""
    facts: tuple[Fact, ...] = ()
    grids: tuple[Grid, ...] = ()
    notes: tuple[str, ...] = field(default=())


def cells(*texts: str | Cell) -> tuple[Cell, ...]:
    """Return a row from plain texts and cells."""
    return tuple(t if isinstance(t, Cell) else Cell(t) for t in texts)
