"""taygeta compile: a model's tile program for a chip, as text or in a summary."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taygeta.app.options import Json, ModelName, Settings, parse_settings
from taygeta.app.output import emit
from taygeta.app.run import ActivationFormat, CacheFormat, ChipOfTiles, Format
from taygeta.base.errors import InputError

if TYPE_CHECKING:
    from taygeta.compiler.compile import Compiled
    from taygeta.spec.deployment import Deployment

MOST = 1 << 20

Requests = Annotated[int, typer.Option(help="Sequences in the step.")]
New = Annotated[int, typer.Option(help="New tokens of each sequence: 1 decodes, more are a prompt.")]
ContextOption = Annotated[int, typer.Option("--context", help="Cached tokens of each sequence.")]
Print = Annotated[bool, typer.Option("--print", help="Print the program instead of what it says in sum.")]


def compile_model(
    model: ModelName,
    chip: ChipOfTiles = "maia-100",
    requests: Requests = 1,
    new: New = 1,
    context: ContextOption = 1023,
    weights: Format = None,
    activations: ActivationFormat = None,
    kv: CacheFormat = None,
    settings: Settings = None,
    print_program: Print = False,
    as_json: Json = False,
) -> None:
    """Compile one step of a model to the chip's tile program, verify it and time it.

    Example: taygeta compile meta-llama/Llama-3.1-70B --chip maia-100:8 --requests 16 --context 2048 --print
    """
    from taygeta import api
    from taygeta.compiler.compile import compile_step
    from taygeta.compiler.text import show
    from taygeta.machine.session import check_deployment
    from taygeta.spec.deployment import Batch, Group

    for word, value, least in (("--requests", requests, 1), ("--new", new, 1), ("--context", context, 0)):
        if not least <= value <= MOST:
            raise InputError(f"{word} must be {least} to {MOST:,}, not {value:,}.")
    found = parse_settings(settings or ())
    d = api.deploy(model, chip, weights=weights, activations=activations, kv=kv, settings=found)
    check_deployment(d)
    if context + new > d.model.max_context:
        raise InputError(
            f"{context + new:,} tokens exceed the context of {d.model.name}, {d.model.max_context:,} tokens."
        )
    begin = time.perf_counter()
    compiled = compile_step(d, Batch((Group(requests, new, context),)))
    took = time.perf_counter() - begin
    if print_program:
        sys.stdout.write(show(compiled.program) + "\n")
        return
    summary = _summary(d, compiled, took)
    emit(lambda: _view(d, compiled, summary), lambda: summary, as_json)


def _summary(d: Deployment, compiled: Compiled, took: float) -> dict[str, Any]:
    """What a program holds and takes, in SI units."""
    from taygeta.compiler.program import Loop
    from taygeta.compiler.verify import ProgramError, verify
    from taygeta.machine.routing import expected_routing
    from taygeta.machine.timed import time_program
    from taygeta.report.words import chips_of

    p = compiled.program
    begin = time.perf_counter()
    try:
        verify(p)
        verified = "yes"
    except ProgramError as error:
        verified = f"no: {error}"
    checked = time.perf_counter() - begin
    begin = time.perf_counter()
    timeline = time_program(p, compiled.target, expected_routing(compiled, d.model, d.skew), spans=0)
    items = list(_items(p.body))
    return {
        "model": d.model.name, "chips": chips_of(d), "program": p.name, "requests": compiled.requests,
        "new_tokens": compiled.new, "cache_rows": compiled.capacity, "phases": len(timeline.phases),
        "instructions": sum(1 for _ in p.instructions()), "loops": sum(isinstance(i, Loop) for i in items),
        "executed_instructions": timeline.instructions, "semaphores": len(p.semaphores),
        "bytes": {space: _used(compiled, space) for space in p.memory}, "memory_bytes": dict(p.memory),
        "verified": verified, "timed_s": timeline.seconds, "clocks": timeline.cycles,
        "busy": {e: timeline.utilisation(e) for e in dict.fromkeys(u.engine for u in timeline.engines)},
        "parts_s": timeline.parts(), "compile_s": took, "verify_s": checked, "time_s": time.perf_counter() - begin,
    }  # fmt: skip


def _items(body: Any) -> Any:
    from taygeta.compiler.program import Loop

    for item in body:
        yield item
        if isinstance(item, Loop):
            yield from _items(item.body)


def _used(compiled: Compiled, space: str) -> int:
    """Bytes of a memory from its start to the end of the last buffer."""
    return max((b.offset + b.bytes for b in compiled.program.buffers if b.space == space), default=0)


def _view(d: Deployment, compiled: Compiled, s: dict[str, Any]) -> Any:
    from taygeta.report.view import Column, Fact, Grid, View, cells
    from taygeta.report.words import chips_of, formats_of, percent, seconds, size

    names = {"sram": "scratchpad of a core", "shared": "shared memory", "hbm": "main memory"}
    facts = [
        Fact("step", f"{s['requests']} x {s['new_tokens']}", f"new tokens; KV caches of {s['cache_rows']:,} rows"),
        Fact("listing", f"{s['instructions']:,}", f"instructions in {s['phases']} phases, {s['loops']} loops"),
        Fact("run by a core", f"{s['executed_instructions']:,}", "instructions, waits and signals included"),
        *(
            Fact(names[space], size(s["bytes"][space]), f"of {size(full)} used")
            for space, full in s["memory_bytes"].items()
        ),
        Fact("verified", s["verified"].partition(":")[0], s["verified"].partition(": ")[2]),
        Fact("timed", seconds(s["timed_s"]), f"{s['clocks']:,.0f} clocks"),
        Fact("compiled in", seconds(s["compile_s"]), f"verified in {seconds(s['verify_s'])}"),
    ]  # fmt: skip
    parts = sorted(s["parts_s"].items(), key=lambda item: -item[1])
    rows = [cells(name, seconds(t), percent(t / s["timed_s"])) for name, t in parts if t > 0.0]
    busy = [cells(name, percent(share)) for name, share in s["busy"].items()]
    grids = (
        Grid("Where the time goes", (Column("part", numeric=False), Column("time"), Column("share")), tuple(rows)),
        Grid("Engines", (Column("engine", numeric=False), Column("busy")), tuple(busy)),
    )
    return View(
        f"{s['program']} for {chips_of(d)}", (formats_of(d),), "", tuple(facts), grids, ("--print shows the program.",)
    )
