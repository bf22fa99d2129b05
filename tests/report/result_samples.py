"""Results made by hand, with round numbers: what views, JSON, frames and pages are tested on."""

from __future__ import annotations

from dataclasses import replace

from taygeta.base.interval import Interval
from taygeta.cost.result import RESOURCES, OpCost, Prediction, Service
from taygeta.explore.plan import Comparison, Plan
from taygeta.explore.sweep import Sensitivity, Sweep, SweepPoint
from taygeta.graph.memory import MemoryUse
from taygeta.spec.chip import Chip, build_chip
from taygeta.spec.deployment import Batch, Deployment, Parallelism, deployment
from taygeta.spec.engine import engine
from taygeta.spec.mixers import Attention
from taygeta.spec.model import DenseFfn, Guess, Layer, Model, MoeFfn
from taygeta.spec.sheet import Sheet, parse_sheet

ATTENTION = Attention(heads=8, kv_heads=2, head_dim=64, v_head_dim=64)
SMALL = Model(
    "acme/small", 512, 1000, (Layer(ATTENTION, DenseFfn(2048)),) * 4, 4096, source="Acme's model card"
)
EXPERTS = Model(
    "acme/experts",
    512,
    1000,
    (Layer(Attention(8, 1, 64, 64, window=128), MoeFfn(16, 2, 1024)),) * 2,
    4096,
    notes=("no vision tower",),
)
SECRET = replace(
    SMALL, name="acme/secret", guesses=(Guess("num_hidden_layers", 2, 4, 8, "a blog guessed it"),)
)


def sheet(name: str = "toy", bandwidth: str = "1 TB/s") -> Sheet:
    """A chip with one assumed number, a source key and two aliases."""
    document = {
        "id": name,
        "name": f"The {name.title()} Chip",
        "vendor": "Acme",
        "kind": "npu",
        "aliases": [f"{name}-1", f"{name}1"],
        "notes": ["The <b>boldest</b> chip."],
        "sources": {"sheet": "Acme datasheet, 2026"},
        "activations": {"fp8": "fp8"},
        "cores": {"count": {"value": 100, "source": "sheet"}},
        "clock": {"low": "1 GHz", "nominal": "2 GHz", "high": "3 GHz", "reason": "unpublished; guessed"},
        "tensor": {
            "peak": {
                "bf16": {"value": "100 TFLOP/s", "source": "sheet"},
                "fp8": {"value": "200 TFLOP/s", "source": "sheet"},
            }
        },
        "vector": {"flop_per_s": "10 TFLOP/s", "exp_per_clock": 16},
        "hbm": {"capacity": "100 GB", "bandwidth": {"value": bandwidth, "source": "sheet"}},
        "link": {"bandwidth": "400 GB/s", "latency": "1 us", "domain": 8},
    }
    return parse_sheet(document, "toy.toml")


def chip(name: str = "toy", bandwidth: str = "1 TB/s") -> Chip:
    return build_chip(sheet(name, bandwidth))


def deployed(
    model: Model = SMALL, on: Chip | None = None, chips: int = 4, parallelism: Parallelism | None = None
) -> Deployment:
    return deployment(model, on or chip(), chips, engine("vllm"), parallelism or Parallelism(tp=2))


def op(name: str, part: str, seconds: float, bound: str, flop: float, hbm_bytes: float) -> OpCost:
    busy = tuple(seconds if r == bound else seconds / 10 for r in RESOURCES)
    return OpCost(name, part, "matmul", 4, seconds, busy, flop, hbm_bytes, 0.0)


def step(d: Deployment, batch: Batch, seconds: float, bound: str = "memory") -> Prediction:
    """A step of `seconds`: half of it attention, three tenths feed-forward, a fifth collectives."""
    ops = (
        op("qkv", "attention", seconds * 0.2, bound, 1e9, 1e8),
        op("attention", "attention", seconds * 0.3, bound, 2e9, 2e8),
        op("up", "ffn", seconds * 0.3, bound, 4e9, 1e8),
        op("all-reduce", "collectives", seconds * 0.2, "link", 0.0, 0.0),
    )
    return Prediction(
        deployment=d,
        batch=batch,
        seconds=Interval(seconds * 0.8, seconds, seconds * 1.25),
        interval=seconds / 2,
        lower=seconds / 2,
        upper=seconds * 2,
        bound=bound,
        mfu=0.07,
        mbu=0.4,
        intensity=17.5,
        flop=7e9,
        hbm_bytes=4e8,
        link_bytes=1e6,
        ops=ops,
    )


def service(
    d: Deployment | None = None,
    tpot: float = 0.02,
    concurrency: int = 16,
    notes: tuple[str, ...] = ("A note.",),
) -> Service:
    """Rates follow from TPOT: 16 requests at 20 ms are 800 tokens/s, 200 a chip, 50 a user."""
    d = d or deployed()
    time = Interval(tpot * 0.8, tpot, tpot * 1.25)
    rate = time.inverse(concurrency)
    return Service(
        deployment=d,
        isl=1024,
        osl=1024,
        concurrency=concurrency,
        tpot=time,
        prefill=Interval(0.1, 0.125, 0.2),
        tokens_per_s=rate,
        per_chip=rate.scaled(1 / d.chips),
        per_user=time.inverse(),
        dollars=Interval(1.0, 2.5, 4.0),
        per_megawatt=Interval(1e5, 2e5, 3e5),
        memory=MemoryUse(90e9, 30e9, 10e9, 50e9),
        room=1200,
        decode=step(d, Batch.decode(16, 1536), tpot / 2),
        prompt=step(d, Batch.prefill(1, 1024), 0.12, "tensor"),
        beyond_decode=(("host and engine", tpot / 5, "host"), ("prompts of others", tpot / 2 - tpot / 5, "tensor")),
        beyond_prompt=(("host and engine", 0.005, "host"),),
        notes=notes,
    )


def comparisons() -> tuple[Comparison, ...]:
    fast = service(deployed(on=chip("quick", "2 TB/s")), tpot=0.01)
    slow = replace(service(), dollars=None, per_megawatt=None)
    return (
        Comparison("quick:4", fast, ""),
        Comparison("toy:4", slow, ""),
        Comparison("tiny:1", None, "It needs 141 GB; 1 x tiny has 8 GB."),
    )


def planned() -> Plan:
    wide = service(deployed(parallelism=Parallelism(tp=4)), tpot=0.01, concurrency=4)
    front = (wide, service())
    return Plan(
        best=front[1],
        front=front,
        tried=12,
        refused=(("out of memory", 3), ("tp=3 does not divide the 8 heads", 1)),
    )


def swept() -> Sweep:
    points = [SweepPoint((1e12 * i,), service(tpot=0.02 / i), "") for i in (1, 2, 4)]
    return Sweep(("hbm.bandwidth",), (*points, SweepPoint((8e12,), None, "hbm.bandwidth is too fast.")))


def crossed() -> Sweep:
    points = tuple(
        SweepPoint((1e12 * i, 1e9 * j), service(tpot=0.02 / i + 0.001 / j), "")
        for i in (1, 2)
        for j in (1, 2, 4)
    )
    return Sweep(("hbm.bandwidth", "clock"), (*points[:-1], SweepPoint((2e12, 4e9), None, "too hot")))


def sensitivities() -> tuple[Sensitivity, ...]:
    return (
        Sensitivity("clock", "sustained clock of the tensor unit", -0.01, -0.08, "tensor"),
        Sensitivity("hbm.bandwidth", "bandwidth of the main memory", -0.062, -0.0001, "memory"),
        Sensitivity("host.bandwidth", "link to the host, per direction", 0.0, -0.0001, "memory"),
        Sensitivity(
            "link.latency", "time of one hop of a scale-up transfer, software included", 0.015, 0.0, "link"
        ),
    )
