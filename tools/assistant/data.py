"""Questions and answers about the catalogue, drawn from a seed: `python -m tools.assistant.data 20` prints twenty.

A question is right in one way only: its answer is a function of the catalogue, and of nothing drawn. What is asked in
the held-out part is never in the trained part: no wording of it, and for questions about two entities neither the pair
(with its field) in any wording; the made-up names in it are never trained on either.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from zlib import crc32

from tools.assistant import more_wordings
from tools.assistant import wordings as w
from tools.assistant.facts import (
    CHIP_SENTENCES,
    MODEL_SENTENCES,
    WEIGHT_FORMATS,
    Entity,
    chips,
    formats,
    glossary,
    models,
)

NO_NAME = "I do not know: that name is not in the catalogue."
NO_FIELD = "I do not know: the catalogue does not say that."
NO_TOPIC = "I do not know: ask me about chips, models and formats."
INTRODUCTION = "I am the assistant of Taygeta: ask me about chips, models and formats."

COMPARED = ("memory", "bandwidth", "power", "year", "peak bf16", "peak fp8", "link", "cores")
COMPARED_MODELS = ("parameters", "active", "layers", "context", "vocabulary")
SUBTRACTED = {"memory": "GiB", "power": "W", "year": "years"}
COUNTS = (1, 2, 4, 8)
# Names of real chips and models that the catalogue may lack; one that it has is not asked as unknown.
REAL = (
    "V100", "T4", "H20", "B100", "L40", "P100", "A30", "A10", "RTX 4090", "RTX 3090", "MI250X", "MI100", "MI308X",
    "TPU v1", "TPU v8", "Gaudi", "Cerebras WSE-3", "Trainium", "Maia 300", "Graphcore IPU", "Ascend 910B", "M4 Max",
    "GPT-5", "Claude", "Gemini", "Mistral Large", "Falcon-40B", "Yi-34B", "OPT-175B", "BLOOM", "PaLM", "Grok-1",
    "DeepSeek-V2", "Qwen2-72B", "Phi-3-mini", "Gemma-3-27B", "Llama-4-Maverick", "Command-R", "BERT", "T5-11B",
)  # fmt: skip
_SYLLABLES = ("ka", "lor", "vex", "zen", "mi", "tor", "qua", "dri", "pha", "nex", "or", "ly", "sta", "ru", "bel", "ox")
_MAKERS = ("", "", "NVIDIA ", "AMD ", "Google ", "Intel ", "Microsoft ", "AWS ")


@dataclass(frozen=True)
class Example:
    """One question with its only right answer. kind: what the score is counted by."""

    kind: str
    question: str
    answer: str


class Draw:
    """Questions of one part of the data, drawn from a seed. held_out: the part that is never trained on."""

    def __init__(self, seed: int, held_out: bool = False) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a reproducible draw, no secret
        self.held_out = held_out
        self._kinds = [kind for kind, _, _ in KINDS]
        self._shares = [shares[held_out] for _, shares, _ in KINDS]
        self._makers = {kind: make for kind, _, make in KINDS}

    def example(self, kind: str | None = None) -> Example:
        """Return the next example, of one kind where it is given."""
        kind = kind or self.random.choices(self._kinds, self._shares)[0]
        question, answer = self._makers[kind](self)
        return Example(kind, self.styled(question), answer)

    def wording(self, wordings: tuple[str, ...]) -> str:
        """Return one of the wordings of this part."""
        if self.held_out:
            return self.one(w.held_out(wordings))
        return self.one((*w.trained(wordings), *more_wordings.ADDED.get(wordings, ())))

    def one(self, items: Sequence[str]) -> str:
        """Return one of the items."""
        return items[self.random.randrange(len(items))]

    def mine(self, *key: str) -> bool:
        """Return whether a combination belongs to this part: one in eight is held out."""
        return (crc32("|".join(key).encode()) % 8 == 0) == self.held_out

    def entity(self, entities: Sequence[Entity]) -> Entity:
        """Return one of the entities."""
        return entities[self.random.randrange(len(entities))]

    def called(self, entity: Entity) -> str:
        """Return a name of an entity: half of the time the usual one."""
        return entity.name if self.random.random() < 0.5 else self.one(entity.names)

    def styled(self, question: str) -> str:
        """Return a question as people type: sometimes without its mark, without capitals, or with a word before it."""
        drawn = self.random.random()
        if drawn < 0.1 and question.endswith(("?", ".")):
            return question[:-1]
        if drawn < 0.18:
            return question[:1].lower() + question[1:]
        if drawn < 0.22:
            return "Please: " + question
        return question


def _noun(name: str) -> tuple[str, str]:
    """Return the key of a field's wordings, and the format in its name."""
    first, _, f = name.partition(" ")
    return (first, f) if first in ("peak", "weights") else (name, "")


def _called_field(draw: Draw, name: str) -> str:
    key, f = _noun(name)
    return draw.one(w.NOUNS[key]).format(f=f)


def fact_question(draw: Draw, name: str, spoken: str) -> str:
    """Return a question for one field of what is called `spoken`."""
    key, f = _noun(name)
    if draw.random.random() < 0.5:
        return draw.wording(w.OWN[key]).format(e=spoken, f=f)
    return draw.wording(w.FACT).format(e=spoken, n=_called_field(draw, name))


def _fact(entities: Callable[[], tuple[Entity, ...]]) -> Callable[[Draw], tuple[str, str]]:
    def make(draw: Draw) -> tuple[str, str]:
        e = draw.entity(entities())
        name = draw.one(tuple(e.values))
        if e.values[name] is None and draw.random.random() < 0.6:  # fewer of the modes that a chip lacks
            name = draw.one([n for n, value in e.values.items() if value is not None])
        return fact_question(draw, name, draw.called(e)), e.says(name)

    return make


def _pair(draw: Draw, entities: Sequence[Entity], names: Sequence[str], key: str) -> tuple[Entity, Entity, str]:
    """Return two entities and a field that both state, from the combinations of this part."""
    while True:
        name = draw.one(names)
        a, b = draw.entity(entities), draw.entity(entities)
        if a is b or a.number(name) is None or b.number(name) is None:
            continue
        if draw.mine(key, name, *sorted((a.name, b.name))):
            return a, b, name


def _compare(entities: Callable[[], tuple[Entity, ...]], names: Sequence[str]) -> Callable[[Draw], tuple[str, str]]:
    def make(draw: Draw) -> tuple[str, str]:
        a, b, name = _pair(draw, entities(), names, "compare")
        spoken = {"a": draw.called(a), "b": draw.called(b), "n": _called_field(draw, name)}
        question = draw.wording(w.NEWER if name == "year" else w.COMPARE).format(**spoken)
        first, second = a.number(name) or 0.0, b.number(name) or 0.0
        word = "Newer" if name == "year" else "More"
        end = "Equal." if first == second else f"{word}: {(a if first > second else b).name}."
        return question, f"{a.says(name)} {b.says(name)} {ordered(_bare(a, name), _bare(b, name))} {end}"

    return make


def _bare(e: Entity, name: str) -> str:
    """Return a number as the sentence of the fact writes it, without its "about"."""
    return (e.values[name] or "").removeprefix("about ")


def ordered(first: str, second: str) -> str:
    """Return two numbers in order, the larger one first."""
    if float(first) == float(second):
        return f"{first} = {second}."
    high, low = (first, second) if float(first) > float(second) else (second, first)
    return f"{high} > {low}."


def _whole(entities: Sequence[Entity], name: str) -> list[Entity]:
    """Entities whose number is published, whole and not under 10."""
    return [e for e in entities if (e.values[name] or "").isdecimal() and int(e.values[name] or 0) >= 10]


def _difference(draw: Draw) -> tuple[str, str]:
    name = draw.one((*SUBTRACTED, "memory", "layers"))
    a, b, _ = _pair(draw, _whole(models() if name == "layers" else chips(), name), (name,), "difference")
    question = draw.wording(w.DIFFERENCE).format(a=draw.called(a), b=draw.called(b), n=_called_field(draw, name))
    high, low = sorted((int(a.number(name) or 0), int(b.number(name) or 0)), reverse=True)
    unit = SUBTRACTED.get(name, name)
    return question, f"{a.says(name)} {b.says(name)} {high} - {low} = {high - low} {unit}."


def divided(high: int, low: int) -> str:
    """Return a quotient as the assistant says it: one decimal below 10, whole from there on; halves up."""
    tenths = (20 * high + low) // (2 * low)
    return f"{tenths // 10}.{tenths % 10}" if tenths < 100 else str((2 * high + low) // (2 * low))


def _ratio(draw: Draw) -> tuple[str, str]:
    a, b, name = _pair(draw, _whole(chips(), "memory"), ("memory",), "ratio")
    question = draw.wording(w.RATIO).format(a=draw.called(a), b=draw.called(b), n=_called_field(draw, name))
    high, low = sorted((int(a.number(name) or 0), int(b.number(name) or 0)), reverse=True)
    return question, f"{a.says(name)} {b.says(name)} {high} / {low} = {divided(high, low)}."


def _placed(draw: Draw, key: str) -> tuple[Entity, Entity, str]:
    """Return a model, a chip and a format; half of the time such that 1, 2, 4 or 8 chips do hold it."""
    likely = draw.random.random() < 0.7
    while True:
        f = draw.one(WEIGHT_FORMATS)
        m, c = draw.entity(models()), draw.entity(_whole(chips(), "memory"))
        if not (m.values[f"weights {f}"] or "").isdecimal() or not draw.mine(key, m.name, c.name, f):
            continue
        share = int(m.values[f"weights {f}"] or 0) / int(c.values["memory"] or 1)
        if not likely or 0.5 < share <= 8:
            return m, c, f


def _hold(draw: Draw) -> tuple[str, str]:
    m, c, f = _placed(draw, "hold")
    spoken = draw.called(c) + ("s" if draw.random.random() < 0.2 else "")
    question = draw.wording(w.HOLD).format(m=draw.called(m), c=spoken, f=f)
    need, memory = int(m.values[f"weights {f}"] or 0), int(c.values["memory"] or 0)
    steps, found = [], "More than 8 chips."
    for count in COUNTS:
        steps.append(f"{count} x {memory} = {count * memory}.")
        if count * memory >= need:
            found = f"Chips: {count}."
            break
    return question, " ".join([m.says(f"weights {f}"), c.says("memory"), *steps, found])


def _fits(draw: Draw) -> tuple[str, str]:
    m, c, f = _placed(draw, "fits")
    question = draw.wording(w.FITS).format(m=draw.called(m), c=draw.called(c), f=f)
    fits = int(c.values["memory"] or 0) >= int(m.values[f"weights {f}"] or 0)
    return question, f"{m.says(f'weights {f}')} {c.says('memory')} {'Yes' if fits else 'No'}."


def _format(draw: Draw) -> tuple[str, str]:
    if draw.random.random() < 0.2:
        a, b, name = _pair(draw, formats(), ("bits", "bytes"), "compare")
        first, second = a.number(name) or 0.0, b.number(name) or 0.0
        end = "Equal." if first == second else f"More: {(a if first > second else b).name}."
        question = draw.wording(w.COMPARE).format(a=draw.called(a), b=draw.called(b), n=_called_field(draw, name))
        return question, f"{a.says(name)} {b.says(name)} {ordered(_bare(a, name), _bare(b, name))} {end}"
    e = draw.entity(formats())
    name = draw.one(tuple(e.values))
    return fact_question(draw, name, draw.called(e)), e.says(name)


def _glossary(draw: Draw) -> tuple[str, str]:
    word, meaning = glossary()[draw.random.randrange(len(glossary()))]
    return draw.wording(w.GLOSSARY).format(e=word), f"{word}: {meaning}."


@cache
def _tops() -> tuple[tuple[str, str, Entity], ...]:
    """(group, field, the one entity with the most), where one stands alone and no number is assumed."""
    out = []
    groups = {"chip": chips()} | {g: tuple(e for e in chips() if g in e.groups) for e in chips() for g in e.groups}
    for group, members in groups.items():
        for name in ("memory", "bandwidth", "peak bf16", "power"):
            out += _top(group if group in ("chip", "GPU", "TPU", "NPU", "CPU") else f"{group} chip", name, members)
    for name in ("parameters", "layers", "context", "vocabulary"):
        out += _top("model", name, models())
    return tuple(out)


def _top(group: str, name: str, members: Sequence[Entity]) -> list[tuple[str, str, Entity]]:
    stated = [e for e in members if e.number(name) is not None]
    best = max((e.number(name) or 0.0 for e in stated), default=0.0)
    found = [e for e in stated if e.number(name) == best]
    return [(group, name, found[0])] if len(found) == 1 and len(stated) > 1 else []


def _most(draw: Draw) -> tuple[str, str]:
    group, name, e = _tops()[draw.random.randrange(len(_tops()))]
    return draw.wording(w.MOST).format(g=group, n=_called_field(draw, name)), e.says(name)


def _list(draw: Draw) -> tuple[str, str]:
    vendor = draw.one(sorted({e.values["vendor"] or "" for e in chips()}))
    names = [e.name for e in chips() if e.values["vendor"] == vendor]
    return draw.wording(w.LISTS).format(g=vendor), f"{vendor}: {', '.join(names)}."


@cache
def _numbers() -> dict[str, tuple[int, ...]]:
    """The whole numbers that are calculated with, by what they are of."""
    out = {"layers": {int(e.values["layers"] or 0) for e in _whole(models(), "layers")}}
    for name in SUBTRACTED:
        out[name] = {int(e.values[name] or 0) for e in _whole(chips(), name)}
    return {name: tuple(sorted(values)) for name, values in out.items()}


def _arithmetic(draw: Draw) -> tuple[str, str]:
    name = draw.random.choices(("memory", "layers", "power", "year"), (0.6, 0.2, 0.15, 0.05))[0]
    high, low = sorted(draw.random.sample(_numbers()[name], 2), reverse=True)
    way = draw.random.random()
    said = f"{high} - {low} = {high - low}"
    if name == "memory" and way < 0.5:
        said = f"{high} / {low} = {divided(high, low)}"
    elif name == "memory" and way < 0.7:
        count = COUNTS[draw.random.randrange(4)]
        said = f"{count} x {high} = {count * high}"
    asked = said.partition(" =")[0]
    return draw.wording(w.ARITHMETIC).format(e=asked), f"{said}."


def _larger(draw: Draw) -> tuple[str, str]:
    entities, names = (chips(), COMPARED) if draw.random.random() < 0.6 else (models(), COMPARED_MODELS)
    name = draw.one(names)
    stated = [e for e in entities if e.number(name) is not None]
    first, second = _bare(draw.entity(stated), name), _bare(draw.entity(stated), name)
    return draw.wording(w.LARGER).format(a=first, b=second), ordered(first, second)


def _key(name: str) -> str:
    return name.lower().replace("-", " ").strip()


@cache
def _known() -> frozenset[str]:
    names = {_key(n) for e in (*chips(), *models(), *formats()) for n in (*e.names, *e.aliases)}
    return frozenset(names | {_key(n.rpartition("/")[2]) for n in names})


def made_up(draw: Draw) -> str:
    """Return a name that is not in the catalogue: invented, one letter or digit from a known one, or real elsewhere."""
    while True:
        way = draw.random.random()
        if way < 0.45:
            name = list(draw.entity((*chips(), *models())).name)
            at = draw.random.choice([i for i, letter in enumerate(name) if letter.isalnum()])
            name[at] = draw.one("0123456789") if name[at].isdecimal() else draw.one("ABCDGHKLMNPRSTVXZ")
            text = "".join(name)
        elif way < 0.85:
            word = "".join(draw.one(_SYLLABLES) for _ in range(draw.random.randint(2, 3))).capitalize()
            number, billions, version = (draw.random.randint(1, most) for most in (99, 90, 9))
            end = draw.one(("", f" {number * 10}", f"-{billions}B", f" v{version}"))
            text = draw.one(_MAKERS) + word + end
        else:
            text = draw.one(REAL)
        if _key(text) not in _known() and draw.mine("name", _key(text)):
            return text


def _unknown_name(draw: Draw) -> tuple[str, str]:
    name, way = made_up(draw), draw.random.random()
    if way < 0.7:
        return fact_question(draw, draw.one((*CHIP_SENTENCES, *MODEL_SENTENCES)), name), NO_NAME
    if way < 0.9:
        entities, names = (chips(), COMPARED) if draw.random.random() < 0.6 else (models(), COMPARED_MODELS)
        pair = [name, draw.called(draw.entity(entities))]
        draw.random.shuffle(pair)
        field = draw.one(names)
        wordings = w.NEWER if field == "year" else draw.random.choice((w.COMPARE, w.COMPARE, w.DIFFERENCE, w.RATIO))
        return draw.wording(wordings).format(a=pair[0], b=pair[1], n=_called_field(draw, field)), NO_NAME
    model, chip = (name, draw.called(draw.entity(chips()))), (draw.called(draw.entity(models())), name)
    m, c = model if draw.random.random() < 0.5 else chip
    wordings = draw.random.choice((w.HOLD, w.FITS))
    return draw.wording(wordings).format(m=m, c=c, f=draw.one(WEIGHT_FORMATS)), NO_NAME


def _unknown_field(draw: Draw) -> tuple[str, str]:
    if draw.random.random() < 0.6:
        e = draw.entity((*chips(), *models()))
        return draw.wording(w.FACT).format(e=draw.called(e), n=draw.wording(w.OTHER_NOUNS)), NO_FIELD
    if draw.random.random() < 0.5:
        name, others = draw.one(("layers", "context", "vocabulary", "active")), chips()
    else:
        name, others = draw.one(("power", "cores", "link", "bandwidth")), models()
    return fact_question(draw, name, draw.called(draw.entity(others))), NO_FIELD


def _off_topic(draw: Draw) -> tuple[str, str]:
    if draw.random.random() < 0.15:
        return draw.wording(w.ABOUT), INTRODUCTION
    return draw.wording(w.OFF_TOPIC).format(x=draw.wording(w.THINGS)), NO_TOPIC


# (kind, its shares of the trained part and of the test, how it is made). What is worked out from two facts is trained
# more than it is asked, and numbers alone are compared in training only, as a step towards entities compared.
KINDS: tuple[tuple[str, tuple[float, float], Callable[[Draw], tuple[str, str]]], ...] = (
    ("fact of a chip", (0.14, 0.16), _fact(chips)),
    ("fact of a model", (0.13, 0.15), _fact(models)),
    ("format", (0.04, 0.05), _format),
    ("glossary", (0.03, 0.03), _glossary),
    ("chips compared", (0.11, 0.10), _compare(chips, COMPARED)),
    ("models compared", (0.09, 0.08), _compare(models, COMPARED_MODELS)),
    ("difference", (0.08, 0.08), _difference),
    ("ratio", (0.05, 0.05), _ratio),
    ("chips needed", (0.07, 0.07), _hold),
    ("fits on one chip", (0.04, 0.04), _fits),
    ("most of all", (0.02, 0.03), _most),
    ("list", (0.01, 0.01), _list),
    ("plain arithmetic", (0.06, 0.05), _arithmetic),
    ("plain comparison", (0.03, 0.00), _larger),
    ("unknown name", (0.05, 0.04), _unknown_name),
    ("unknown field", (0.04, 0.04), _unknown_field),
    ("off topic", (0.03, 0.02), _off_topic),
)


def held_out(count: int, seed: int = 3) -> list[Example]:
    """Return the test: `count` different questions of the held-out part, in the shares of the kinds."""
    draw, out = Draw(seed, held_out=True), dict[str, Example]()
    for _ in range(20 * count):
        if len(out) == count:
            break
        example = draw.example()
        out.setdefault(example.question, example)
    return list(out.values())


def main() -> None:
    """Print examples of one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=20)
    parser.add_argument("--held-out", action="store_true", help="of the test, not of the training part")
    parser.add_argument("--lines", action="store_true", help="as questions.jsonl has them")
    given = parser.parse_args()
    draw = Draw(0)
    for e in held_out(given.count) if given.held_out else (draw.example() for _ in range(given.count)):
        line = json.dumps({"question": e.question, "answer": e.answer})
        print(line if given.lines else f"[{e.kind}] {e.question}\n    {e.answer}")


if __name__ == "__main__":
    main()
