"""An engine as a public benchmark launched it: what its scripts choose by the model's kind, the chip and the load.

The file of an engine lists rules, of the engine itself and of each benchmark: `when` says which deployments and loads a
rule is for, by traits and never by the name of a model or a chip, and the settings after it are those of the public
script. Later rules win. A setting may grow with the load: `{ value = 64, prompt = 1, requests = 1 }` is 64 tokens more
than a prompt and one for each request in flight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from taygeta.base.errors import InputError
from taygeta.base.formats import format_of
from taygeta.spec.chip import Chip
from taygeta.spec.engine import Engine, checked, engine, engine_document
from taygeta.spec.mixers import LatentAttention, LinearAttention, StateSpace
from taygeta.spec.model import Model, MoeFfn

_LOADS = ("prompt", "answer", "requests")
_BOUNDS = ("prompt_below", "requests_from", "chips_below", "weight_bits", "release_from", "release_below")


@dataclass(frozen=True)
class Case:
    """What a launch script of a benchmark looks at.

    attention: "grouped" heads, "latent" (keys and values in one latent), "sparse" (a query chooses its keys), or
    "recurrent" (some layers keep a state instead of a cache). experts: some layers route. head_norms: queries and keys
    are normalised by head. weights: format of experts, or of feed-forward layers where there are none. four_bit: the
    chip computes in four bits. chips: of a replica. release: of the engine, (0, 19, 0) for 0.19.0. prompt, answer:
    nominal tokens. requests: in flight. A release is empty, and loads are 0, where they are not known; rules that ask
    for them are then left out.
    """

    attention: str
    experts: bool
    weights: str
    four_bit: bool
    chips: int
    head_norms: bool = False
    release: tuple[int, ...] = ()
    prompt: int = 0
    answer: int = 0
    requests: int = 0


def case_of(model: Model, chip: Chip, chips: int, weights: str = "") -> Case:
    """Return the case of a model on a chip, without a load. weights: "" is as the model is stored."""
    mixers = [layer.mixer for layer in model.layers]
    experts = any(isinstance(layer.ffn, MoeFfn) for layer in model.layers)
    attention = "grouped"
    if any(isinstance(mixer, LinearAttention | StateSpace) for mixer in mixers):
        attention = "recurrent"
    elif any(getattr(mixer, "indexer", None) for mixer in mixers):
        attention = "sparse"
    elif any(isinstance(mixer, LatentAttention) for mixer in mixers):
        attention = "latent"
    stored = weights or (model.native.experts if experts else model.native.ffn)
    head_norms = any(getattr(mixer, "qk_norm", "none") != "none" for mixer in mixers)
    return Case(attention, experts, stored, "fp4" in chip.peaks, chips, head_norms)


def release_of(text: str) -> tuple[int, ...]:
    """Return the numbers of a release: (0, 19, 0) of "v0.19.0", (1, 1, 0) of "1.1.0rc2", none of a nightly."""
    found = re.match(r"v?(\d{1,6}(?:\.\d{1,6})+)", text)
    return tuple(int(number) for number in found.group(1).split(".")) if found else ()


def launched(name: str, case: Case) -> Engine:
    """Return an engine of the catalogue, or as a benchmark runs it ("vllm@inferencex"), in a case.

    An engine of a user's own file is as it stands. Raises UnknownNameError, or InputError for a benchmark that the
    engine's file does not have, or a file that cannot be used.
    """
    found = engine(name)
    if name.endswith(".toml"):
        return found
    for rule in _rules(name):
        if rule.applies(case):
            found = rule.settle(found, case)
    return found


@dataclass(frozen=True)
class Rule:
    """Settings of one case. when: conditions that must all hold. settings: (field, value, tokens for each prompt,
    answer and request, source).
    """

    when: tuple[tuple[str, Any], ...]
    settings: tuple[tuple[str, Any, tuple[int, int, int], str], ...]

    def applies(self, case: Case) -> bool:
        """Whether every condition holds, and the load is known where the rule asks for it."""
        load = (case.prompt, case.answer, case.requests)
        for _, _, factors, _ in self.settings:
            if any(factor and not size for factor, size in zip(factors, load, strict=True)):
                return False
        return all(_holds(key, wanted, case) for key, wanted in self.when)

    def settle(self, found: Engine, case: Case) -> Engine:
        """Return the engine with the rule's settings."""
        values: dict[str, Any] = {}
        sources = {source.partition(":")[0]: source for source in found.sources}
        load = (case.prompt, case.answer, case.requests)
        for key, value, factors, source in self.settings:
            more = sum(factor * size for factor, size in zip(factors, load, strict=True))
            values[key] = max(1, value + more) if any(factors) else value
            sources[key] = f"{key}: {source}"
        return replace(found, **values, sources=tuple(sorted(sources.values())))


def _holds(key: str, wanted: Any, case: Case) -> bool:
    if key == "requests_from":
        return case.requests >= wanted
    if key == "prompt_below":
        return 0 < case.prompt < wanted
    if key == "chips_below":
        return case.chips < wanted
    if key == "release_from":
        return bool(case.release) and case.release >= release_of(wanted)
    if key == "release_below":
        return bool(case.release) and case.release < release_of(wanted)
    if key == "weight_bits":
        return format_of(case.weights).bits == wanted
    return getattr(case, key) == wanted


@cache
def _rules(name: str) -> tuple[Rule, ...]:
    """Return the rules of an engine, those of the benchmark in its name last."""
    plain, _, benchmark = name.lower().partition("@")
    document = engine_document(plain)
    own = document.get("benchmark", {}).get(benchmark, {})
    return tuple(_rule(rule, f"{name}: rule {i + 1}") for i, rule in enumerate(_listed(document) + _listed(own)))


def _listed(table: dict[str, Any]) -> list[dict[str, Any]]:
    return list(table.get("rules", []))


def _rule(rule: dict[str, Any], where: str) -> Rule:
    conditions = {f.name for f in fields(Case)} - {"release"} | set(_BOUNDS)
    when = rule.get("when", {})
    for key in when:
        if key not in conditions:
            raise InputError(f"{where}: a condition {key!r} is not known; known are {', '.join(sorted(conditions))}.")
    settings = []
    for key, item in rule.items():
        if key == "when":
            continue
        factors = tuple(int(item.get(load, 0)) for load in _LOADS)
        value = item["value"] if any(factors) else checked(key, item["value"], f"{where}: {key}")
        settings.append((key, value, factors, item["source"]))
    return Rule(tuple(sorted(when.items())), tuple(settings))
