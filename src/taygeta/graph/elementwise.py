"""What Elementwise meanings compute and cost: a table of plain functions on NumPy arrays in fp32, and a loop over it.

What a step computes is the function of its name and no more, so nothing can hide in a chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from taygeta.graph.functions import activation, sigmoid
from taygeta.graph.meaning import Elementwise
from taygeta.spec.arithmetic import GateRule


def evaluate(
    meaning: Elementwise, inputs: tuple[np.ndarray, ...], parameters: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, ...]:
    """Return what the steps compute."""
    values = [*inputs, *(np.asarray(parameters[name], np.float32) for name in meaning.parameters)]
    for step in meaning.steps:
        operands = [
            np.float32(o) if constant else values[int(o)]
            for o, constant in zip(step.operands, step.constants, strict=True)
        ]
        values.append(STEPS[step.function](*operands, **dict(step.attributes)))
    return tuple(values[i] for i in meaning.outputs)


def flop_of(meaning: Elementwise) -> float:
    """Return the arithmetic operations for each element of the widest value: one a step that computes."""
    return float(sum(_COST.get(step.function, 1) for step in meaning.steps))


def _mean(x: np.ndarray, axis: int) -> np.ndarray:
    return x.mean(axis=axis, keepdims=True)


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    raised = np.exp(x - x.max(axis=axis, keepdims=True))
    return raised / raised.sum(axis=axis, keepdims=True)


def _normalise(x: np.ndarray, eps: float, centred: int) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True) if centred else x
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps))


def _reshape(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x.reshape(len(x), *shape)


def _part(x: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    return np.take(x, np.arange(start, stop), axis=axis)


def _activation(name: str) -> Callable[[np.ndarray], np.ndarray]:
    rule = GateRule(name)
    return lambda x: activation(x, rule)


STEPS: dict[str, Callable[..., np.ndarray]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "power": lambda a, b: a**b,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "negate": lambda x: -x,
    "absolute": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "sin": np.sin,
    "cos": np.cos,
    "mean": _mean,
    "softmax": _softmax,
    "normalise": _normalise,
    "take": lambda table, ids: table[ids.astype(np.int64)],
    "reshape": _reshape,
    "part": _part,
    "join": lambda *xs, axis: np.concatenate(xs, axis=axis),
    **{name: _activation(name) for name in ("silu", "gelu", "gelu_tanh", "relu", "relu2")},
}
"""What the functions of steps compute."""

# Arithmetic operations for each element, as the built-in builder counts them; moving elements costs none.
_COST = {"silu": 4, "gelu": 8, "gelu_tanh": 8, "sigmoid": 3, "tanh": 4, "softmax": 4, "normalise": 4,
         "take": 0, "reshape": 0, "part": 0, "join": 0}  # fmt: skip
