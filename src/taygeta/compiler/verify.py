"""The verifier: proves that a program's engines, running apart, compute what its listing says from top to bottom.

It knows the instructions and nothing of the compiler that wrote them. It refuses a program unless, for all cores,
chips and turns of its loops,

1. every instruction has the form of its kind, and every name, buffer and semaphore is declared and used as declared;
2. every box lies inside its buffer, and every buffer inside its memory;
3. every wait finds, in the order of the listing, a signal given before it: then that order is a schedule in which
   nothing waits for ever, and since counts only grow, no other schedule can;
4. two accesses to the same bytes, one of them a write, are ordered by engines and semaphores, in the order of the
   listing; on one core, between cores and between chips;
5. what is read from scratch memory has been written, and not been overwritten through another buffer since.

Loops over lists are run in full, not at all, and every second time, and what depends on their variable counts as
touching all that it could. Tables through which a program writes are taken to list no place twice; of a buffer that is
written through ragged tables, whose lists say what is written, point 5 is not proved.
"""

from __future__ import annotations

from taygeta.base.errors import InputError
from taygeta.compiler.program import Program
from taygeta.compiler.verify_form import FaultError, check_form


class ProgramError(InputError):
    """A program that is not valid; the sentence has the instruction and its line in the listing."""


def verify(program: Program) -> None:
    """Prove that a program is valid (see above). Raises ProgramError, which names the instruction that is not."""
    from taygeta.compiler.verify_order import check_order

    try:
        check_form(program)
        check_order(program)
    except FaultError as fault:
        raise ProgramError(_sentence(program, fault)) from None


def _sentence(program: Program, fault: FaultError) -> str:
    from taygeta.compiler.text import show

    if fault.at is None:
        return f"{program.name}: {fault}."
    words = ("loop", "end", "phase")
    header = 1 + len(program.memory) + len(program.tables) + len(program.buffers) + len(program.semaphores)
    lines = show(program).split("\n")
    rows = [n for n, line in enumerate(lines) if n >= header and line and line.split()[0] not in words]
    at = rows[fault.at]
    return f"{program.name}, line {at + 1}, `{lines[at].strip()}`: {fault}."
