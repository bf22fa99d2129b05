"""Files that appear as a whole; links, pipes and devices stay what they are."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from taygeta.base import files
from taygeta.base.errors import InputError
from taygeta.base.files import replaceable, replacing, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["report.html"]


def half(path: Path) -> None:
    with replacing(path) as part:
        part.write_text("half")
        raise ZeroDivisionError


def test_a_failed_block_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        half(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_failed_write_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError) as caught:
        write_text(path, "new")
    assert str(caught.value) == f"{path} cannot be written: No space left on device."
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    path = tmp_path / "no" / "report.html"
    with pytest.raises(InputError) as caught:
        write_text(path, "new")
    assert str(caught.value) == f"{path} cannot be written: No such file or directory."


@pytest.mark.parametrize("old", ["old", None])
def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path: Path, old: str | None) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file, link = elsewhere / "report.html", tmp_path / "link.html"
    if old is not None:
        file.write_text(old)
    link.symlink_to(file)
    write_text(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert os.listdir(elsewhere) == ["report.html"]
    assert os.listdir(tmp_path) in (["elsewhere", "link.html"], ["link.html", "elsewhere"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_stays_and_takes_the_bytes(tmp_path: Path, linked: bool) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(link if linked else pipe, "all of it")
    reader.join(10)
    assert read == ["all of it"]
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_nothing_goes_into_a_pipe_where_the_block_fails(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ZeroDivisionError):  # opening it would wait for a reader
        half(pipe)
    assert not replaceable(pipe)


def test_nothing_under_dev_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stdout"
    path.write_text("old")
    assert replaceable(path)
    monkeypatch.setattr(files, "DEVICES", tmp_path)
    assert not replaceable(path)
    before = path.stat().st_ino
    write_text(path, "new")
    assert (path.read_text(), path.stat().st_ino) == ("new", before)
