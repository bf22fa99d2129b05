"""Tensors of a Hugging Face checkpoint as the parameters of our graph.

Every parameter has a recipe: the tensors it is made of, with the shapes they must have, and how. Names and shapes are
checked before anything is read; a parameter is read when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from taygeta.base.errors import InputError
from taygeta.frontend.arithmetic import executable
from taygeta.frontend.recipes import Recipe, outer_recipes, prefix_of
from taygeta.frontend.recipes_layers import layer_recipes
from taygeta.frontend.scales import with_scales
from taygeta.spec.model import Model

Key = tuple[int | None, str]

# Buffers and parts of checkpoints that the text model's next-token logits do not read.
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|attn\.(bias|masked_bias))$")
_OTHER_TOWERS = re.compile(r"(^|\.)(vision_tower|vision_model|multi_modal_projector|mm_projector|vision_embed)\w*\.")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")


class CheckpointWeights(Mapping[Key, np.ndarray]):
    """The parameters of a model in fp32, by layer (None: outside of layers) and name; read when asked for.

    Shapes are the axes of the graph's Weight of that name.
    """

    def __init__(self, tensors: Mapping[str, Any], recipes: Mapping[Key, Recipe]) -> None:
        self._tensors, self._recipes = tensors, recipes

    def __getitem__(self, key: Key) -> np.ndarray:
        recipe = self._recipes[key]
        return recipe.make(*(as_array(self._tensors[name]) for name in recipe.names))

    def __iter__(self) -> Iterator[Key]:
        return iter(self._recipes)

    def __len__(self) -> int:
        return len(self._recipes)

    def sources(self, key: Key) -> tuple[str, ...]:
        """Return the names of the tensors that a parameter is made of."""
        return self._recipes[key].names


def load_weights(model: Model, tensors: Mapping[str, Any], where: str = "the checkpoint") -> CheckpointWeights:
    """Return the parameters of a model from the tensors of a checkpoint, after checking every name and shape.

    tensors: names to arrays, or to views with `shape` and `dtype` that NumPy can read. Weights may be fp8 or int8 with
    scales beside them (taygeta.frontend.scales). where: how messages name the checkpoint. Raises UnsupportedError for a
    model that cannot be executed and for packed weights, InputError for a tensor that is missing, too many, or of a
    wrong shape.
    """
    executable(model)
    names = set(tensors)
    prefix = prefix_of(model, names, where)
    recipes: dict[Key, Recipe] = {(None, k): v for k, v in outer_recipes(model, prefix, names).items()}
    for index, layer in enumerate(model.layers):
        for name, recipe in layer_recipes(model, layer, f"{prefix}{_stem(model)}.{index}.", names).items():
            recipes[index, name] = recipe
    used = {name: shape for recipe in recipes.values() for name, shape in recipe.tensors}
    tensors = with_scales(tensors, used, where)
    _check(model, tensors, used, where)
    return CheckpointWeights(tensors, recipes)


def as_array(tensor: Any) -> np.ndarray:
    """Return a tensor as NumPy, floating-point ones in fp32; whole numbers (packed formats) as they are."""
    if hasattr(tensor, "float32") and not str(tensor.dtype).startswith(("U", "I")):
        return tensor.float32()
    found = np.asarray(tensor)
    return found if found.dtype.kind in "iu" else found.astype(np.float32, copy=False)


def _stem(model: Model) -> str:
    return "h" if executable(model).family == "gpt2" else "layers"


def _check(model: Model, tensors: Mapping[str, Any], used: Mapping[str, tuple[int, ...]], where: str) -> None:
    family = executable(model).family
    for name, shape in used.items():
        if name not in tensors:
            raise InputError(f"{where}: the tensor {name!r} is missing; this {family} model needs it as {_by(shape)}.")
        found = tuple(int(n) for n in tensors[name].shape)
        if found != shape:
            raise InputError(
                f"{where}: the tensor {name!r} is {_by(found)}; the configuration of this {family} model needs "
                f"{_by(shape)}."
            )
    for name in tensors:
        if name not in used and not _left_out(name, model):
            raise InputError(
                f"{where}: the tensor {name!r} is no part of this {family} model; is it another model's checkpoint, "
                "or quantised in a way that is not supported?"
            )


def _left_out(name: str, model: Model) -> bool:
    """Whether a tensor that is not used is known: buffers, a tied head, other towers, multi-token prediction."""
    if _BUFFERS.search(name) or _OTHER_TOWERS.search(name):
        return True
    if model.tied and name.endswith("lm_head.weight"):
        return True
    number = _LAYER.search(name)
    return bool(model.mtp) and number is not None and int(number.group(1)) >= len(model.layers)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
