"""One request on its way through the plain simulator, and the answers that a run gives for it."""

from __future__ import annotations

from dataclasses import dataclass, field

INFINITY = float("inf")
FINE = 20  # bits of a token's fraction: tokens of a step are whole numbers of 2^-20, so that sums have no order


@dataclass(slots=True, eq=False)
class Flight:
    """A request in flight. Times in seconds; infinity until they are known.

    prompt, answer, steps: what is left to read, to make, and the decode steps that make it (after a preemption, what
    was made is part of the prompt). computed: tokens of the prompt whose cache is there. done: decode steps done.
    made: tokens made before this life. arrived: its cache was computed elsewhere and sent. later, later_steps:
    what another replica will make once this one has read the prompt.
    """

    index: int
    isl: int
    osl: int
    priority: int
    hashes: tuple[int, ...] = ()
    prompt: int = 0
    answer: int = 0
    steps: int = 0
    computed: int = 0
    done: int = 0
    made: int = 0
    blocks: int = 0  # private ones and fixed ones
    pieces: list[int] = field(default_factory=list)  # hashed pieces of its prefix that it holds
    committed: int = 0
    ticket: int = 0
    admitted: int = -1
    arrived: bool = False
    later: int = 0  # tokens that another replica will make, in later_steps
    later_steps: int = 0
    rank: int = 0
    ready: float = 0.0
    last: float = 0.0  # of its latest token, for the gap to the next
    start: float = INFINITY
    first: float = INFINITY
    end: float = INFINITY
    replica: int = -1
    cached: int = 0
    preemptions: int = 0

    @property
    def rate(self) -> int:
        """Tokens of a decode step, in units of 2^-FINE."""
        return ((self.answer - 1) << FINE) // self.steps if self.steps else 0

    def produced(self, done: int) -> int:
        """Return the tokens that `done` decode steps of this life have made, the one of the prompt left out."""
        return self.answer - 1 if done >= self.steps else (self.rate * done) >> FINE

    @property
    def decodes(self) -> bool:
        """Whether its prompt is read."""
        return self.computed >= self.prompt

    @property
    def context(self) -> int:
        """Tokens in the cache while it decodes, in units of 2^-FINE."""
        return (self.prompt << FINE) + self.rate * self.done

    def restart(self, verified: int) -> None:
        """Begin another life after its cache is lost: what was made is a part of the prompt."""
        if (self.decodes or self.arrived) and self.answer:
            made = 1 + self.produced(self.done)
            left = self.answer - made
            fewest = -(-max(0, left - 1) // verified)
            self.prompt, self.answer, self.made = self.prompt + made, left, self.made + made
            self.steps = min(max(self.steps - self.done - 1, fewest), max(0, left - 1))
        self.computed, self.done, self.blocks, self.committed, self.arrived = 0, 0, 0, 0, False
        self.admitted = -1
