"""How parameters are made of a checkpoint's tensors, and the recipes of those outside the layers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import prod

import numpy as np

from taygeta.base.errors import InputError
from taygeta.frontend.arithmetic import executable
from taygeta.spec.mixers import Weight
from taygeta.spec.model import Model


@dataclass(frozen=True)
class Recipe:
    """A parameter: the tensors it is made of as (name, shape), and the function that makes it of their arrays."""

    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    make: Callable[..., np.ndarray]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors."""
        return tuple(name for name, _ in self.tensors)


def plain(weight: Weight, name: str) -> Recipe:
    """A vector or table that is stored as it is: biases, norms, embeddings."""
    shape = tuple(size for _, size in weight.axes)
    stored = (prod(shape),) if weight.part == "norm" else shape
    return Recipe(((name, stored),), lambda a: a.reshape(shape))


def norm(weight: Weight, name: str) -> Recipe:
    """A norm's scale, and its shift where it has one: rows 0 and 1."""
    (_, rows), (_, width) = weight.axes
    ends = (".weight", ".bias")[:rows]
    return Recipe(tuple((name + end, (width,)) for end in ends), lambda *a: np.stack(a))


def linear(weight: Weight, name: str, inner: int = 1) -> Recipe:
    """A torch.nn.Linear, stored (outputs, inputs); the first `inner` axes of the weight are its inputs."""
    shape = tuple(size for _, size in weight.axes)
    stored = (prod(shape[inner:]), prod(shape[:inner]))
    return Recipe(((name, stored),), lambda a: np.ascontiguousarray(a.T).reshape(shape))


def conv1d(weight: Weight, name: str, inner: int = 1) -> Recipe:
    """GPT-2's Conv1D, stored (inputs, outputs)."""
    shape = tuple(size for _, size in weight.axes)
    return Recipe(((name, (prod(shape[:inner]), prod(shape[inner:]))),), lambda a: a.reshape(shape))


def rows_of(weight: Weight, name: str, start: int, total: int, transposed: bool = False) -> Recipe:
    """Some outputs, from `start` of `total`, of a fused Linear, of a Conv1D (`transposed`), or of a fused bias."""
    shape = tuple(size for _, size in weight.axes)
    if weight.part == "norm":
        width = prod(shape)
        return Recipe(((name, (total,)),), lambda a: a[start : start + width].reshape(shape))
    width = prod(shape[1:])
    if transposed:
        return Recipe(((name, (shape[0], total)),), lambda a: a[:, start : start + width].reshape(shape))
    return Recipe(
        ((name, (total, shape[0])),),
        lambda a: np.ascontiguousarray(a[start : start + width].T).reshape(shape),
    )


def ways(weight: Weight, *names: str) -> Recipe:
    """Gate and up, two Linears (d_ff, inputs), as (inputs, ways, d_ff)."""
    (_, inputs), (_, count), (_, width) = weight.axes
    return Recipe(tuple((name, (width, inputs)) for name in names[:count]), lambda *a: np.stack([x.T for x in a], 1))


def prefix_of(model: Model, names: Collection[str], where: str) -> str:
    """Return what stands before the names of the text model, such as "model.". Raises InputError."""
    table = "wte.weight" if executable(model).family == "gpt2" else "embed_tokens.weight"
    known = ("model.", "transformer.", "", "language_model.model.", "model.language_model.")
    for prefix in known:
        if prefix + table in names:
            return prefix
    raise InputError(f"{where}: the tensor 'model.{table}' is missing; every checkpoint of this family has it.")


def outer_recipes(model: Model, prefix: str, names: Collection[str]) -> dict[str, Recipe]:
    """Return the recipes of what is outside of the layers; a tied head is the embedding's table again."""
    gpt2 = executable(model).family == "gpt2"
    weights = {w.name: w for w in model.outer_weights()}
    table = prefix + ("wte.weight" if gpt2 else "embed_tokens.weight")
    out = {
        "embedding": plain(weights["embedding"], table),
        "final_norm": norm(weights["final_norm"], prefix + ("ln_f" if gpt2 else "norm")),
    }
    if model.positions:
        out["positions"] = plain(weights["positions"], f"{prefix}wpe.weight")
    if model.tied:
        stored = tuple(size for _, size in weights["embedding"].axes)
        out["tied head"] = Recipe(((table, stored),), lambda a: a.T)
    else:
        inside = "language_model.lm_head.weight"
        out["head"] = linear(weights["head"], inside if inside in names else "lm_head.weight")
    return out
