"""The command as a process: exit codes, no traceback whatever is typed, nothing heavy read for help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taygeta import __version__

HEAVY = ("numpy", "numba", "matplotlib", "polars", "torch", "transformers")


def taygeta(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "taygeta.app.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "no-such-model"],
        ["predict", "llama-3.1-8b", "--chip", "no-such-chip"],
        ["predict", "llama-3.1-8b", "--chip", "h100:0"],
        ["predict", "llama-3.1-8b", "--set", "clock"],
        ["predict", "llama-3.1-8b", "--set", "hbm.bandwidth=3"],
        ["predict", "llama-3.1-8b", "--engine", "none"],
        ["predict", "llama-3.1-8b", "--weights", "none"],
        ["compare", "llama-3.1-8b", "--chips", ","],
        ["plan", "llama-3.1-8b", "--tpot", "fast"],
        ["sweep", "llama-3.1-8b"],
        ["explain", "/"],
        ["show", "."],
    ],
)
def test_bad_input_exits_with_two_and_one_sentence(words: list[str]) -> None:
    result = taygeta(*words)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fly"], "No such command 'fly'."),
        (["predict"], "Missing argument 'MODEL'."),
        (["predict", "m", "--isl", "many"], "Invalid value for '--isl': 'many' is not a valid int."),
        (["predict", "m", "--no-such-option"], "No such option: --no-such-option"),
    ],
)
def test_usage_errors_are_plain_text(words: list[str], sentence: str) -> None:
    result = taygeta(*words)
    assert result.returncode == 2
    assert sentence.split(":")[0] in result.stderr
    assert "Traceback" not in result.stderr
    assert not set(result.stderr) & set("╭│╰\x1b")


def test_a_reader_that_stops_early_sees_no_traceback() -> None:
    for reader in ("head -c 10", "true"):
        command = f"{sys.executable} -m taygeta.app.cli models --json | {reader}"
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
        assert result.stderr == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["chips"], ["chips", "--json"], ["--version"], ["--help"]])
def test_an_output_that_cannot_be_written_is_said(words: list[str], unbuffered: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")

    def small() -> None:  # a file may have no byte: what a full disk does, without one
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    command = [sys.executable, "-B", "-m", "taygeta", *words]
    with (tmp_path / "out").open("w") as out:
        result = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=120, check=False, preexec_fn=small,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert result.stderr == "error: the output cannot be written: File too large.\n"
    assert result.returncode == 2


def test_the_package_is_a_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "taygeta", "--version"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stdout) == (0, f"taygeta {__version__}\n")


def test_a_terminal_without_unicode_gets_plain_signs() -> None:
    result = taygeta("models", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, "")
    assert "openai/gpt-oss-120b" in result.stdout


@pytest.mark.parametrize(
    "words", [["--help"], ["predict", "--help"], ["chips"], ["show", "h100", "--json"], ["models"]]
)
def test_nothing_heavy_is_read_for_help_and_lists(words: list[str]) -> None:
    code = (
        "import sys\nfrom taygeta.app.cli import main\n"
        f"sys.argv = ['taygeta', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"read = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.stderr.write(','.join(read))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
