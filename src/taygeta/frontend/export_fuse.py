"""Fewer operations that compute the same: views vanish into multiplies, and chains with one reader become one.

A view moves nothing on a chip, and a bias or a reshape runs in the kernel that needs it.
"""

from __future__ import annotations

from dataclasses import replace

from taygeta.graph.elementwise import flop_of
from taygeta.graph.meaning import Apply, Elementwise, Linear
from taygeta.graph.ops import Op, Slab


def fused(ops: list[Op], kept: tuple[str, ...]) -> list[Op]:
    """Return the operations after every rule has been applied as often as it can be; `kept` values stay."""
    found = True
    while found:
        found = False
        readers: dict[str, list[int]] = {name: [-1] for name in kept}
        for i, op in enumerate(ops):
            for name in op.inputs:
                readers.setdefault(name, []).append(i)
        makers = {name: i for i, op in enumerate(ops) for name in op.outputs}
        for i, op in enumerate(ops):
            merged = _view_after(ops, i, makers, readers) or _view_before(ops, i, readers) or _chain(ops, i, readers)
            if isinstance(op.meaning, Elementwise) and merged is not None:
                ops, found = merged, True
                break
    return ops


def _is_view(op: Op) -> bool:
    m = op.meaning
    return isinstance(m, Elementwise) and [s.function for s in m.steps] == ["reshape"] and len(op.outputs) == 1


def _view_after(ops: list[Op], i: int, makers: dict[str, int], readers: dict[str, list[int]]) -> list[Op] | None:
    """A view of a multiply's result, read by nothing else: the multiply writes it in that shape."""
    view = ops[i]
    at = makers.get(view.inputs[0]) if _is_view(view) else None
    if at is None or not isinstance(ops[at].meaning, Linear) or len(readers[view.inputs[0]]) != 1:
        return None
    op, place = ops[at], ops[at].outputs.index(view.inputs[0])
    sides = [size for _, size in view.writes[0].axes[1:]]
    inner = [axis for axis in op.weights[place].axes if axis[0] in op.contract]
    if len(op.contract) != len(op.reads[0].axes) - 1:
        return None  # rows have axes of their own beside the contracted one
    out = tuple((f"out_{len(sides) - k}", side) for k, side in enumerate(sides))
    changed = replace(
        op,
        weights=_put(op.weights, place, replace(op.weights[place], axes=(*inner, *out))),
        writes=_put(op.writes, place, Slab((op.reads[0].axes[0], *out), "bf16")),
        outputs=_put(op.outputs, place, view.outputs[0]),
    )
    return [changed if k == at else other for k, other in enumerate(ops) if k != i]


def _view_before(ops: list[Op], i: int, readers: dict[str, list[int]]) -> list[Op] | None:
    """A view that only multiplies read along all of its axes: they read what it views."""
    view = ops[i]
    users = readers.get(view.outputs[0], []) if _is_view(view) else []
    if not users or any(u < 0 or not isinstance(ops[u].meaning, Linear) for u in users):
        return None
    if any(len(ops[u].reads[0].axes) != 2 for u in users):
        return None
    read = view.reads[0]
    contract = read.axes[1:]
    out = list(ops)
    for u in set(users):
        op = ops[u]
        weights = tuple(
            replace(w, axes=(*contract, *(a for a in w.axes if a[0] not in op.contract))) for w in op.weights
        )
        names = tuple(name for name, _ in contract)
        out[u] = replace(op, reads=(read,), inputs=view.inputs, weights=weights, contract=names)
    return [op for k, op in enumerate(out) if k != i]


def _chain(ops: list[Op], i: int, readers: dict[str, list[int]]) -> list[Op] | None:
    """A chain whose one result is read by one other chain: the two are one."""
    first = ops[i]
    users = set(readers.get(first.outputs[0], [])) if len(first.outputs) == 1 else set()
    if not isinstance(first.meaning, Elementwise) or len(users) != 1 or -1 in users:
        return None
    (at,) = users
    second = ops[at]
    if not isinstance(second.meaning, Elementwise):
        return None
    a, b = first.meaning, second.meaning
    link = first.outputs[0]
    inputs = tuple(dict.fromkeys((*first.inputs, *(n for n in second.inputs if n != link))))
    names = tuple(dict.fromkeys((*a.parameters, *b.parameters)))
    base = len(inputs) + len(names)
    to_a = [*(inputs.index(n) for n in first.inputs), *(len(inputs) + names.index(n) for n in a.parameters)]
    to_a += [base + k for k in range(len(a.steps))]
    result = to_a[a.outputs[0]]
    to_b = [result if n == link else inputs.index(n) for n in second.inputs]
    to_b += [len(inputs) + names.index(n) for n in b.parameters]
    to_b += [base + len(a.steps) + k for k in range(len(b.steps))]
    meaning = Elementwise(
        (*(_renumbered(s, to_a) for s in a.steps), *(_renumbered(s, to_b) for s in b.steps)),
        tuple(to_b[o] for o in b.outputs),
        names,
    )
    slabs = {**dict(zip(second.inputs, second.reads, strict=True)), **dict(zip(first.inputs, first.reads, strict=True))}
    weights = tuple({w.name: w for w in (*first.weights, *second.weights)}.values())
    both = replace(
        second,
        name=" and ".join(dict.fromkeys(s.function for s in meaning.steps)),
        reads=tuple(slabs[n] for n in inputs),
        weights=weights,
        inputs=inputs,
        flop=flop_of(meaning) / max(len(inputs), 1),
        meaning=meaning,
    )
    return [both if k == at else op for k, op in enumerate(ops) if k != i]


def _renumbered(step: Apply, to: list[int]) -> Apply:
    pairs = zip(step.operands, step.constants, strict=True)
    return replace(step, operands=tuple(o if constant else to[int(o)] for o, constant in pairs))


def _put(values: tuple, place: int, value: object) -> tuple:
    return (*values[:place], value, *values[place + 1 :])
