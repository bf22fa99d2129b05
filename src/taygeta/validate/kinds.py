"""Kinds of rows whose errors differ by what is known before a row is measured; each has an error constant of its own.

- Whose code runs. Constants of multiplies and expert layers were fitted on the kernels of TensorRT-LLM; those of vLLM
  and SGLang share corrections over all chips, with tiles that are tuned for some shapes and chips and not for others.
  Of collectives: sums and gathers of a library; the same called one by one through PyTorch, where its host shows;
  one-shot and two-shot kernels of engines; transfers between two chips, alone or as an all-to-all; and over a bridge.
- How far a prediction is from its roofline. Where that is at least half of it, arithmetic or streams that no kernel
  avoids leave little to be wrong about; far from it, launches, waits and part-filled tiles are most of the time.
- Of attention: prefill, whose tiles multiply, and decode, which streams a cache.
- Of whole steps and of first tokens: whose engine plans and launches them.

A library that is not named has the constant of all rows of its kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from taygeta.spec.fields import FAR, MEASURED_LIBRARIES, NEAR
from taygeta.validate.answers import groups

if TYPE_CHECKING:
    import polars

NEAR_SHARE = 0.5  # of a prediction that the roofline is, from which on the prediction is near it
SENDS = ("alltoall", "all_to_all", "p2p", "send")  # operations made of transfers between two chips
FUSED, TORCH = "custom", "torch"  # in names of libraries: kernels of engines; NCCL called through PyTorch
PAIRS = "_pairwise_nvlink"  # systems of PCIe cards, joined two by two by a bridge


def library_kinds(framework: str, predicted: np.ndarray, roofline: np.ndarray) -> np.ndarray:
    """Return the kind of each row of a framework's multiplies or expert layers; "" for a framework that is not named.

    predicted, roofline: seconds of each row.
    """
    if framework not in MEASURED_LIBRARIES:
        return np.full(len(predicted), "", dtype=object)
    return _apart(framework, predicted, roofline)


def collective_kinds(op: str, library: str, pairs: bool, predicted: np.ndarray, roofline: np.ndarray) -> np.ndarray:
    """Return the kind of each row of a collective: who sends to whom, whose code does it, how far from the roofline.

    pairs: cards joined two by two; predicted, roofline: seconds of each row.
    """
    if op in SENDS:
        if pairs:
            return np.full(len(predicted), "bridge", dtype=object)
        return _apart("send", predicted, roofline)
    return _apart("direct" if FUSED in library else "torch" if TORCH in library else "library", predicted, roofline)


def attention_kind(decode: bool) -> str:
    """Return the kind of rows of a table of attention."""
    return "decode" if decode else "prefill"


def kinds_of(table: str, frame: polars.DataFrame) -> np.ndarray:
    """Return the kind of each row of an answered table; "" where a table has no kinds."""
    out = np.full(frame.height, "", dtype=object)
    if table in ("attention_prefill", "attention_decode"):
        out[:] = attention_kind(table == "attention_decode")
    if table == "e2e":
        out[:] = frame["backend"].to_list()
    if table not in ("gemm", "moe", "comm"):
        return out
    predicted, roofline = (frame[name].to_numpy().astype(float) for name in ("predicted_s", "roofline_s"))
    if table == "comm":
        for (gpu, op, library), index in groups(frame, "gpu", "op", "library"):
            out[index] = collective_kinds(op, library, gpu.endswith(PAIRS), predicted[index], roofline[index])
    else:
        for (framework,), index in groups(frame, "framework"):
            out[index] = library_kinds(framework, predicted[index], roofline[index])
    return out


def _apart(maker: str, predicted: np.ndarray, roofline: np.ndarray) -> np.ndarray:
    near = roofline >= NEAR_SHARE * predicted
    return np.where(near, f"{maker}_{NEAR}", f"{maker}_{FAR}").astype(object)
