"""The timed fidelity beside the modelled one, and as a command shows it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import taygeta as tg
from taygeta.machine.fidelity import timed_step
from taygeta.machine.timeline import perfetto
from taygeta.report.timed import difference, timed_json, timed_view
from taygeta.spec.deployment import Batch, Deployment

LAB = str(Path(__file__).parents[1] / "chips" / "lab.toml")
DECODE, PREFILL = Batch.decode(16, 2048), Batch.prefill(1, 2048)
CASES = [
    ("meta-llama/Llama-3.1-70B", 1, chip, batch)
    for chip, batches in (("maia-100", (DECODE, PREFILL)), ("tpu-v5e", (DECODE, PREFILL)), (LAB, (DECODE,)))
    for batch in batches
] + [
    ("openai/gpt-oss-120b", 2, chip, batch)
    for chip, batches in (("maia-100", (DECODE, PREFILL)), ("tpu-v5e", (DECODE, PREFILL)), (LAB, (DECODE,)))
    for batch in batches
]


def layers(model: str, count: int, chip: str) -> Deployment:
    whole = tg.deploy(model, on=f"{chip}:1", weights="bf16" if "Llama" in model else None)
    return replace(whole, model=replace(whole.model, layers=whole.model.layers[:count]), corners=())


@pytest.mark.parametrize(("model", "count", "chip", "batch"), CASES)
def test_layers_take_on_the_engines_what_the_model_says(model, count, chip, batch):
    """Neither was fitted to the other: they agree within 15 % (docs/timed.md lists what does not, and why)."""
    step = timed_step(layers(model, count, chip), batch)
    inside = [v for part, v in step.parts().items() if part not in ("head", "embedding", "start")]
    timed, modelled = (sum(side) for side in zip(*inside, strict=True))
    assert timed == pytest.approx(modelled, rel=0.15)
    assert step.lower <= step.seconds <= step.upper


def test_chips_beyond_a_node_send_over_the_network():
    """Four Maia 100 are joined by links; of eight, half of the hops take the network, which is slower."""
    few, many = (timed_step(tg.deploy("gpt2", on=f"maia-100:{n}", weights="mx9"), Batch.decode(1, 64)) for n in (4, 12))
    busy = [step.timeline.bytes["link"] for step in (few, many)]
    assert busy[1] > busy[0]
    assert many.seconds > few.seconds


def test_a_view_and_its_json_say_the_same():
    step = timed_step(tg.deploy("gpt2", on=f"{LAB}:1", weights="mxfp8"), Batch.decode(1, 64), spans=1000)
    view, document = timed_view("a decode step", step), timed_json(step)
    assert view.title == "openai-community/gpt2 on lab:1: a decode step"
    assert json.loads(json.dumps(document)) == document
    assert sum(p["timed_s"] for p in document["parts"]) == pytest.approx(document["timed_s"])
    assert document["lower_s"] <= document["timed_s"] <= document["upper_s"]
    trace = perfetto(step.timeline)
    assert 100 < len(trace["traceEvents"]) < 1100
    assert {e["ph"] for e in trace["traceEvents"]} == {"M", "X"}


def test_the_command_writes_a_trace_and_refuses_what_cannot_be(tmp_path):
    run = [sys.executable, "-m", "taygeta.app.cli", "predict", "gpt2", "--isl", "64"]
    trace = tmp_path / "step.json"
    done = subprocess.run(
        [*run, "--chip", f"{LAB}:2", "--fidelity", "timed", "--trace", str(trace), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["timed_s"] > 0
    assert json.loads(trace.read_text())["traceEvents"]
    for words, says in (
        (["--chip", "h100", "--fidelity", "timed"], "h100 cannot be compiled for"),
        (["--chip", "maia-100", "--trace", str(trace)], "add --fidelity timed"),
        (["--chip", "maia-100:2", "--fidelity", "timed", "--pp", "2", "--tp", "1"], "pp=2 is not compiled"),
    ):
        failed = subprocess.run([*run, *words], capture_output=True, text=True)
        assert failed.returncode == 2
        assert says in failed.stderr
        assert "Traceback" not in failed.stderr


def test_sends_and_their_waits_are_of_the_collectives():
    """A program sends at the end of the phase that made what it sends: the time is of the collectives all the same."""
    one, many = (timed_step(tg.deploy("gpt2", on=f"maia-100:{n}", weights="mx9"), Batch.decode(1, 64)) for n in (1, 4))
    assert "collectives" not in one.parts()
    assert one.timeline.critical["exchange"] == one.timeline.critical["link"] == 0.0
    timed, modelled = many.parts()["collectives"]
    assert timed > 24 * 0.5e-6  # two sums in each of 12 layers, each with a wait for all cores at least
    assert sum(a for a, _ in many.parts().values()) == pytest.approx(many.seconds)
    assert modelled > timed
    notes = timed_view("a decode step", many).notes
    assert "differ most in collectives" in notes[0]


def test_a_view_says_nothing_of_a_difference_that_is_small():
    assert difference({"ffn": (1.0, 1.1), "attention": (1.0, 1.1)}) == ()
    assert "ffn, 2.00 s and 1.00 s." in difference({"ffn": (2.0, 1.0), "attention": (1.0, 1.1)})[0]
