"""Remarks: what a result does not refuse, but a reader must know to judge it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taygeta.base import units
from taygeta.cost.result import Prediction, Service
from taygeta.report.words import count
from taygeta.spec.deployment import Deployment

if TYPE_CHECKING:
    from taygeta.serving.traffic import Traffic


def service_remarks(s: Service) -> tuple[str, ...]:
    """Return the remarks on a closed loop."""
    return (*_too_long(s.deployment, "isl + osl", s.isl + s.osl), *link_remarks(s.deployment))


def step_remarks(p: Prediction) -> tuple[str, ...]:
    """Return the remarks on one step."""
    longest = max((g.context + g.new_tokens for g in p.batch.groups), default=0)
    return (*_too_long(p.deployment, "the sequences", longest), *link_remarks(p.deployment))


def traffic_remarks(d: Deployment, traffic: Traffic) -> tuple[str, ...]:
    """Return the remarks on a traffic that is served by a deployment, the links of its chips left out."""
    lengths = traffic.isl + traffic.osl
    most, longer = d.model.max_context, int((lengths > d.model.max_context).sum())
    if not longer:
        return ()
    return (
        f"isl + osl of {count(longer, 'request')} exceed the longest context of {d.model.name}, {most:,} tokens:"
        f" up to {int(lengths.max()):,}. An engine would refuse or cut them.",
    )


def link_remarks(d: Deployment) -> tuple[str, ...]:
    """Return a remark where the chips of a replica have no links and exchange over the network."""
    if d.parallelism.chips == 1 or d.chip.link is not None or d.chip.network is None:
        return ()
    rate = units.show(d.chip.network.bandwidth, units.BYTES_PER_S, 3)
    return (
        f"{d.chip.id} has no link between chips: those of a replica exchange over its network, {rate} a chip."
        " link.bandwidth, link.domain and link.topology describe a link.",
    )


def _too_long(d: Deployment, what: str, tokens: int) -> tuple[str, ...]:
    most = d.model.max_context
    if tokens <= most:
        return ()
    return (f"{what}, {tokens:,} tokens, exceed the longest context of {d.model.name}, {most:,} tokens.",)
