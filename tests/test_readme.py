"""The README says what the program does: its commands print that, its Python runs, its chip file is a chip."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import taygeta as tg
from taygeta.spec.catalog import sheet

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import readme  # noqa: E402 - beside the package, not in it

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("command", "output"), readme.blocks(), ids=[c.split()[1] for c, _ in readme.blocks()])
def test_commands_print_what_is_written(command, output):
    assert readme.run(command) == output


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_python_runs(name, capsys):
    names = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(code, name, "exec"), names)  # noqa: S102 - our own text
    assert capsys.readouterr().out


def test_the_chip_of_one_s_own_is_one(tmp_path):
    (code,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "my-chip.toml"
    path.write_text(code, encoding="utf-8")
    assert tg.chip(str(path)).peaks["bf16"] == pytest.approx(96 * 4096 * 2 * 1.6e9)
    assert sheet(str(path)).entries["hbm.bandwidth"].assumed
    assert tg.serve_rate(tg.deploy("gpt-oss-120b", on=f"{path}:4"), 1000, 1000, 8).tpot.nominal > 0


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_as_many_examples_as_the_heading_says():
    section = TEXT[TEXT.index("## Six examples") : TEXT.index("## How it works")]
    assert len(re.findall(r"^\*\*[A-Z]", section, re.MULTILINE)) == 6


def test_accuracy_is_that_of_the_report():
    short = readme.between(readme.ACCURACY, "short")
    assert readme.between(readme.README, "accuracy") == short
    assert 5 < len(short.splitlines()) < 30
