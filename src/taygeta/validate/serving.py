"""What the labels of an e2e row mean: how the model is spread over chips, and in which formats it is stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from taygeta.base.errors import InputError
from taygeta.base.formats import format_of
from taygeta.frontend.catalog import model as find_model
from taygeta.spec.chip import Chip
from taygeta.spec.deployment import Deployment, Formats, Parallelism, check_parallelism, choose_formats
from taygeta.spec.engine import Engine
from taygeta.spec.launch import Case, case_of
from taygeta.spec.mixers import LatentAttention
from taygeta.spec.model import Model
from taygeta.validate.systems import Systems

NODE_CHIPS = 8  # no run of these tables spans more than a node of eight
MODEL_CORNERS = (
    "nominal",
    "low",
    "high",
)  # of unpublished models, beside the nominal, fast and slow corners of a chip
# Names of quantisation modes in e2e tables -> storage format; per-tensor fp8 checkpoints carry scales known
# in advance.
MODES = {
    "fp8": "fp8_static",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "fp4": "nvfp4",
    "mxfp4": "mxfp4",
    "bf16": "bf16",
    "int4": "int4",
}


@dataclass(frozen=True)
class Spread:
    """Ranks of one replica: tensor and data parallelism of attention, expert parallelism, pipeline stages."""

    tp: int
    dp: int
    ep: int
    pp: int


def spread_of(values: dict[str, Any]) -> Spread:
    """Return how the chips of a row are used.

    Missing and zero sizes are 1. Some rows give every chip twice, as tp x ep = N x N where the run had N
    chips, more than a node holds: those whose tp x dp is the square of their expert (or data) parallelism are
    read as N chips. Rows with fewer attention ranks than expert ranks keep requests apart on the ranks that are
    left (attention data parallelism). Raises InputError.
    """
    names = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size", "pp_size")
    sizes = {name: values[name] or 1.0 for name in names}
    if any(size != int(size) or size > 4096 for size in sizes.values()):
        raise InputError("parallel sizes must be whole numbers up to 4,096.")
    tp, dp, moe_tp, ep, pp = (int(sizes[name]) for name in names)
    chips = tp * dp
    if moe_tp == ep > 1 and chips == moe_tp * ep > NODE_CHIPS:  # tp (or dp) counts every chip twice
        return Spread(moe_tp if dp == 1 else 1, 1 if dp == 1 else ep, ep, pp)
    if tp == dp > 1 and ep == chips and moe_tp == 1:
        return Spread(1, dp, dp, pp)
    ranks = moe_tp * ep
    if ranks > chips and ranks % chips == 0:
        dp *= ranks // chips
    return Spread(tp, dp, min(ep, tp * dp), pp)


def side_of(values: dict[str, Any], side: str) -> tuple[Spread, int]:
    """Return how the chips of one side ("prefill" or "decode") of a disaggregated row are used, and its workers.

    No worker where the row does not say how many, or of how many chips. Raises InputError.
    """
    names = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size", "pp_size")
    own = {name: values.get(f"{side}_{name}") for name in names}
    workers = values.get(f"{side}_num_workers") or 0.0
    if not own["tp_size"] or workers != int(workers):
        return Spread(1, 1, 1, 1), 0
    return spread_of(own), int(workers)


def formats_of(values: dict[str, Any]) -> tuple[str, str, str]:
    """Return (format of dense matrices, format of experts, precision as labelled); "" is as the checkpoint
    stores them.
    """
    precision = values["precision"].lower()
    found = []
    for column in ("gemm_quant_mode", "moe_quant_mode"):
        name = values[column].lower() or precision
        if name and name not in MODES:
            raise InputError(f"{column} {name[:40]!r} is not known; known are {', '.join(MODES)}.")
        found.append(MODES.get(name, ""))
    if found == ["fp8_static", "fp8_block"]:  # checkpoints with block scales have them on every matrix
        found[0] = "fp8_block"
    return found[0], found[1], precision


class Deployments:
    """Builds the deployments that rows describe."""

    def __init__(self, systems: Systems) -> None:
        self._systems = systems

    def case(self, model: str, system: str, spread: Spread, formats: tuple[str, str, str]) -> Case:
        """Return what the launch script of a row's benchmark looks at, without a load. Raises InputError."""
        found, chip = find_model(model), self._systems.get(system).chip
        parts = stored_parts(found, formats)
        case = case_of(found, chip, spread.tp * spread.pp * spread.dp)
        return replace(case, weights=parts["experts" if case.experts else "ffn"])

    def build(
        self, model: str, system: str, engine: Engine, spread: Spread, formats: tuple[str, str, str]
    ) -> tuple[Deployment, ...]:
        """Return the deployment at the nominal values, then at the corners of what is assumed. Raises
        InputError.
        """
        chips = self._systems.get(system).chips
        parallelism = Parallelism(tp=spread.tp, pp=spread.pp, ep=spread.ep, dp=spread.dp)
        out = []
        for corner, chip in zip(MODEL_CORNERS, chips, strict=False):
            found = find_model(model, corner)
            check_parallelism(found, parallelism, parallelism.chips)
            stored = deployed_formats(found, chip, engine, formats)
            out.append(Deployment(found, chip, parallelism.chips, parallelism, stored, engine))
        return tuple(out)


def stored_parts(model: Model, formats: tuple[str, str, str]) -> dict[str, str]:
    """Return the format of each part's matrices: a label of as many bits as the checkpoint's own format means that one.

    NVFP4 checkpoints leave latent attention in bf16 (nvidia/DeepSeek-R1-FP4 and its kin).
    """
    dense, experts, _ = formats
    latent = any(isinstance(layer.mixer, LatentAttention) for layer in model.layers)
    parts = {part: _of(dense, getattr(model.native, part)) for part in ("attention", "ffn", "shared")}
    parts["experts"] = _of(experts, model.native.experts)
    if parts["attention"] == "nvfp4" and latent:
        parts["attention"] = "bf16"
    return parts


def deployed_formats(model: Model, chip: Chip, engine: Engine, formats: tuple[str, str, str]) -> Formats:
    """Return what a serving engine stores: the parts as labelled, and the cache as the engine's recipe says."""
    parts = stored_parts(model, formats)
    dense_only, with_experts = (choose_formats(model, chip, weights=parts[p]) for p in ("ffn", "experts"))
    return replace(
        dense_only, **parts, head=model.native.head, activations=dense_only.activations,
        expert_activations=with_experts.expert_activations, kv=engine.kv_format or model.native.kv,
    )  # fmt: skip


def _of(label: str, native: str) -> str:
    """A label names a width; the checkpoint's own format says which scales that width has."""
    if not label or format_of(label).bits == format_of(native).bits:
        return native
    return label
