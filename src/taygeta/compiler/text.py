"""Programs as text, and back: `parse(show(program)) == program` for every program.

    program gpt2-step on maia-100: 1 chip x 64 cores
    memory sram 4000000
    table ids 16 0
    buffer x shared 0 36864 16x768 bf16 scratch
    semaphore w.full core 0
    loop layer 12
      phase qkv attention
      load   dma w.0[0:+36, 0:+256] <- qkv[layer, core, 0:+36, 0:+256] cores=64
      load   signal w.full
      tensor matmul acc[0:+16, 0:+36] <- a[0:+16, 0:+256], w.0[0:+36, 0:+256] mode=mx9 add=1
    end

An index is `start:+extent`, or `start` alone where the axis is dropped; start is a sum such as 4*core/16+2*layer+8.
`ids(0:+16)` picks the elements that a table lists; `?` marks an axis that has as many as this turn's list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from taygeta.base.errors import InputError
from taygeta.compiler.program import (
    ENGINES,
    ROLES,
    SPACES,
    Box,
    Buffer,
    Index,
    Instruction,
    Item,
    Loop,
    Phase,
    Program,
    Semaphore,
    Table,
    Value,
)

MAX_TEXT = 64 * 1024 * 1024
MAX_DEPTH = 8
MAX_NUMBER = 1 << 62

_NAME = r"[A-Za-z_][\w.\-]*"
_BOX = re.compile(r"([\w.\-]+)\[([^\]]*)\]")
_TERM = re.compile(rf"(?:(\d+)\*)?({_NAME}(?:/\d+)?(?:%\d+)?)|(\d+)")
_INDEX = re.compile(rf"(?:({_NAME})\()?([^():?]+?)(?::\+(\d+))?(\?)?(\))?")
_HEAD = re.compile(rf"program (.+) on ({_NAME}): (\d+) chips? x (\d+) cores?")
_WHEN = re.compile(rf"({_NAME})\+(\d+)\*chip")
_ATTRIBUTE = re.compile(rf'({_NAME})=("(?:[^"\\]|\\.)*"|\S+)')


def show(program: Program) -> str:
    """Return the program as text, one instruction a line."""
    plural = "" if program.chips == 1 else "s"
    cores = "" if program.cores == 1 else "s"
    lines = [
        f"program {program.name} on {program.chip}: {program.chips} chip{plural} x {program.cores} core{cores}",
        *(f"memory {space} {size}" for space, size in program.memory.items()),
        *(f"table {t.name} {t.length} {t.lists}" for t in program.tables),
    ]
    for b in program.buffers:
        shape = "x".join(map(str, b.shape))
        lines.append(f"buffer {b.name} {b.space} {b.offset} {b.bytes} {shape} {b.format} {b.role}")
    lines += [f"semaphore {s.name} {s.scope} {s.initial}" for s in program.semaphores]
    _body(program.body, 0, lines)
    return "\n".join(lines) + "\n"


def _body(body: Iterable[Item], depth: int, lines: list[str]) -> None:
    space = "  " * depth
    for item in body:
        if isinstance(item, Phase):
            lines.append(f"{space}phase {item.name} of {item.part}")
        elif isinstance(item, Loop):
            when = f" when {item.when}+{item.lists_from}*chip" if item.when else ""
            lines.append(f"{space}loop {item.variable} {item.count}{when}")
            _body(item.body, depth + 1, lines)
            lines.append(f"{space}end")
        else:
            lines.append(space + line_of(item))


def line_of(i: Instruction) -> str:
    """Return the line of one instruction."""
    text = f"{i.engine:<6} {i.kind}"
    if i.semaphore:
        text += f" {i.semaphore}"
    if i.outputs:
        text += f" {', '.join(map(_box, i.outputs))}"
    if i.inputs:
        text += f" <- {', '.join(map(_box, i.inputs))}"
    attributes = (("cores", i.cores), *i.attributes)
    return text + "".join(f" {name}={_value(value)}" for name, value in attributes)


def _value(value: Value) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _box(box: Box) -> str:
    return f"{box.buffer}[{', '.join(map(_index, box.indices))}]"


def _index(index: Index) -> str:
    terms = [name if count == 1 else f"{count}*{name}" for name, count in index.steps]
    if index.start or not terms:
        terms.append(str(index.start))
    text = "+".join(terms) + (f":+{index.extent}" if index.extent else "") + ("?" if index.ragged else "")
    return f"{index.table}({text})" if index.table else text


def parse(text: str) -> Program:
    """Return the program of a text. Raises InputError that names the line and what it should be."""
    if len(text) > MAX_TEXT:
        raise InputError(f"The program has {len(text):,} characters; {MAX_TEXT:,} are the most that is read.")
    return _Reader(text).program()


class _Reader:
    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.at = 0

    def fail(self, wanted: str) -> InputError:
        found = self.lines[self.at].strip() if self.at < len(self.lines) else "the end of the text"
        return InputError(f"Program, line {self.at + 1}: must be {wanted}, not {found[:80]!r}.")

    def program(self) -> Program:
        head = _HEAD.fullmatch(self.lines[0])
        if head is None:
            raise self.fail("'program NAME on CHIP: 1 chip x 64 cores'")
        self.at = 1
        memory = {w[1]: self.number(w[2]) for w in self.section("memory", 3)}
        if not set(memory) <= set(SPACES):
            raise InputError(f"Program: a memory must be one of {', '.join(SPACES)}, not {', '.join(memory)}.")
        tables = tuple(Table(w[1], self.number(w[2]), self.number(w[3])) for w in self.section("table", 4))
        buffers = tuple(self.buffer(w) for w in self.section("buffer", 8))
        semaphores = tuple(self.semaphore(w) for w in self.section("semaphore", 4))
        body = self.body(0)
        for what, names in (("buffer", [b.name for b in buffers]), ("semaphore", [s.name for s in semaphores])):
            if len(set(names)) < len(names):
                raise InputError(f"Program: every {what} needs a name of its own.")
        return Program(
            head[1], head[2], self.number(head[3]), self.number(head[4]), memory, tables, buffers, semaphores, body
        )

    def section(self, word: str, length: int) -> Iterable[list[str]]:
        """Yield the words of the lines that begin with `word`."""
        while self.at < len(self.lines) and self.lines[self.at].startswith(word + " "):
            words = self.lines[self.at].split(" ")
            if len(words) != length:
                raise self.fail(f"{word} and {length - 1} more words")
            yield words
            self.at += 1

    def number(self, word: str) -> int:
        if not (word.isascii() and word.isdigit()) or len(word) > 19 or int(word) > MAX_NUMBER:
            raise self.fail(f"a line with a whole number in place of {word[:30]!r}")
        return int(word)

    def buffer(self, w: list[str]) -> Buffer:
        if w[2] not in SPACES or w[7] not in ROLES:
            raise self.fail("'buffer NAME SPACE OFFSET BYTES SHAPE FORMAT ROLE'")
        shape = tuple(self.number(n) for n in w[5].split("x"))
        return Buffer(w[1], w[2], self.number(w[3]), self.number(w[4]), shape, w[6], w[7])

    def semaphore(self, w: list[str]) -> Semaphore:
        if w[2] not in ("core", "chip"):
            raise self.fail("'semaphore NAME core|chip INITIAL'")
        return Semaphore(w[1], w[2], self.number(w[3]))

    def body(self, depth: int) -> tuple[Item, ...]:
        if depth > MAX_DEPTH:
            raise self.fail(f"loops that are nested {MAX_DEPTH} deep at most")
        out: list[Item] = []
        while self.at < len(self.lines):
            words = self.lines[self.at].split()
            if not words:
                self.at += 1
            elif words[0] == "end" and depth:
                return tuple(out)
            elif words[0] == "loop":
                out.append(self.loop(words, depth))
            elif words[0] == "phase" and len(words) > 3 and words[2] == "of":
                out.append(Phase(words[1], " ".join(words[3:])))
                self.at += 1
            else:
                out.append(self.instruction(self.lines[self.at].strip()))
                self.at += 1
        if depth:
            raise self.fail("'end', for a loop is open")
        return tuple(out)

    def loop(self, words: list[str], depth: int) -> Loop:
        if len(words) not in (3, 5) or (len(words) == 5 and words[3] != "when"):
            raise self.fail("'loop VARIABLE COUNT' or 'loop VARIABLE COUNT when TABLE+NUMBER*chip'")
        count = self.number(words[2])
        table = _WHEN.fullmatch(words[4]) if len(words) == 5 else None
        if len(words) == 5 and table is None:
            raise self.fail("'loop VARIABLE COUNT when TABLE+NUMBER*chip'")
        when = (table[1], self.number(table[2])) if table else ("", 0)
        self.at += 1
        body = self.body(depth + 1)
        self.at += 1
        return Loop(words[1], count, body, *when)

    def instruction(self, line: str) -> Instruction:
        engine, _, rest = line.partition(" ")
        kind, _, rest = rest.strip().partition(" ")
        if engine not in ENGINES or not kind:
            raise self.fail(f"an instruction of one of the engines {', '.join(ENGINES)}")
        # Neither operands nor semaphores hold a "=", texts of attributes may hold anything.
        last = f" {rest}".find(" cores=")
        if last < 0:
            raise self.fail("an instruction with cores=N after its operands")
        operands, tail = rest[:last].rstrip(), rest[last:].strip()
        semaphore = ""
        if kind in ("wait", "signal"):
            semaphore, operands = operands, ""
        attributes = self.attributes(tail)
        if not attributes or attributes[0][0] != "cores" or not isinstance(attributes[0][1], int):
            raise self.fail("an instruction with cores=N after its operands")
        outputs, _, inputs = operands.partition("<-")
        return Instruction(
            engine, kind, attributes[0][1], self.boxes(outputs), self.boxes(inputs), attributes[1:], semaphore
        )

    def attributes(self, text: str) -> tuple[tuple[str, Value], ...]:
        out: list[tuple[str, Value]] = []
        at = 0
        for match in _ATTRIBUTE.finditer(text):
            if text[at : match.start()].strip():
                raise self.fail("attributes written name=value")
            at = match.end()
            out.append((match[1], self.value(match[2])))
        if text[at:].strip():
            raise self.fail("attributes written name=value")
        return tuple(out)

    def value(self, word: str) -> Value:
        try:
            value = json.loads(word) if word.startswith('"') else float(word)
        except ValueError:
            raise self.fail(f"a number or a quoted text in place of {word[:30]!r}") from None
        return int(word) if re.fullmatch(r"-?\d{1,18}", word) else value

    def boxes(self, text: str) -> tuple[Box, ...]:
        out: list[Box] = []
        at = 0
        for match in _BOX.finditer(text):
            if text[at : match.start()].strip(" ,"):
                raise self.fail("operands written buffer[index, ...]")
            at = match.end()
            out.append(Box(match[1], tuple(self.index(word.strip()) for word in match[2].split(","))))
        if text[at:].strip():
            raise self.fail("operands written buffer[index, ...]")
        return tuple(out)

    def index(self, word: str) -> Index:
        match = _INDEX.fullmatch(word)
        if match is None or bool(match[1]) != bool(match[5]):
            raise self.fail("an index 'start' or 'start:+extent'")
        start, steps = 0, []
        for term in match[2].split("+"):
            found = _TERM.fullmatch(term)
            if found is None:
                raise self.fail("a start that is a sum of numbers and NUMBER*VARIABLE")
            if found[3]:
                start += self.number(found[3])
            else:
                steps.append((found[2], self.number(found[1]) if found[1] else 1))
        extent = self.number(match[3]) if match[3] else 0
        return Index(start, extent, tuple(steps), match[1] or "", bool(match[4]))
