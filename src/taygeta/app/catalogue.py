"""taygeta chips, taygeta models and taygeta show: what is known, and from where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taygeta.app.options import Json, Settings, parse_settings
from taygeta.app.output import emit
from taygeta.base.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from taygeta.spec.model import Model
    from taygeta.spec.sheet import Sheet

Name = Annotated[
    str | None, typer.Argument(metavar="NAME", help="A chip or a model, by name or file.", show_default=False)
]
AllFields = Annotated[
    bool, typer.Option("--fields", help="List every field that a chip file or --set may have.")
]


def chips(as_json: Json = False) -> None:
    """List the chips of the catalogue.

    Example: taygeta chips
    """
    from taygeta.report.catalogue import chip_json, chips_view
    from taygeta.spec.catalog import chip_names, sheet
    from taygeta.spec.chip import build_chip

    sheets = [sheet(name) for name in chip_names()]
    emit(
        lambda: chips_view([(s, build_chip(s)) for s in sheets]),
        lambda: {"chips": [chip_json(s) for s in sheets]},
        as_json,
    )


def models(as_json: Json = False) -> None:
    """List the models of the catalogue.

    Example: taygeta models
    """
    from taygeta.frontend.catalog import model, model_names
    from taygeta.report.catalogue import model_json, models_view

    found = [model(name) for name in model_names()]
    emit(lambda: models_view(found), lambda: {"models": [model_json(m) for m in found]}, as_json)


def show(
    name: Name = None, fields: AllFields = False, settings: Settings = None, as_json: Json = False
) -> None:
    """Show a chip with its sources, or a model with its layers.

    Example: taygeta show maia-100
    """
    from taygeta.report.catalogue import chip_json, fields_json, fields_view, model_json
    from taygeta.report.sheets import model_view, sheet_view

    if fields:
        emit(fields_view, fields_json, as_json)
        return
    if name is None:
        raise InputError(
            "Show what? Give a chip or a model such as maia-100 or openai/gpt-oss-120b, or --fields."
        )
    chip, found = _find(name, parse_settings(settings or ()))
    if chip is not None:
        emit(lambda: sheet_view(chip), lambda: chip_json(chip), as_json)
    elif found is not None:
        emit(lambda: model_view(found), lambda: model_json(found), as_json)


def _find(name: str, settings: dict[str, str]) -> tuple[Sheet | None, Model | None]:
    """Return the chip or the model of a name: a chip where both exist. Raises UnknownNameError."""
    from taygeta.frontend.catalog import model, model_names
    from taygeta.spec.catalog import chip_names, sheet

    path = Path(name)
    if not (path.suffix == ".json" or path.is_dir() or (path.suffix == ".toml" and _describes_model(path))):
        try:
            return sheet(name, settings), None
        except UnknownNameError:
            pass
    try:
        return None, model(name, settings=settings)
    except UnknownNameError:
        known = (*chip_names(), *model_names(), *(m.rpartition("/")[2].lower() for m in model_names()))
        raise UnknownNameError(
            "Name", name[:200], known, "`taygeta chips` and `taygeta models` list what there is."
        ) from None


def _describes_model(path: Path) -> bool:
    """Whether a TOML file describes a model; the reader of chips says what is wrong with a bad file."""
    import tomllib

    try:
        with path.open("rb") as file:
            return "config" in tomllib.load(file)
    except (OSError, ValueError, RecursionError):
        return False
