"""Fields of a model's configuration set by the user: `--set num_hidden_layers=40`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any

from taygeta.base.errors import InputError


def overridden(config: Mapping[str, Any], settings: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return a configuration with fields set, in its text model where that is where they live.

    A text is read as JSON where it is JSON (numbers, true, null), else as text. A list with one entry per layer
    follows a new number of layers by repeating its pattern. Raises InputError for a path through something that is no
    table.
    """
    out = {name: dict(value) if isinstance(value, Mapping) else value for name, value in config.items()}
    for path, text in settings.items():
        keys = path.split(".")
        inner = out.get("text_config")
        table: Any = inner if isinstance(inner, dict) and keys[0] not in out else out
        for key in keys[:-1]:
            table = table.get(key) if isinstance(table, dict) else None
        if not isinstance(table, dict) or not keys[-1]:
            raise InputError(f"{where}: --set {path}: there is no such table in the model's configuration.")
        close = difflib.get_close_matches(keys[-1], [str(k) for k in table], n=1, cutoff=0.8)
        if keys[-1] not in table and close:
            raise InputError(f"{where}: --set {path}: the model has no such field. Did you mean {close[0]}?")
        table[keys[-1]] = _value(text)
        if (
            keys[-1] == "num_hidden_layers"
            and isinstance(table.get("layer_types"), list)
            and "layer_types" not in settings
        ):
            layers = table[keys[-1]]
            if isinstance(layers, int) and table["layer_types"] and 0 < layers < 100_000:
                table["layer_types"] = list(islice(cycle(table["layer_types"]), layers))
    return out


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return int(value) if isinstance(value, float) and value.is_integer() else value
