"""Form and bounds: what can be said of each instruction by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from taygeta.base.errors import InputError, UnknownNameError
from taygeta.compiler.instructions import KINDS, matmul_shape
from taygeta.compiler.program import ENGINES, ROLES, SPACES, Box, Buffer, Index, Instruction, Item, Loop, Program
from taygeta.compiler.target import stored_bytes
from taygeta.compiler.work import digit, variable

NAME = re.compile(r"[\w.\-]+")
VARIABLE = re.compile(r"([A-Za-z_][\w.\-]*)(/[1-9]\d{0,9})?(%[1-9]\d{0,9})?")
MAX_CORES, MAX_TURNS, MAX_AXES = 4096, 1 << 24, 6


class FaultError(Exception):
    """What is wrong, and the number of the instruction in the listing (None: a declaration)."""

    def __init__(self, text: str, at: int | None = None) -> None:
        super().__init__(text)
        self.at = at


def check_form(program: Program) -> None:
    """Check declarations, then every instruction by itself, then who gives and takes semaphores. Raises FaultError."""
    _declarations(program)
    _outputs(program)
    givers: dict[str, str] = {}
    takers: dict[str, str] = {}
    scopes = {s.name: s.scope for s in program.semaphores}
    for at, (i, loops) in enumerate(walk(program.body, ())):
        try:
            _instruction(i, program)
            for operand in (*i.outputs, *i.inputs):
                _box(operand, _shape(operand, program), i, program, loops)
            if i.kind in ("wait", "signal"):
                _semaphore(i, scopes, program, givers, takers)
        except FaultError as fault:
            raise FaultError(str(fault), at) from None
        except InputError as error:
            raise FaultError(str(error).rstrip("."), at) from None


def _outputs(program: Program) -> None:
    """Check that somebody writes what the host reads."""
    written = {b.buffer for i in program.instructions() for b in i.outputs}
    for b in program.buffers:
        if b.role == "output" and b.name not in written:
            raise FaultError(f"nothing writes the output {b.name}")


def walk(body: Sequence[Item], loops: tuple[Loop, ...]) -> Iterator[tuple[Instruction, tuple[Loop, ...]]]:
    """Yield every instruction of a listing with the loops around it, outermost first."""
    for item in body:
        if isinstance(item, Loop):
            yield from walk(item.body, (*loops, item))
        elif isinstance(item, Instruction):
            yield item, loops


def _declarations(program: Program) -> None:
    if not 1 <= program.cores <= MAX_CORES or not 1 <= program.chips <= MAX_CORES:
        raise FaultError(f"it must have 1 to {MAX_CORES} cores and chips, not {program.cores} and {program.chips}")
    for what, names in (
        ("buffer", [b.name for b in program.buffers]), ("semaphore", [s.name for s in program.semaphores]),
        ("table", [t.name for t in program.tables]),
    ):  # fmt: skip
        wrong = [n for n in names if not NAME.fullmatch(n)] or [n for n in set(names) if names.count(n) > 1]
        if wrong:
            raise FaultError(
                f"every {what} must have a name of its own of letters, digits, '_', '.' and '-', not {wrong[0]!r}"
            )
    for b in program.buffers:
        _buffer(b, program.memory)
    for s in program.semaphores:
        if s.scope not in ("core", "chip") or s.initial < 0:
            raise FaultError(
                f"the semaphore {s.name} must have scope core or chip and no negative start, not {s.scope}"
            )
    _loops(program.body, (), program)


def _buffer(b: Buffer, memory: Mapping[str, int]) -> None:
    if b.space not in SPACES or b.space not in memory:
        raise FaultError(f"buffer {b.name} lies in {b.space}; there is {', '.join(memory)}")
    if b.role not in ROLES or not b.shape or min(b.shape) < 1 or len(b.shape) > MAX_AXES:
        raise FaultError(f"buffer {b.name} must have one of the roles {', '.join(ROLES)} and 1 to {MAX_AXES} axes")
    if b.role != "scratch" and b.space == "sram":
        raise FaultError(f"buffer {b.name} must be scratch, not {b.role}: nobody but its core sees sram")
    elements = 1
    for n in b.shape:
        elements *= n
    try:
        least = 4 * elements if b.format == "int32" else stored_bytes(b.format, elements, b.shape[-1])
    except UnknownNameError as error:
        raise FaultError(f"buffer {b.name}: {str(error).rstrip('.')}") from None
    if b.bytes < least:
        raise FaultError(f"buffer {b.name} needs {least:,} bytes for its shape, not {b.bytes:,}")
    if b.offset < 0 or b.offset + b.bytes > memory[b.space]:
        raise FaultError(
            f"buffer {b.name} ends at byte {b.offset + b.bytes:,} of {b.space}, which has {memory[b.space]:,}"
        )


def _loops(body: Sequence[Item], outer: tuple[str, ...], program: Program) -> None:
    tables = {t.name: t for t in program.tables}
    for loop in body:
        if not isinstance(loop, Loop):
            continue
        if loop.variable in (*outer, "core", "chip") or not VARIABLE.fullmatch(loop.variable):
            raise FaultError(f"a loop's variable must be a name that no loop around it has, not {loop.variable!r}")
        if not 0 <= loop.count <= MAX_TURNS:
            raise FaultError(f"the loop {loop.variable} must have 0 to {MAX_TURNS:,} turns, not {loop.count:,}")
        if loop.when:
            wanted = loop.count + loop.lists_from * (program.chips - 1)
            if loop.when not in tables or tables[loop.when].lists < wanted or loop.lists_from < 0:
                raise FaultError(f"the loop {loop.variable} walks {wanted} lists of {loop.when}, which has not as many")
        _loops(loop.body, (*outer, loop.variable), program)


def _instruction(i: Instruction, program: Program) -> None:
    kind = KINDS.get(i.kind)
    if kind is None:
        raise FaultError(f"the kind must be one of {', '.join(KINDS)}, not {i.kind!r}")
    if i.engine not in ENGINES or i.engine not in kind.engines:
        raise FaultError(f"{i.kind} runs on {', '.join(kind.engines)}, not on {i.engine}")
    if not 1 <= i.cores <= program.cores:
        raise FaultError(f"it must run on 1 to {program.cores} cores, not {i.cores}")
    for what, boxes, (least, most) in (("inputs", i.inputs, kind.inputs), ("outputs", i.outputs, kind.outputs)):
        if not least <= len(boxes) <= most:
            raise FaultError(f"{i.kind} has {least} to {most} {what}, not {len(boxes)}")
    for operand in (*i.outputs, *i.inputs):
        if operand.buffer not in program.by_name and (operand in i.outputs or not is_table(operand, program)):
            raise FaultError(f"there is no buffer {operand.buffer}")
    spaces = [program.buffer(b.buffer).space for b in (*i.outputs, *i.inputs) if not is_table(b, program)]
    if kind.local and set(spaces) - {"sram"}:
        raise FaultError(f"{i.kind} works on sram only, not on {', '.join(spaces)}")
    for operand in i.outputs:
        if program.buffer(operand.buffer).role in ("constant", "input"):
            raise FaultError(f"{operand.buffer} is {program.buffer(operand.buffer).role} and is not written")
    SHAPES.get(i.kind, _any)(i, program)


def _any(i: Instruction, program: Program) -> None:
    pass


def _transfer(i: Instruction, program: Program) -> None:
    if is_table(i.inputs[0], program):
        raise FaultError(f"{i.inputs[0].buffer} is a table, which is not moved")
    out, source = program.buffer(i.outputs[0].buffer), program.buffer(i.inputs[0].buffer)
    if out.format != source.format or i.outputs[0].elements != i.inputs[0].elements:
        raise FaultError(
            f"a transfer moves as many elements of one format, not {i.inputs[0].elements:,} of {source.format} to"
            f" {i.outputs[0].elements:,} of {out.format}"
        )
    if i.kind == "send":
        hop = i.attribute("hop", 1)
        if out.space == "sram" or not isinstance(hop, int) or not 0 < hop < program.chips:
            raise FaultError(
                f"a send goes to shared or hbm of a chip 1 to {program.chips - 1} hops on, not to {out.space}, {hop} on"
            )
    elif (i.engine == "store") != (source.space == "sram") or (i.engine == "store") == (out.space == "sram"):
        raise FaultError(
            f"{i.engine} moves {'out of' if i.engine == 'store' else 'into'} sram, not {source.space} to {out.space}"
        )


def _receive(i: Instruction, program: Program) -> None:
    hop = i.attribute("hop", 1)
    if not isinstance(hop, int) or not 0 < hop < program.chips:
        raise FaultError(f"a receive must come from 1 to {program.chips - 1} hops away, not {hop}")


def _multiply(i: Instruction, program: Program) -> None:
    matmul_shape(i)


def _same(i: Instruction, program: Program) -> None:
    counts = {b.elements for b in (*i.outputs[:1], *i.inputs[:1])}
    if len(counts) > 1:
        raise FaultError(
            f"{i.kind} has as many results as elements, not {i.outputs[0].elements:,} of {i.inputs[0].elements:,}"
        )


SHAPES: dict[str, Callable[[Instruction, Program], None]] = {
    "dma": _transfer, "send": _transfer, "receive": _receive, "matmul": _multiply, "copy": _same, "quantise": _same,
    "activate": _same, "norm": _same,
}  # fmt: skip


def _semaphore(
    i: Instruction, scopes: Mapping[str, str], program: Program, givers: dict[str, str], takers: dict[str, str]
) -> None:
    scope = scopes.get(i.semaphore)
    if scope is None:
        raise FaultError(f"there is no semaphore {i.semaphore!r}")
    if i.kind == "signal":
        if givers.setdefault(i.semaphore, i.engine) != i.engine:
            raise FaultError(
                f"{i.semaphore} is signalled by {givers[i.semaphore]} already; a semaphore has one such engine"
            )
        if scope == "chip" and i.cores != program.cores:
            raise FaultError(f"{i.semaphore} waits for all {program.cores} cores, so all must signal, not {i.cores}")
    elif scope == "core" and takers.setdefault(i.semaphore, i.engine) != i.engine:
        raise FaultError(
            f"{takers[i.semaphore]} waits for {i.semaphore} already; a semaphore of a core has one such engine"
        )


def is_table(box: Box, program: Program) -> bool:
    """Return whether an operand is numbers of a table of one list, which instructions of a core may read."""
    return box.buffer not in program.by_name and any(t.name == box.buffer and not t.lists for t in program.tables)


def _shape(box: Box, program: Program) -> tuple[int, ...]:
    """Return the shape of the buffer or table of an operand."""
    if is_table(box, program):
        return (next(t.length for t in program.tables if t.name == box.buffer),)
    return program.buffer(box.buffer).shape


def _box(box: Box, shape: tuple[int, ...], i: Instruction, program: Program, loops: tuple[Loop, ...]) -> None:
    if len(box.indices) != len(shape):
        raise FaultError(f"{box.buffer} has {len(shape)} axes, not {len(box.indices)}")
    for axis, (index, size) in enumerate(zip(box.indices, shape, strict=True)):
        where = f"axis {axis} of {box.buffer}"
        if index.start < 0 or index.extent < 0 or any(step < 0 for _, step in index.steps):
            raise FaultError(f"{where}: no start, step or extent may be negative")
        last = index.start + most(index, i, program, loops) + index.count
        if index.ragged and not any(loop.when for loop in loops):
            raise FaultError(f"{where} is as long as a list, so it must be in a loop over lists")
        limit = size
        if index.table:
            found = [t for t in program.tables if t.name == index.table]
            if not found:
                raise FaultError(f"{where}: there is no table {index.table}")
            limit = found[0].length
        if last > limit:
            whose = f"the table {index.table}" if index.table else "it"
            raise FaultError(f"{where}: reaches element {last:,}, and {whose} has {limit:,}")


def most(index: Index, i: Instruction, program: Program, loops: tuple[Loop, ...]) -> int:
    """Return the most that the steps of an index add to its start, over cores, chips and turns. Raises FaultError."""
    ranges = {"core": i.cores, "chip": program.chips, **{loop.variable: loop.count for loop in loops}}
    by_variable: dict[str, list[tuple[str, int]]] = {}
    for name, step in index.steps:
        if not VARIABLE.fullmatch(name) or variable(name) not in ranges:
            raise FaultError(f"{name!r} is neither core, chip nor the variable of a loop around it")
        by_variable.setdefault(variable(name), []).append((name, step))
    return sum(_most(tuple(steps), ranges[v]) for v, steps in by_variable.items())


@lru_cache(maxsize=1 << 14)
def _most(steps: tuple[tuple[str, int], ...], count: int) -> int:
    """Return the largest sum of steps over the values 0 to count - 1 of their variable."""
    if len(steps) == 1 and "/" not in steps[0][0] and "%" not in steps[0][0]:
        return steps[0][1] * max(0, count - 1)
    return max((sum(step * digit(name, value) for name, step in steps) for value in range(count)), default=0)
