"""Fills the tables of `lookup` from a deployment's step model: once for each deployment, in compiled loops."""

from __future__ import annotations

import numpy as np

from taygeta.cost.steps import StepModel
from taygeta.cost.surface import axis_seconds, group_seconds
from taygeta.graph.ops import BATCH_AXES, AttentionShape
from taygeta.serving.lookup import (
    AXIS_OCTAVE,
    CONTEXT_OCTAVE,
    COUNT_OCTAVE,
    PIECE_OCTAVE,
    TOGETHER,
    Tables,
    grid_value,
)


def grid(largest: float, octave: int) -> np.ndarray:
    """Return the whole numbers of a grid up to the first that reaches `largest`, two at least."""
    values = [0, 1]
    while values[-1] < largest:
        values.append(grid_value(len(values), octave))
    return np.array(values, dtype=float)


def tables(
    model: StepModel, sequences: int, tokens: int, context: int, verified: int = 1, together: bool = True
) -> Tables:
    """Return the tables of a deployment's steps.

    sequences: most that decode at once on a rank. tokens: most new tokens of a step of a rank. context: longest
    sequence. verified: tokens that a decoding sequence adds. together: price many pieces of a step as many.
    """
    d = model.deployment
    most = max(tokens, sequences * verified) * d.parallelism.dp
    sizes = grid(max(most, context), AXIS_OCTAVE)
    counts, contexts = grid(sequences, COUNT_OCTAVE), grid(context, CONTEXT_OCTAVE)
    news = grid(tokens, PIECE_OCTAVE)
    stages = range(len(model.tables))
    axes = np.zeros((len(stages), len(BATCH_AXES), len(sizes)))
    decode = np.zeros((len(stages), 2, len(counts), len(contexts)))
    prompt = np.zeros((len(stages), 3, len(news), len(contexts)))
    for stage in stages:
        for axis, name in enumerate(BATCH_AXES):
            axes[stage, axis] = axis_seconds(model, stage, axis, sizes)
            if name == "requests":  # a step without sequences is no step
                axes[stage, axis, 0] = 0.0
        decode[stage] = _decode(model, stage, counts, contexts, verified)
        prompt[stage] = _prompt(model, stage, news, contexts, TOGETHER if together else 1.0)
    details = [op.detail for graph in model.graphs for op, _ in graph.ops()]
    expand_from = max((x.expand_from for x in details if isinstance(x, AttentionShape)), default=0)
    return Tables(axes, decode, prompt, float(expand_from), float(d.parallelism.cp), float(verified))


def _decode(model: StepModel, stage: int, counts: np.ndarray, contexts: np.ndarray, verified: int) -> np.ndarray:
    many, behind = np.meshgrid(counts, contexts, indexing="ij")
    groups = np.stack([many, np.full_like(many, verified), behind], axis=-1).reshape(-1, 3)
    seconds, fixed = group_seconds(model, stage, groups).reshape(*many.shape, 2).transpose(2, 0, 1)
    fixed = np.where(many > 0, fixed, 0.0)
    return np.stack([np.where(many > 0, seconds - fixed, 0.0), fixed])


def _prompt(model: StepModel, stage: int, news: np.ndarray, contexts: np.ndarray, together: float) -> np.ndarray:
    new, behind = np.meshgrid(news, contexts, indexing="ij")
    out = []
    for count in (1.0, together):
        groups = np.stack([np.full_like(new, count), new, behind], axis=-1).reshape(-1, 3)
        seconds, fixed = group_seconds(model, stage, groups).reshape(*new.shape, 2).transpose(2, 0, 1)
        out.append((np.where(new > 0, (seconds - fixed) / count, 0.0), np.where(new > 0, fixed, 0.0)))
    (alone, fixed), (each, _) = out
    each = np.minimum(alone, each)
    return np.stack([each, alone - each, fixed])
