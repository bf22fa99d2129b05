"""docs/accuracy.md: what was scored, what was left out and why, the scores, and where the constants come
from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taygeta.base.errors import InputError
from taygeta.spec.sheet import Entry
from taygeta.validate import quirks
from taygeta.validate.held_out import SPLITS, HeldOut
from taygeta.validate.prose import HARNESS, HEAD, HELD_OUT
from taygeta.validate.run import Result
from taygeta.validate.score import (
    AGGREGATED,
    ALL,
    CLEAN,
    EVERY_CHIP,
    EVERY_GROUP,
    LEAST_ROWS,
    Metric,
    Score,
    metrics,
    shown,
)  # fmt: skip
from taygeta.validate.systems import System, Systems

TEXTS = (
    "table", "chips", "chip", "rows of", "constants from", "metric", "regime", "reason", "filter", "told by",
    "kernels", "source", "end to end", "predicted by",
)  # fmt: skip
SCOPES = ((CLEAN, "Clean rows"), (AGGREGATED, "All aggregated rows of e2e"), (ALL, "All rows"))
KERNELS = ("matmul", "quantise", "vector", "attention", "experts", "collective", "link")
LARGE = 0.005  # of a table's clean rows: regimes smaller than this are left to --json
SHORT, SHORT_END = "<!-- short -->", "<!-- /short -->"  # what README.md repeats stands between these lines
UNSEEN = "b200"  # whose errors with the constants of the first split the short table shows: the newest chip
_FLOOR, _UNSEEN = "roofline", f"{UNSEEN.upper()} from {', '.join(SPLITS[0]).upper()}"
_SHORT = (
    "Mean / median of |predicted / measured - 1| in %, on rows that no filter leaves out. Each chip has"
    " constants fitted on such rows of kernels;\nend to end only each engine's few are fitted. Kernels of vLLM and"
    " SGLang have models of their own where tables name them; whole steps take coarser constants of their libraries."
)
_SHORT_UNSEEN = (
    " The last column carries constants of two older chips over (-: not tested so)."
)
_NAMES = {
    "tpot": ("Taygeta", "TPOT"), "tpot aiconfigurator silicon": ("AIConfigurator 0.12", "TPOT"),
    "ttft": ("Taygeta", "TTFT"), "ttft aiconfigurator silicon": ("AIConfigurator 0.12", "TTFT"),
}  # fmt: skip  # the peer's better mode
# The case is "" where what decides is shared by all chips and was fitted on UNSEEN as well.
# (what, table, dimension and group of its regime, case of a chip left out)
LINES = (
    (
        "matrix multiply, bf16, TensorRT-LLM, n, k >= 512",
        "gemm",
        "case",
        "bfloat16 trtllm n, k >= 512",
        "bf16, TensorRT-LLM, n, k >= 512",
    ),
    ("matrix multiply, fp8, TensorRT-LLM, n, k >= 512", "gemm", "case", "fp8 trtllm n, k >= 512", ""),
    ("matrix multiply, all formats and libraries", "gemm", "", EVERY_GROUP, ""),
    ("attention, prefill, bf16", "attention_prefill", "dtype", "compute bfloat16, cache bfloat16", "bf16"),
    ("attention, prefill, all formats", "attention_prefill", "", EVERY_GROUP, ""),
    ("attention, decode, bf16", "attention_decode", "dtype", "cache bfloat16", "bf16"),
    ("attention, decode, all formats", "attention_decode", "", EVERY_GROUP, ""),
    ("expert layer, bf16, TensorRT-LLM", "moe", "case", "bfloat16 trtllm", ""),
    ("expert layer, fp8, TensorRT-LLM", "moe", "case", "fp8 trtllm", ""),
    ("expert layer, all formats and libraries", "moe", "", EVERY_GROUP, ""),
    ("all-reduce, NCCL", "comm", "case", "all_reduce nccl eager", ""),
    ("TPOT, end to end", "e2e", "", EVERY_GROUP, "TPOT of all engines and models"),
    ("TTFT, end to end", "e2e", "", EVERY_GROUP, ""),
)
# Filters that were chosen after predictions had stood out, against those of other sources of the same shapes.
BY_RESIDUALS = ("bimodal_decode", "bimodal_long_decode", "other_clock")


def report(results: Sequence[Result], systems: Systems, held_out: Sequence[HeldOut] = ()) -> str:
    """Return the report of a validation as Markdown."""
    parts = [HEAD, _short(results, systems, held_out), _scored(results), _filters(results), _fitted(systems)]
    if any(result.table == "e2e" for result in results):
        parts.append(HARNESS)
    if held_out:
        parts.append(_held_out(held_out))
    parts += [_totals(results), *(_regimes(result) for result in results)]
    return "\n".join(part for part in parts if part)


def _short(results: Sequence[Result], systems: Systems, held_out: Sequence[HeldOut]) -> str:
    """Return what a reader wants first: an error for each kernel and chip, and end to end beside a peer.

    "" where no row of LINES is answered.
    """
    clean = [s for r in results for s in r.scores if s.scope == CLEAN]
    rows = {}
    for what, table, dimension, group, case in LINES:
        found = [s for s in clean if (s.table, s.dimension, s.group) == (table, dimension, group)]
        line = _errors(found, systems, "ttft" if what.startswith("TTFT") else "")
        lent = [h.carried for h in held_out if h.sources == SPLITS[0] and h.carried.group == case]
        for s in lent:
            if s.table == table and _chip_id(systems, s.chip) == UNSEEN:
                line[_UNSEEN] = both(s)
        if line:
            rows[what] = line
    if not rows:
        return ""
    keys = [*_by_peak({key for line in rows.values() for key in line} - {_FLOOR, _UNSEEN}, systems), _FLOOR]
    keys += [_UNSEEN] if held_out else []
    body = [(what, *(line.get(key, "-") for key in keys)) for what, line in rows.items()]
    tables = [_table(("rows of", *keys), body, TEXTS), _served(clean)]
    text = _SHORT + (_SHORT_UNSEEN if held_out else "")
    return "\n".join(
        ["## In short", "", SHORT, text, "", *(table for table in tables if table), SHORT_END, ""]
    )


def _errors(scores: Sequence[Score], systems: Systems, metric: str = "") -> dict[str, str]:
    """Return the errors of one regime by chip, and the roofline's over all; empty where nothing answers.

    metric: another than the table's first, which has no roofline.
    """
    out = {}
    for s in scores:
        ours, floor = metrics(s.table)[:2]
        if s.chip != EVERY_CHIP and s.metric == (metric or ours.name) and s.answered:
            out[_chip_id(systems, s.chip).upper()] = both(s)
        elif s.chip == EVERY_CHIP and s.metric == floor.name and s.answered and not metric:
            out[_FLOOR] = both(s)
    return out


def _served(clean: Sequence[Score]) -> str:
    """Return TPOT and TTFT end to end beside the peer's; "" where no table has them."""
    rows = []
    for s in clean:
        if s.metric in _NAMES and (s.group, s.chip) == (EVERY_GROUP, EVERY_CHIP) and s.answered:
            errors = (percent(x) for x in (s.mape, s.median, s.p90))
            rows.append((*reversed(_NAMES[s.metric]), *errors, f"{s.answered:,} of {s.rows:,}"))
    rows.sort(key=lambda row: row[:2], reverse=True)
    heads = ("end to end", "predicted by", "mean", "median", "p90", "answered")
    return _table(heads, rows, TEXTS) if rows else ""


def _by_peak(names: Iterable[str], systems: Systems) -> list[str]:
    """Return names of chips, slowest first: by peak, then by bandwidth of main memory."""

    def rate(name: str) -> tuple[float, float, str]:
        chip = systems.get(name).chip
        return chip.peaks.get("bf16", 0.0), chip.hbm.bandwidth, name

    return sorted(names, key=rate)


def _chip_id(systems: Systems, name: str) -> str:
    """Return the catalogue's name of a chip, or the table's own where the catalogue has none."""
    try:
        return systems.get(name).chip.id
    except InputError:
        return name


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: Sequence[str]) -> str:
    """Return a Markdown table; the columns named in `texts` are aligned left, numbers right."""
    line = "|" + "|".join("---" if head in texts else "---:" for head in heads) + "|"
    body = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(heads) + " |", line, *body]) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _scored(results: Sequence[Result]) -> str:
    rows = []
    for r in results:
        chips = sorted(r.frame[r.chip].unique().to_list())
        clean, answered = (
            int(r.frame["clean"].sum()),
            int(r.frame[metrics(r.table)[0].predicted].is_not_null().sum()),
        )
        rows.append((r.table, ", ".join(chips), f"{r.frame.height:,}", f"{clean:,}", f"{answered:,}"))
    out = ["## What was scored", "", _table(("table", "chips", "rows", "clean", "answered"), rows, TEXTS)]
    reasons = [(r.table, text, f"{count:,}") for r in results for text, count in r.reasons()]
    if reasons:
        out += ["Rows without an answer:", "", _table(("table", "reason", "rows"), reasons, TEXTS)]
    return "\n".join(out)


def _filters(results: Sequence[Result]) -> str:
    rows = []
    for r in results:
        for quirk in quirks.QUIRKS.get(r.table, ()):
            name = quirk.__name__
            told = "residuals" if name in BY_RESIDUALS else "measurements"
            rows.append((r.table, name.replace("_", " "), f"{r.removed[name]:,}", told, quirks.reason(quirk)))
    text = (
        "Filters were told by measurements (other sources of the same shape, the table's own labels,"
        " physics) but for those marked residuals: their rows stood out by errors of predictions beside"
        " those of other sources. Of bimodal decode that is release 1.3.0rc20 on Hopper and Ada. They"
        " flatter the scores of clean rows; those of all rows hold them. A row can meet several."
    )
    heads = ("table", "filter", "rows", "told by", "reason")
    return "\n".join(["## What is left out", "", text, "", _table(heads, rows, TEXTS)])


def _fitted(systems: Systems) -> str:
    chips = {system.chip.id: system for _, system in sorted(systems.used().items())}
    text = (
        "A chip whose constants were fitted on a table is not predicted there: its score says how well the"
        " form fits. Each cell counts a kernel's constants: those of the chip's own sheet (fitted, or stated)"
        " and those that it takes from its family, which were fitted on relatives or assumed. Constants of a"
        " kernel that neither gives are shared by all chips and stand in the kernel's module."
    )
    heads = ("chip", *KERNELS)
    rows = [(chip, *(_counts(system, kernel) for kernel in KERNELS)) for chip, system in chips.items()]
    alike: dict[tuple[str, str], list[str]] = {}
    for chip, system in chips.items():
        for source in _sources(system):
            alike.setdefault(source, []).append(chip)
    sources = [(kernels, ", ".join(names), text) for (kernels, text), names in sorted(alike.items())]
    table = _table(("kernels", "chips", "source"), sources, TEXTS)
    counts = _table(heads, rows, ("chip", *KERNELS))
    return "\n".join(
        ["## Where the constants come from", "", text, "", counts, "Sources of the chips' own:", "", table]
    )


def _entries(system: System, kernel: str) -> list[Entry]:
    """Return the numbers of a kernel's constants; launch and the ports count as the multiply's."""
    general = ("launch", "core_port", "core_port_share", "multicast")
    found = []
    for path, entry in system.sheet.entries.items():
        parts = path.split(".")
        owner = (
            "matmul"
            if parts[0] == "calibration" and parts[1] in general
            else parts[1]
            if len(parts) > 1
            else ""
        )
        if (parts[0] == "calibration" and owner == kernel) or (kernel == "link" and path == "link.latency"):
            found.append(entry)
    return found


def _counts(system: System, kernel: str) -> str:
    entries = _entries(system, kernel)
    own = sum(entry.origin != "family" for entry in entries)
    texts = [f"{own} own"] if own else []
    if len(entries) > own:
        texts.append(f"{len(entries) - own} of {system.chip.family}")
    return ", ".join(texts) or "shared"


def _sources(system: System) -> list[tuple[str, str]]:
    """Return (kernels, source) of the constants of a chip's own sheet, kernels of one source together."""
    found: dict[str, list[str]] = {}
    for kernel in KERNELS:
        for entry in _entries(system, kernel):
            if entry.origin != "family":
                text = "; ".join(part for part in (entry.source, entry.reason) if part)
                kernels = found.setdefault(text, [])
                kernels += [kernel] if kernel not in kernels else []
    return [(", ".join(kernels), text) for text, kernels in found.items()]


def _held_out(held_out: Sequence[HeldOut]) -> str:
    heads = (
        "table", "rows of", "chip", "constants from", "rows", "MAPE", "median", "bias", "inside",
        "high / low", "own MAPE", "own median", "family MAPE", "family median",
    )  # fmt: skip
    rows = []
    for h in held_out:
        c = h.carried
        errors = (percent(x) for x in (c.mape, c.median, c.bias, c.coverage))
        width = "-" if c.width is None else f"{c.width:.2f}"
        beside = (
            percent(x) for s in (h.own, h.defaults) for x in ((s.mape, s.median) if s else (None, None))
        )
        rows.append((c.table, c.group, c.chip, ", ".join(h.sources), f"{c.rows:,}", *errors, width, *beside))
    return "\n".join(["## Chips left out", "", HELD_OUT, _table(heads, rows, TEXTS)])


def _totals(results: Sequence[Result]) -> str:
    heads = (
        "table", "chip", "metric", "rows", "answered", "MAPE", "median", "p90", "bias", "inside",
        "high / low", "roofline MAPE",
    )  # fmt: skip
    out = ["## Scores", ""]
    for scope, title in SCOPES:
        rows = []
        for r in results:
            total = {(s.chip, s.metric): s for s in r.scores if s.scope == scope and s.group == EVERY_GROUP}
            floor = metrics(r.table)[1]
            for (chip, metric), s in total.items():
                if metric != floor.name and _said(r, metric):
                    same = _metric(r.table, metric).measured == floor.measured
                    least = total.get((chip, floor.name)) if same else None
                    rows.append((*_line(s), percent(least.mape if least else None)))
        out += [f"### {title}", "", _table(heads, rows, TEXTS)] if rows else []
    return "\n".join(out)


def _metric(table: str, name: str) -> Metric:
    return next(m for m in metrics(table) if m.name == name)


def _said(result: Result, metric: str) -> bool:
    """Return whether we answer what a metric measures: a peer alone is not compared."""
    measured = _metric(result.table, metric).measured
    ours = {m.name for m in metrics(result.table) if m.measured == measured and m.low}
    return any(s.answered for s in result.scores if s.metric in ours)


def _line(s: Score) -> tuple[str, ...]:
    share = f"{s.answered / s.rows:.1%}" if s.rows else "-"
    width = "-" if s.width is None else f"{s.width:.2f}"
    errors = (percent(x) for x in (s.mape, s.median, s.p90, s.bias, s.coverage))
    return (s.table, s.chip, s.metric, f"{s.rows:,}", share, *errors, width)


def _regimes(result: Result) -> str:
    ours, floor = metrics(result.table)[:2]
    peers = [m for m in metrics(result.table)[2:] if m.measured == ours.measured]
    found = {(s.chip, s.dimension, s.group, s.metric): s for s in result.scores if s.scope == CLEAN}
    rows = []
    least = max(LEAST_ROWS, round(LARGE * int(result.frame["clean"].sum())))
    for s in shown(result.scores, ours.name):
        if s.answered < least:
            continue
        others = [found.get((s.chip, s.dimension, s.group, m.name)) for m in (floor, *peers)]
        errors = (percent(x) for x in (s.mape, s.median, s.p90, s.bias))
        rows.append(
            (s.chip, s.group, f"{s.rows:,}", *errors, *(percent(o.mape) if o else "-" for o in others))
        )
    heads = (
        "chip",
        "regime",
        "rows",
        "MAPE",
        "median",
        "p90",
        "bias",
        *(f"{m.name} MAPE" for m in (floor, *peers)),
    )
    if not rows:
        return ""
    every = "All of them: `taygeta validate DIRECTORY --json FILE`."
    note = f"Clean rows; regimes of at least {least:,} rows. {every}"
    return "\n".join([f"## {result.table} by regime", "", note, "", _table(heads, rows, TEXTS)])


def percent(value: float | None) -> str:
    """Return a fraction as a percentage with one decimal, "-" for none."""
    return "-" if value is None else f"{100 * value:.1f} %"


def both(score: Score | None) -> str:
    """Return mean / median in %, "-" for none."""
    if score is None or score.mape is None or score.median is None:
        return "-"
    return f"{100 * score.mape:.1f} / {100 * score.median:.1f}"
