"""Whether machine code is there already: said before a long wait."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path

import pytest

from taygeta.app import output
from taygeta.base.machine_code import kept
from taygeta.cost import compiled, vector

SOURCE = """
from numba import njit

@njit(cache=True)
def twice(x):
    return 2 * x
"""


def test_a_function_is_kept_once_it_was_compiled(tmp_path: Path) -> None:
    path = tmp_path / "kernels_of_the_test.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not kept(module.twice)
    assert module.twice(2) == 4
    assert kept(module.twice)


def test_kernels_are_there_once_they_were_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not compiled.compiled_before([vector])
    assert not list(tmp_path.iterdir())  # asking makes no folder
    twins = compiled.compile_modules([vector])
    next(iter(twins.values()))  # compiled when called first
    assert not compiled.compiled_before([vector])
    folder = compiled._cache_folder([vector]) / "cost_of_the_test"
    folder.mkdir(parents=True)
    (folder / "vector.vector_time-1.py311.nbi").touch()
    assert compiled.compiled_before([vector])


@pytest.mark.parametrize(("compiles", "said"), [(True, "compiling, once on a machine\n"), (False, "")])
def test_a_wait_for_machine_code_is_said_off_a_terminal_too(
    compiles: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = io.StringIO()
    monkeypatch.setattr(sys, "stderr", error)
    with output.progress("simulating", compiles) as advance:
        advance(1, 2)
    assert error.getvalue() == said


def test_on_a_terminal_the_bar_says_so_until_something_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.progress import Progress

    labels: list[str] = []
    add, update = Progress.add_task, Progress.update
    monkeypatch.setattr(Progress, "add_task", lambda bar, text, **more: labels.append(text) or add(bar, text, **more))
    monkeypatch.setattr(
        Progress, "update", lambda bar, task, **more: labels.append(more["description"]) or update(bar, task, **more)
    )

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with output.progress("simulating", compiles=True) as advance:
        advance(1, 2)
    assert labels == ["compiling, once on a machine", "simulating"]
