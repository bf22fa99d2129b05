"""Checkpoints: values by the safetensors library, every defect one sentence, no damaged file ends the interpreter."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

from taygeta.base.errors import InputError, TaygetaError, UnsupportedError
from taygeta.frontend.checkpoint import INDEX, SINGLE, open_checkpoint

ml_dtypes = pytest.importorskip("ml_dtypes")
safetensors = pytest.importorskip("safetensors")

AGAIN = "; download the checkpoint again, or write it again with save_pretrained(..., safe_serialization=True)."


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def write(place: Path, content: bytes, name: str = SINGLE) -> Path:
    (place / name).write_bytes(content)
    return place


def refusal(place: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(place)
    return str(caught.value)


def test_values_by_hand(place):
    data = np.array([1.0, -2.5, 3.0], "<f4").tobytes() + bytes([0x80, 0x3F, 0x00, 0xC0]) + bytes([0x38, 0x7E, 0x80])
    header = {"a": entry("F32", [3], 0, 12), "b": entry("BF16", [2, 1], 12, 16), "c": entry("F8_E4M3", [3], 16, 19)}
    checkpoint = open_checkpoint(write(place, raw(header, data)))
    assert checkpoint.names == ("a", "b", "c")
    assert checkpoint.bytes == 19
    assert checkpoint.config == place / "config.json"
    assert checkpoint.files == (place / SINGLE,)
    assert checkpoint["a"].array().tolist() == [1.0, -2.5, 3.0]
    assert checkpoint["b"].array().dtype == ml_dtypes.bfloat16
    # 0x3F80 is 1.0 and 0xC000 is -2.0 in bfloat16; e4m3: 0x38 = 1.0, 0x7E = 448 (the largest), 0x80 = -0.0.
    assert checkpoint["b"].float32().tolist() == [[1.0], [-2.0]]
    assert checkpoint["c"].float32().tolist() == [1.0, 448.0, -0.0]
    assert (np.asarray(checkpoint["a"]) == [1.0, -2.5, 3.0]).all()
    assert not checkpoint["a"].array().flags.writeable


def test_every_type_reads_what_the_library_wrote(place):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    kinds = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32")
    tensors = {kind: rng.integers(0, 2, (3, 5)).astype(kind) for kind in (*kinds, "float64")}
    tensors["empty"] = np.zeros((0, 4), np.float32)
    tensors["scalar"] = np.array(7, np.int64)
    save_file(tensors, place / SINGLE, metadata={"format": "np"})
    checkpoint = open_checkpoint(place)
    assert set(checkpoint) == set(tensors)
    for name, value in tensors.items():
        assert checkpoint[name].shape == value.shape
        assert checkpoint[name].array().dtype == value.dtype
        assert (checkpoint[name].array() == value).all()


@pytest.mark.torch
def test_narrow_floats_as_torch_has_them(place):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    codes = torch.arange(256, dtype=torch.uint8)
    kinds = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e8m0": torch.float8_e8m0fnu}
    tensors = {name: codes.clone().view(kind) for name, kind in kinds.items()}
    tensors["bf16"] = torch.arange(-32768, 32768, dtype=torch.int16).view(torch.bfloat16)
    save_file(tensors, place / SINGLE)
    checkpoint = open_checkpoint(place)
    for name, value in tensors.items():
        mine, theirs = checkpoint[name].float32(), value.to(torch.float32).numpy()
        assert ((mine == theirs) | (np.isnan(mine) & np.isnan(theirs))).all()


def shards(place: Path, **changes: object) -> Path:
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    write(place, raw({"a": entry("U8", [2], 0, 2)}, b"\1\2"), names[0])
    write(place, raw({"b": entry("U8", [1], 0, 1)}, b"\3"), names[1])
    weight_map = {"a": names[0], "b": names[1], **changes}
    (place / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return place


def test_shards_through_links_as_the_cache_has_them(place, tmp_path_factory):
    shards(place)
    elsewhere = tmp_path_factory.mktemp("blobs")
    for file in list(place.iterdir()):
        target = elsewhere / f"blob-{file.name}"
        file.rename(target)
        file.symlink_to(target)
    checkpoint = open_checkpoint(place)
    assert {name: view.array().tolist() for name, view in checkpoint.items()} == {"a": [1, 2], "b": [3]}
    assert [file.name for file in checkpoint.files] == sorted(p.name for p in place.glob("model-*"))


def test_disagreements_of_index_and_shards(place):
    index, first, second = place / INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert refusal(shards(place, c=second)) == (
        f"{index} says that tensor 'c' is in {second}, which does not hold it{AGAIN}"
    )
    assert refusal(shards(place, b=first)) == (
        f"{index} says that tensor 'b' is in {first}, which does not hold it{AGAIN}"
    )
    assert refusal(shards(place, c="model-3.safetensors")) == (
        f"{index} names model-3.safetensors, which is not in {place}{AGAIN}"
    )
    assert refusal(shards(place, c="../x.safetensors")) == (
        f"{index}: the file of tensor 'c' must be the plain name of a .safetensors file in the same directory, "
        "not '../x.safetensors'."
    )
    write(shards(place), raw({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 1, 2)}, b"\3\4"), second)
    assert refusal(place) == f"{place / second}: tensor 'a' is also in {first}{AGAIN}"
    write(shards(place), raw({"b": entry("U8", [1], 0, 1), "d": entry("U8", [1], 1, 2)}, b"\3\4"), second)
    assert refusal(place) == f"{place / second}: tensor 'd' is not in {INDEX}{AGAIN}"
    (place / INDEX).write_text("{}")
    assert refusal(place) == f"{index}: weight_map is missing{AGAIN}"


def test_directories_that_hold_none(tmp_path):
    gone = tmp_path / "gone"
    assert refusal(gone) == (
        f"{gone} cannot be read as a checkpoint: No such file or directory; give a local directory "
        "with config.json and model.safetensors."
    )
    assert refusal(tmp_path) == (
        f"{tmp_path} has no config.json; a checkpoint is a directory with config.json, model.safetensors and "
        "tokenizer.json."
    )
    assert refusal(Path("a\0b")) == (
        "'a\\x00b' cannot be read as a checkpoint: not a usable file name; give a local directory "
        "with config.json and model.safetensors."
    )
    (tmp_path / "config.json").write_text("{}")
    assert refusal(tmp_path) == (
        f"{tmp_path} has config.json and no weights; put model.safetensors, or shards and {INDEX}, beside it."
    )
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedError) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/pytorch_model.bin is a pickle, which can run code when it is read, and is not opened; convert it "
        "to safetensors: AutoModelForCausalLM.from_pretrained(...).save_pretrained(..., safe_serialization=True)."
    )
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    assert refusal(tmp_path) == (
        f"{tmp_path} holds 'consolidated.safetensors' and neither model.safetensors nor {INDEX}; "
        "a single file must be called model.safetensors, several need the index."
    )


F = entry("F32", [2], 0, 8)
DEFECTS = {
    "empty": (b"", " has 0 bytes, too few for a safetensors file"),
    "long": (
        (2**40).to_bytes(8, "little"),
        ": the header would be 1099511627776 bytes and at most 33554432 are read, so this is not a safetensors file "
        "or a damaged one",
    ),
    "cut header": (raw({"a": F})[:30], " is cut off: the header ends at byte 69 of 30"),
    "not JSON": (
        raw(b"{nonsense"),
        ": the header is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
    ),
    "deep": (raw(b'{"a":' * 100_000), ": the header is not JSON (it is nested too deeply)"),
    "a list": (raw([]), ": the header must be a JSON object, not a list of 0"),
    "twice": (raw(b'{"a": 1, "a": 2}'), ": the header has 'a' twice"),
    "fields": (raw({"a": {"dtype": "F32"}}), ": tensor 'a' must have exactly dtype, shape and data_offsets"),
    "outside": (raw({"a": F}, b"1234567"), ": tensor 'a': its data would be bytes 0 to 8 of the 7 that the file holds"),
    "backwards": (
        raw({"a": entry("F32", [2], 8, 0)}, b"12345678"),
        ": tensor 'a': its data would be bytes 8 to 0 of the 8 that the file holds",
    ),
    "size": (
        raw({"a": entry("F32", [3], 0, 8)}, b"12345678"),
        ": tensor 'a': F32 of shape 3 takes 12 bytes, and data_offsets give 8",
    ),
    "overlap": (
        raw({"a": F, "b": entry("F32", [2], 4, 12)}, b"123456789012"),
        ": the data of tensor 'b' overlaps the tensor before it",
    ),
    "gap": (
        raw({"a": F, "b": entry("F32", [1], 12, 16)}, b"1234567890123456"),
        ": the data of tensor 'b' leaves 4 bytes unused",
    ),
    "surplus": (raw({"a": F}, b"123456789"), " has bytes that no tensor uses: the tensors end at byte 77 of 78"),
    "offsets": (raw({"a": entry("F32", [2], -8, 0)}), ": tensor 'a': data_offsets must be two whole numbers"),
    "metadata": (raw({"__metadata__": {"a": 1}}), ": __metadata__ must be a table of texts"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_word_for_word(place, defect):
    content, message = DEFECTS[defect]
    assert refusal(write(place, content)) == f"{place / SINGLE}{message}{AGAIN}"


def test_defects_with_another_cure(place):
    file = place / SINGLE
    assert refusal(write(place, raw({"a": entry("Q4_K", [2], 0, 8)}, b"12345678"))).startswith(
        f"{file}: tensor 'a': dtype 'Q4_K' is not known; it can be BOOL, U8, "
    )
    for shape in ([-1], [True], [2.0], [2**49], [1] * 17, "2"):
        header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}}
        assert refusal(write(place, raw(header, b"12345678"))) == (
            f"{file}: tensor 'a': shape must be a list of at most 16 whole numbers from 0 to 281474976710656."
        )
    file.unlink()
    os.mkfifo(file)
    assert refusal(place) == f"{file} is not a regular file; a checkpoint is read from files on disk."


def test_a_file_that_shrinks_is_no_signal(place):
    checkpoint = open_checkpoint(write(place, raw({"a": entry("U8", [100_000], 0, 100_000)}, bytes(100_000))))
    os.truncate(place / SINGLE, 5_000)
    with pytest.raises(InputError, match=r"had 100078 bytes when it was opened and has 5000 now"):
        checkpoint["a"].array()


def test_packed_and_whole_numbers_are_not_guessed(place):
    header = {"a": entry("F4", [4], 0, 2), "b": entry("U8", [2], 2, 4)}
    checkpoint = open_checkpoint(write(place, raw(header, b"1234")))
    with pytest.raises(UnsupportedError, match=r"tensor 'a' is F4, packed below a byte, which is not supported"):
        checkpoint["a"].array()
    with pytest.raises(UnsupportedError, match=r"tensor 'b' is U8, whole numbers without a stated meaning as fp32"):
        checkpoint["b"].float32()


def test_size_is_bounded_for_running(place):
    header = {"w": entry("F32", [3, 5], 0, 60), "x.down_proj_blocks": entry("U8", [4], 60, 64)}
    checkpoint = open_checkpoint(write(place, raw(header, bytes(64))))
    assert checkpoint.parameters() == 3 * 5 + 4 * 2  # two 4-bit values in a byte
    checkpoint.check_size(46)
    with pytest.raises(InputError, match=re.escape("holds 23 parameters, 0.0 GB in bf16, and running")):
        checkpoint.check_size(45)


def damaged(rng: random.Random, good: bytes) -> bytes:
    """A copy with bits flipped, cut, extended, or with a header of another kind."""
    kind, data = rng.randrange(5), bytearray(good)
    header = int.from_bytes(good[:8], "little")
    if kind == 0:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(8 + header)] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[rng.randrange(len(data)) :]
    elif kind == 2:
        length = rng.choice((rng.randrange(2**64), rng.randrange(200), header + rng.randint(-3, 3)))
        data[:8] = length.to_bytes(8, "little")
    elif kind == 3:
        at = rng.randrange(8, 8 + header)
        data[at : at + rng.randrange(4)] = rng.choice((b"", b"9", b'"', b"-1", b"[", b"}", b"null", b"1e9", b"\\ud800"))
        if rng.random() < 0.5:
            data[:8] = (header + len(data) - len(good)).to_bytes(8, "little")
    else:
        text = good[8 : 8 + header]
        table = json.loads(text)
        name = rng.choice(list(table))
        part = rng.choice(["dtype", "shape", "data_offsets"])
        values = [0, -1, None, True, 1e300, "F32", "BF16", [], [0, 8], [2**63, 2**64], [0] * 20, [2**40] * 12, {}, [3]]
        table[name][part] = rng.choice(values)
        return raw(table, good[8 + header :])
    return bytes(data)


def test_damaged_files_end_in_one_sentence(place):
    """2,000 damaged files: each is refused in one sentence, or the safetensors library reads the same from it."""
    header = {"w": entry("F32", [2, 3], 0, 24), "b": entry("BF16", [4], 24, 32), "c": entry("U8", [8], 32, 40)}
    good, rng, refused = raw(header, bytes(range(40))), random.Random(7), []  # noqa: S311
    for _ in range(2_000):
        write(place, damaged(rng, good))
        try:
            checkpoint = open_checkpoint(place)
            mine = {name: view.array().tobytes() for name, view in checkpoint.items()}
        except TaygetaError as error:
            refused.append(str(error))
            continue
        library = safetensors.deserialize((place / SINGLE).read_bytes())
        theirs = {name: bytes(value["data"]) for name, value in library}
        assert mine == theirs
    assert len(refused) > 1_500
    for message in refused:
        assert message.startswith(str(place))
        assert message.endswith(".")
        assert message.isprintable()


def test_damaged_indexes_end_in_one_sentence(place):
    shards(place)
    good, rng, refused = (place / INDEX).read_bytes(), random.Random(8), []  # noqa: S311
    for _ in range(500):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (place / INDEX).write_bytes(bytes(data[: rng.choice((len(data), rng.randrange(len(data))))]))
        try:
            open_checkpoint(place)
        except TaygetaError as error:
            refused.append(str(error))
    assert len(refused) > 400
    assert all(message.isprintable() for message in refused)
