"""The weights of one rank: what tensor and expert parallelism cut of every parameter.

The cuts are those of the partition: an axis that is smaller on a rank than in the model is divided over it, the last
rank padded with zeros. A parameter that is added once to a sum over ranks is the first rank's, and zero elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.graph.build import build
from taygeta.graph.execute import Weights
from taygeta.graph.meaning import Embed, Experts, Linear
from taygeta.graph.ops import Block, ExpertShape, Graph
from taygeta.graph.partition import partition
from taygeta.spec.deployment import Formats, Parallelism
from taygeta.spec.mixers import Axes
from taygeta.spec.model import Model

_PLAIN = Formats(*["bf16"] * 8)
_HEADS = ("heads", "kv_heads")  # never padded: queries of a rank would lose their keys


@dataclass(frozen=True)
class Cut:
    """How one axis is divided: into `degree` shares of `size`.

    group: of the routed experts, "experts" for the axis that ep ranks divide and "inner" for one that the ranks of an
    expert divide; "tp" elsewhere, where neighbours have the same share if there are more ranks than shares.
    """

    axis: int
    degree: int
    size: int
    group: str


@dataclass(frozen=True)
class _Rule:
    """The cuts of one parameter, and over how many neighbouring ranks it is the first one's only (1: every rank's)."""

    cuts: tuple[Cut, ...]
    first_of: int = 1


def shards(model: Model, p: Parallelism, weights: Weights) -> tuple[Weights, ...]:
    """Return the parameters of every rank of a tensor-parallel group, cut as they are asked for.

    Pipeline stages have the same cuts; each reads its own layers. Raises UnsupportedError where data or context
    parallelism spreads the tokens, InputError for heads that do not divide.
    """
    if p.dp > 1 or p.cp > 1 or p.sequence:
        raise UnsupportedError(f"Execution under {p} is not supported; it can have tp, ep and pp.")
    whole = build(model, _PLAIN)
    mine = partition(whole, p, model)
    rules = _rules(whole, mine, p)
    return tuple(_Shard(weights, rules, p, rank) for rank in range(p.tp))


class _Shard(Mapping[tuple[int | None, str], np.ndarray]):
    """The parameters of one rank, cut out of the model's when they are read."""

    def __init__(
        self, weights: Weights, rules: Mapping[tuple[int | None, str], _Rule], p: Parallelism, rank: int
    ) -> None:
        self._weights, self._rules, self._p, self._rank = weights, rules, p, rank

    def __getitem__(self, key: tuple[int | None, str]) -> np.ndarray:
        rule = self._rules[key]
        found = np.asarray(self._weights[key])
        for cut in rule.cuts:
            found = _cut(found, cut, self._share(cut))
        return np.zeros_like(found) if self._rank % rule.first_of else found

    def __iter__(self) -> Iterator[tuple[int | None, str]]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def _share(self, cut: Cut) -> int:
        """Which share of an axis this rank has: experts go to groups of neighbours, which share each expert."""
        if cut.group == "tp":
            return self._rank * cut.degree // self._p.tp
        outer, inner = divmod(self._rank, self._p.moe_tp)
        return outer if cut.group == "experts" else inner


def _cut(array: np.ndarray, cut: Cut, share: int) -> np.ndarray:
    here = [slice(None)] * array.ndim
    here[cut.axis] = slice(share * cut.size, (share + 1) * cut.size)
    found = array[tuple(here)]
    missing = cut.size - found.shape[cut.axis]
    if not missing:
        return found
    return np.pad(found, [(0, missing if axis == cut.axis else 0) for axis in range(array.ndim)])


def _rules(whole: Graph, mine: Graph, p: Parallelism) -> dict[tuple[int | None, str], _Rule]:
    """Return the rule of every parameter of the model."""
    kinds = [_block_rules(a, b, p) for a, b in zip(whole.blocks, mine.blocks, strict=True)]
    return {(visit.layer, name): rule for visit in whole.order for name, rule in kinds[visit.block].items()}


def _block_rules(whole: Block, mine: Block, p: Parallelism) -> dict[str, _Rule]:
    once = _once(mine, p)
    shares = {w.name: w.axes for op in mine.ops for w in (*op.weights, *op.extras)}
    out: dict[str, _Rule] = {}
    for op in whole.ops:
        for w in (*op.weights, *op.extras):
            cuts = _cuts(w.axes, shares[w.name], p, isinstance(op.detail, ExpertShape))
            out[w.name] = _Rule(cuts, once.get(w.name, 1))
    return out


def _cuts(whole: Axes, share: Axes, p: Parallelism, experts: bool) -> tuple[Cut, ...]:
    out: list[Cut] = []
    for axis, ((name, size), (_, small)) in enumerate(zip(whole, share, strict=True)):
        if small == size:
            continue
        group = "tp" if not experts else "experts" if name == "experts" else "inner"
        degree = {"tp": p.tp, "experts": p.ep, "inner": p.moe_tp}[group]
        if name == "kv_heads":
            degree = min(degree, size)
        if name in _HEADS and (size % degree or p.tp % degree):
            raise InputError(f"{size} {name.replace('_', ' ')} do not divide over tp={p.tp}; take a divisor.")
        out.append(Cut(axis, degree, small, group))
    return tuple(out)


def _once(block: Block, p: Parallelism) -> dict[str, int]:
    """Return the parameters that are added once to a sum over ranks, with the number of ranks that share them."""
    out: dict[str, int] = {}
    for op in block.ops:
        a = op.meaning
        if isinstance(a, Embed) and a.positions:
            out[a.positions] = p.tp
        elif isinstance(a, Linear) and a.bias:
            out[a.bias] = p.tp
        elif isinstance(a, Experts) and a.down_bias:
            out[a.down_bias] = p.moe_tp
    return out
