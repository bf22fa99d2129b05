"""Compare the timed fidelity with the modelled one, layer by layer, and write docs/timed.md.

    python tools/fidelity.py

Each row is a stretch of layers of a model on one chip, so that no collective is in it: what the program takes on the
engines, what the model says, and their ratio; then the same for the multiplies and the attention in it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from taygeta import api
from taygeta.base.errors import DoesNotFitError
from taygeta.compiler.compile import compile_step
from taygeta.cost.predict import Predictor
from taygeta.machine.routing import expected_routing
from taygeta.machine.timed import time_program
from taygeta.spec.deployment import Batch, Deployment

ROOT = Path(__file__).parents[1]
LAB = ROOT / "tests" / "chips" / "lab.toml"
CHIPS = ("maia-100", "tpu-v5e", str(LAB))
MODELS = (("meta-llama/Llama-3.1-70B", 1, "bf16"), ("openai/gpt-oss-120b", 2, None))
BATCHES = (
    ("decode, 1 x 4,096", Batch.decode(1, 4096)),
    ("decode, 16 x 2,048", Batch.decode(16, 2048)),
    ("decode, 64 x 2,048", Batch.decode(64, 2048)),
    ("prefill of 512", Batch.prefill(1, 512)),
    ("prefill of 2,048", Batch.prefill(1, 2048)),
)
OUTSIDE = ("embedding", "head")
MULTIPLIES = {"qkv": ("qkv",), "o": ("o",), "up": ("up", "activation"), "down": ("down",)}


def layers(model: str, chip: str, count: int, weights: str | None) -> Deployment:
    """Return the first layers of a model on one chip."""
    whole = api.deploy(model, f"{chip}:1", weights=weights)
    return replace(whole, model=replace(whole.model, layers=whole.model.layers[:count]), corners=())


def compare(d: Deployment, batch: Batch) -> dict[str, tuple[float, float]]:
    """Return seconds (timed, modelled) of the layers, of their attention, and of each multiply."""
    compiled = compile_step(d, batch)
    t = time_program(compiled.program, compiled.target, expected_routing(compiled, d.model, d.skew), spans=0)
    found = {phase.name: phase for phase in t.phases}
    after = found["final-norm"] if "final-norm" in found else found["head"]  # the head may do the norm itself
    inside = (after.begin - found["embedding"].end) / t.clock
    ops = [op for op in Predictor(d, corners=False).predict(batch).ops if op.part not in OUTSIDE]
    modelled = {name: sum(op.seconds for op in ops if op.name == name) for name in {op.name for op in ops}}
    out = {"layers": (inside, sum(op.seconds for op in ops if op.name != "final norm"))}
    for name, parts in MULTIPLIES.items():
        if name in found:
            out[name] = (found[name].cycles / t.clock, sum(modelled.get(p, 0.0) for p in parts))
    attention = [found[name].cycles / t.clock for name in ("attention", "attention-merge") if name in found]
    out["attention"] = (sum(attention), modelled["attention"])
    if "experts-up" in found:
        both = (found["experts-up"].cycles + found["experts-down"].cycles) / t.clock
        out["experts"] = (both, modelled["experts"])
    return out


def main() -> None:
    """Write the table."""
    columns = ("layers", "qkv", "o", "up", "down", "experts", "attention")
    lines = ["| layers on one chip | step | timed | modelled | " + " | ".join(columns) + " |"]
    lines.append("|---|---|---:|---:|" + "---:|" * len(columns))
    for model, count, weights in MODELS:
        for chip in CHIPS:
            d = layers(model, chip, count, weights)
            for name, batch in BATCHES:
                try:
                    found = compare(d, batch)
                except DoesNotFitError:
                    empty = " | ".join([""] * len(columns))
                    head = f"| {count} of {model.split('/')[-1]}, {d.chip.id} | {name} | "
                    lines.append(f"{head}does not fit | | {empty} |")
                    continue
                timed, modelled = found["layers"]
                ratios = [f"{found[c][0] / found[c][1]:.2f}" if c in found else "" for c in columns]
                head = f"| {count} of {model.split('/')[-1]}, {d.chip.id} | {name} | {timed * 1e6:,.0f} us | "
                lines.append(head + f"{modelled * 1e6:,.0f} us | " + " | ".join(ratios) + " |")
                sys.stderr.write(lines[-1] + "\n")
    page = ROOT / "docs" / "timed.md"
    text = page.read_text(encoding="utf-8")
    start, end = text.index("<!-- table -->"), text.index("<!-- end -->")
    page.write_text(text[:start] + "<!-- table -->\n" + "\n".join(lines) + "\n" + text[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
