"""What the assistant may know: the entities of the catalogue, their names in questions, and one sentence for each fact.

Numbers are the catalogue's, in the units in which people say them: GiB (memory of a chip rounded down to a whole
number, weights rounded up, so that "fits" is never said too early), GB/s, TFLOP/s, W. A number that the catalogue
assumes and nobody has published is said with "about".
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from taygeta.base.formats import FORMATS
from taygeta.frontend.catalog import entries, model
from taygeta.report.sheets import has_experts
from taygeta.report.words import number
from taygeta.spec.catalog import chip, chip_names, sheet
from taygeta.spec.sheet import Sheet

GIB = 2**30
DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
PEAKS = ("bf16", "fp8", "fp4", "mx9", "mx6")
WEIGHT_FORMATS = ("bf16", "fp8", "mxfp4")
KINDS = {"gpu": "a GPU", "tpu": "a TPU", "npu": "an NPU", "cpu": "a CPU"}

# Field: (sentence with {e} and {v}, what it is called where the catalogue does not state it).
CHIP_SENTENCES = {
    "memory": ("{e} has {v} GiB of memory.", "memory"),
    "bandwidth": ("{e} has {v} GB/s of memory bandwidth.", "memory bandwidth"),
    "power": ("{e} is designed for {v} W.", "power"),
    "link": ("{e} has {v} GB/s of link bandwidth.", "link bandwidth"),
    "cores": ("{e} has {v} cores.", "cores"),
    "year": ("{e} is from {v}.", "year"),
    "vendor": ("{e} is made by {v}.", "vendor"),
    "memory kind": ("{e} has {v} as memory.", "kind of memory"),
    "kind": ("{e} is {v}.", "kind"),
    **{f"peak {mode}": ("{e} has {v} TFLOP/s in " + mode + ".", f"{mode} peak") for mode in PEAKS},
}
MODEL_SENTENCES = {
    "parameters": ("{e} has {v} B parameters.", "parameters"),
    "active": ("{e} has {v} B active parameters.", "active parameters"),
    "layers": ("{e} has {v} layers.", "layers"),
    "context": ("{e} has a context of {v} tokens.", "context"),
    "vocabulary": ("{e} has a vocabulary of {v} tokens.", "vocabulary"),
    "publisher": ("{e} is published by {v}.", "publisher"),
    "native format": ("{e} stores its weights in {v}.", "format"),
    **{f"weights {f}": ("{e} takes {v} GiB in " + f + ".", f"weights in {f}") for f in WEIGHT_FORMATS},
}
FORMAT_SENTENCES = {
    "bits": ("{e} has {v} bits per element.", "bits"),
    "bytes": ("{e} takes {v} bytes per element.", "bytes"),
    "meaning": ("{e} is {v}.", "meaning"),
}
SENTENCES = {"chip": CHIP_SENTENCES, "model": MODEL_SENTENCES, "format": FORMAT_SENTENCES}


@dataclass(frozen=True)
class Entity:
    """One chip, model or format. names: how a question may call it, the usual one first. values: text by field.

    groups: its vendor and kind. aliases: every other name of the catalogue, which is never asked as unknown.
    """

    sort: str
    name: str
    names: tuple[str, ...]
    values: dict[str, str | None] = field(hash=False)
    groups: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    def number(self, name: str) -> float | None:
        """Return a value as a number, None where it is none."""
        text = (self.values.get(name) or "").removeprefix("about ")
        try:
            return float(text)
        except ValueError:
            return None

    def says(self, name: str) -> str:
        """Return the sentence of a fact."""
        sentence, label = SENTENCES[self.sort][name]
        value = self.values[name]
        if value is not None:
            return sentence.format(e=self.name, v=value)
        if name.startswith("peak "):
            return f"{self.name} has no {name.removeprefix('peak ')} mode."
        return f"The catalogue does not state the {label} of {self.name}."


@cache
def chips() -> tuple[Entity, ...]:
    """Return the chips of the catalogue."""
    return tuple(_chip(name) for name in chip_names())


@cache
def models() -> tuple[Entity, ...]:
    """Return the models of the catalogue."""
    return tuple(_model(entry.name, entry.aliases) for entry in entries())


@cache
def formats() -> tuple[Entity, ...]:
    """Return the storage formats."""
    out = []
    for f in FORMATS.values():
        values: dict[str, str | None] = {
            "bits": str(f.bits),
            "bytes": f"{f.bytes_per_element:.5g}",
            "meaning": f.meaning,
        }
        out.append(Entity("format", f.name, (f.name, f.name.upper()), values))
    return tuple(out)


@cache
def glossary() -> tuple[tuple[str, str], ...]:
    """Return (word, meaning) of the glossary of docs/design.md, the meaning up to its first stop."""
    text = DESIGN.read_text(encoding="utf-8").partition("## Glossary")[2]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE)
    rows = [(word.replace("`", ""), meaning) for word, meaning in rows if word != "word" and "---" not in word]
    return tuple((word, re.split(r"[;.] |;", meaning)[0].strip()) for word, meaning in rows)


def _chip(name: str) -> Entity:
    s, c = sheet(name), chip(name)
    display = _display(name, s.texts["name"])
    memory = s.entries["hbm.capacity"].nominal / GIB
    values: dict[str, str | None] = {
        "memory": _about(s, "hbm.capacity", f"{math.floor(memory)}" if memory >= 10 else f"{memory:.2f}"),
        "bandwidth": _stated(s, "hbm.bandwidth", 1e9),
        "power": _stated(s, "power.tdp", 1.0),
        "link": _stated(s, "link.bandwidth", 1e9),
        "cores": _stated(s, "cores.count", 1.0),
        "year": str(s.texts["year"]),
        "vendor": s.texts["vendor"],
        "memory kind": re.split(r"[:,]", s.texts["hbm.kind"])[0],
        "kind": KINDS[s.texts["kind"]],
    }
    for mode in PEAKS:
        peak = c.peaks.get(mode)
        stated = f"tensor.peak.{mode}" in s.entries
        values[f"peak {mode}"] = None if peak is None else ("" if stated else "about ") + _tidy(peak / 1e12)
    vendor = s.texts["vendor"]
    full = display if display.startswith(vendor) else f"{vendor} {display}"
    spoken = [display, full, display.lower(), name, *s.aliases[:2]]
    groups = (KINDS[s.texts["kind"]].split()[1], vendor)
    return Entity("chip", display, _distinct(spoken), values, groups, s.aliases)


def _model(name: str, aliases: tuple[str, ...]) -> Entity:
    m = model(name)
    display = name.rpartition("/")[2]
    total, active = m.parameters(), m.active_parameters()
    about = "about " if m.guesses else ""
    values: dict[str, str | None] = {
        "parameters": about + number(total / 1e9).replace(",", ""),
        "active": about + number(active / 1e9).replace(",", ""),
        "layers": about + str(len(m.layers)),
        "context": str(m.max_context),
        "vocabulary": str(m.vocab),
        "publisher": name.partition("/")[0],
        "native format": m.native.experts if has_experts(m) else m.native.ffn,
    }
    for f in WEIGHT_FORMATS:
        values[f"weights {f}"] = about + str(math.ceil(total * FORMATS[f].bytes_per_element / GIB))
    spoken = [display, display.replace("-", " "), name, display.lower(), *(a.rpartition("/")[2] for a in aliases[:2])]
    return Entity("model", display, _distinct(spoken), values, (name.partition("/")[0],), aliases)


def _display(name: str, full: str) -> str:
    """The id in the product name's own capitals: gb200 of "NVIDIA GB200 NVL72" is GB200, maia-100 is Maia 100."""
    words = {word.strip("()").lower(): word.strip("()") for word in full.split()}
    return " ".join(words.get(part, _capital(part)) for part in name.split("-"))


def _capital(part: str) -> str:
    if part in KINDS:
        return part.upper()
    return part if part.startswith("v") else part.capitalize()


def _distinct(names: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _stated(s: Sheet, path: str, unit: float) -> str | None:
    entry = s.entries.get(path)
    if entry is None or entry.origin != "chip":
        return None
    return _about(s, path, _tidy(entry.nominal / unit))


def _about(s: Sheet, path: str, text: str) -> str:
    entry = s.entries[path]
    return text if entry.low == entry.high else f"about {text}"


def _tidy(value: float) -> str:
    """Whole numbers from 100 on, else one decimal where it is not zero."""
    return f"{math.floor(value + 0.5)}" if value >= 100 else f"{value:.1f}".removesuffix(".0")
