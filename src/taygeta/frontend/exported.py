"""torch.export as a front end: causal language models of transformers, from their code instead of their config.json.

One layer of each kind is exported on the meta device and lifted to a Model, which the built-in builder turns into a
graph: it predicts, shards and executes as a model of the catalogue does. taygeta.frontend.export_module takes any
other module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from taygeta.base.errors import InputError, require
from taygeta.frontend.config import read_json, shown
from taygeta.frontend.export_lift import lift, of_layer
from taygeta.frontend.export_region import Program
from taygeta.frontend.export_trace import PURPOSE, construct, trace
from taygeta.frontend.recipes import Recipe
from taygeta.frontend.scales import with_scales
from taygeta.frontend.weights import CheckpointWeights, Key
from taygeta.graph.build import build
from taygeta.graph.ops import Graph
from taygeta.spec.deployment import Formats
from taygeta.spec.model import Model

PLAIN = Formats("bf16", "bf16", "bf16", "bf16", "bf16", "bf16", "bf16", "bf16")


@dataclass(frozen=True)
class Exported:
    """A model that was read from its code, its graph, and what its parameters are made of."""

    model: Model
    formats: Formats
    recipes: Mapping[Key, Recipe]

    @cached_property
    def graph(self) -> Graph:
        """The operations of one step on a single chip."""
        return build(self.model, self.formats)

    def weights(self, tensors: Mapping[str, Any]) -> CheckpointWeights:
        """Return the parameters for execution from the tensors of a state_dict or a checkpoint, read when asked for.

        Names are those of the class in transformers; weights may be fp8 or int8 with scales beside them. Raises
        InputError for a tensor that is missing or misshapen, UnsupportedError for packed weights.
        """
        used = {name for recipe in self.recipes.values() for name in recipe.names}
        tensors = with_scales(tensors, used, self.model.name)
        for recipe in self.recipes.values():
            for name, shape in recipe.tensors:
                found = tuple(tensors[name].shape) if name in tensors else None
                if found != tuple(shape):
                    state = "is missing" if found is None else f"has the shape {_sides(found)}"
                    raise InputError(
                        f"{self.model.name}: tensor {shown(name)} {state}; "
                        f"the exported class has it as {_sides(shape)}."
                    )
        return CheckpointWeights(tensors, self.recipes)


def export_model(source: str | Path | Any, architecture: Any = None, formats: Formats = PLAIN) -> Exported:
    """Return what a causal language model of transformers computes, exported without its weights.

    source: a config.json, a directory that holds one, or a configuration object of transformers. architecture: the
    class to export, the one that AutoModelForCausalLM picks when None. Code that a checkpoint brings along is never
    run. Raises InputError, UnsupportedError, MissingExtraError.
    """
    require("torch", "torch", PURPOSE)
    config = _config(source)
    model, constants = construct(config, architecture)
    found = trace(model, constants)
    lifted = lift(Program(found))
    recipes: dict[Key, Recipe] = {key: recipe for key, recipe in lifted.recipes.items() if key[0] is None}
    for index, place in enumerate(found.layers):
        for (kind, name), recipe in lifted.recipes.items():
            if kind == place:
                recipes[index, name] = of_layer(recipe, f"{found.prefix}.{kind}.", f"{found.prefix}.{index}.")
    return Exported(lifted.model, formats, recipes)


def _config(source: str | Path | Any) -> Any:
    """Return a configuration object of its own, which an export may change."""
    transformers = require("transformers", "torch", PURPOSE)
    if not isinstance(source, str | Path):
        if not isinstance(source, transformers.PretrainedConfig):
            raise InputError(
                f"A model is exported from a config.json, its directory or a configuration object of transformers, "
                f"not from a {type(source).__name__}."
            )
        return type(source).from_dict(source.to_dict())
    path = Path(source)
    file = path / "config.json" if path.is_dir() else path
    table = dict(read_json(file))
    kind = table.pop("model_type", None)
    if not isinstance(kind, str):
        raise InputError(f"{file}: model_type must be a text, not {shown(kind)}.")
    table.pop("quantization_config", None)  # how weights are stored is no part of what is computed
    try:
        return transformers.AutoConfig.for_model(kind, **table).get_text_config()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: transformers cannot read this configuration: {reason!r}.") from None


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "()"
