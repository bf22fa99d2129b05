"""Trace files: what each layout means, counted by hand; what is wrong is refused by its line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taygeta.base.errors import InputError
from taygeta.serving import trace
from taygeta.serving.trace import load_trace
from taygeta.serving.traffic import Prefixes, Traffic, dense, joined, make_traffic

TRACES = Path(__file__).parents[3] / "shared" / "traces"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 18:15:46.6805900,374,44\r
2023-11-16 18:15:50.9951690,396,109\r
2023-11-16 18:15:51.2224670,879,0\r
"""
MOONCAKE = """{"timestamp": 1000, "input_length": 1200, "output_length": 52, "hash_ids": [46, 47, 90]}
{"timestamp": 1500, "input_length": 600, "output_length": 26, "hash_ids": [46, 12]}
"""
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Traffic]:
    """Return a function that writes a file and reads it as a trace."""

    def run(content: str | bytes, file: str = "trace.csv", **options) -> Traffic:
        path = tmp_path / file
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return load_trace(path, **options)

    return run


@pytest.fixture
def refused(read, tmp_path: Path) -> Callable[..., str]:
    """Return a function that reads a file that is no trace, and returns the sentence without the directory."""

    def run(content: str | bytes, file: str = "trace.csv", **options) -> str:
        with pytest.raises(InputError) as found:
            read(content, file, **options)
        text = str(found.value)
        assert "\n" not in text
        return text.replace(f"{tmp_path}/", "")

    return run


def test_azure_layout(read):
    t = read(AZURE, "AzureLLMInferenceTrace_conv.csv")
    assert t.arrival == pytest.approx([0, 4.314579, 4.541877], abs=1e-12)
    assert t.isl.tolist() == [374, 396, 879]
    assert t.osl.tolist() == [44, 109, 0]
    assert (t.name, t.prefixes) == ("AzureLLMInferenceTrace_conv.csv", None)
    assert "CC-BY-4.0" in t.source
    assert "arXiv:2311.18677" in t.source
    assert read(AZURE, "mine.csv").source == ""
    named = read(AZURE, "mine.csv", name="day", source="me")
    assert (named.name, named.source) == ("day", "me")


def test_mooncake_layout(read):
    """Milliseconds; ids from 0 in the order in which they are met."""
    t = read(MOONCAKE, "conversation_trace.jsonl")
    assert t.arrival.tolist() == [0, 0.5]
    assert t.prefixes == Prefixes(np.array([0, 3, 5]), np.array([0, 1, 2, 0, 3]), 512)
    assert t.statistics().shared == 512 / 1800
    assert "arXiv:2407.00079" in t.source
    assert read(MOONCAKE, "t.jsonl", unit="s").arrival.tolist() == [0, 500]
    assert read(MOONCAKE, "t.jsonl", block=600).prefixes.block == 600


def test_ids_of_blocks_alone_become_prefixes(read):
    """Block 7 after block 1 is not block 7 after block 2."""
    rows = [[1, 7], [2, 7], [1, 7]]
    lines = [{"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": ids} for ids in rows]
    t = read("\n".join(map(json.dumps, lines)), "t.jsonl")
    assert t.prefixes.ids.tolist() == [0, 1, 2, 3, 0, 1]


def test_hashes_may_be_texts_or_larger_than_64_bits(read):
    rows = [["a", 2**70], ["a", "b"]]
    lines = [{"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": ids} for ids in rows]
    assert read("\n".join(map(json.dumps, lines)), "t.jsonl").prefixes.ids.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("arrival,isl,osl", "2.5,10,3"),
        ("Time , Prompt Tokens, completion_tokens", "2.5, 10, 3"),
        ("time;INPUT_LENGTH;output-length;model", "2.5;10;3;x"),
        ("osl\tisl\ttimestamp", "3\t10\t2.5"),
        ("arrived_at,input_tokens,output_tokens", '"2.5",10.0,3'),
        ("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", "2.5,ChatGPT,10,3,13,API log"),
        ("timestamp,input_length,output_length", "2.5,10,3"),
    ],
)
def test_columns_are_known_by_their_names(read, header: str, row: str):
    t = read(f"{header}\n{row}\n\n{row.replace('2.5', '4')}\n")
    assert t.arrival.tolist() == [0, 1.5]
    assert t.isl.tolist() == [10, 10]
    assert t.osl.tolist() == [3, 3]


def test_a_table_with_mooncakes_columns_counts_milliseconds(read):
    rows = 'timestamp,input_length,output_length,hash_ids\n1000,600,3,"[5, 6]"\n3000,600,3,5 9\n4000,9,0,\n'
    t = read(rows)
    assert t.arrival.tolist() == [0, 2, 3]
    assert t.prefixes.offsets.tolist() == [0, 2, 4, 4]
    assert read(rows, unit="us").arrival.tolist() == [0, 0.002, 0.003]


@pytest.mark.parametrize(
    "times",
    [
        ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01.509930+00:00"),
        ("2024-05-10T00:00:00Z", "2024-05-10T00:00:01.5Z"),
        ("2024-05-10T02:00+02:00", "2024-05-09 22:00:01.5-0200"),
        ("2024-05-10", "2024-05-10 00:00:01,5"),
        ("1700000000", "1700000001.5"),
    ],
)
def test_times_are_dates_or_counts(read, times):
    rows = "".join(f'"{time}",1,1\n' for time in times)
    assert read(f"time,isl,osl\n{rows}").arrival == pytest.approx([0, 1.5], abs=1e-6)


def test_priorities_and_other_columns(read):
    t = read("time,isl,osl,priority,user\n0,1,1,-3,x\n0,1,1,7,y\n")
    assert t.priority.tolist() == [-3, 7]
    lines = '{"time": 0, "isl": 1, "osl": 1}\n\n{"time": 0, "isl": 1, "osl": 1, "priority": 2, "more": []}\n'
    assert read(lines, "t.json").priority.tolist() == [0, 2]


def test_a_file_is_known_by_its_content_without_a_suffix(read, tmp_path: Path):
    assert len(read(AZURE, "day")) == 3
    assert len(read(b"\xef\xbb\xbf" + AZURE.encode(), "day.csv")) == 3
    assert len(read(MOONCAKE, "day.txt")) == 2
    pl.DataFrame({"time": [0.0], "isl": [1], "osl": [1]}).write_parquet(tmp_path / "day")
    assert len(load_trace(tmp_path / "day")) == 1


def test_times_that_run_backwards_are_refused_or_sorted(read, refused):
    rows = '{"timestamp": %d, "input_length": %d, "output_length": 1, "hash_ids": [%d]}\n'
    text = "".join(rows % row for row in ((5000, 1, 8), (2000, 2, 9), (5000, 3, 8)))
    assert refused(text, "t.jsonl") == (
        "t.jsonl line 2: timestamp is 3 s before the one above it; times must not run backwards: --sort (sort=True) "
        "orders the requests by arrival."
    )
    t = read(text, "t.jsonl", sort=True)
    assert t.arrival.tolist() == [0, 3, 3]
    assert t.isl.tolist() == [2, 1, 3]
    assert t.prefixes.ids.tolist() == [0, 1, 1]


H = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "trace.csv is empty."),
        ("\n", "trace.csv line 1: no column says when a request arrives; it must be called arrival, arrival_time, "
               "arrived_at, timestamp or time; the columns are none."),
        (H, "trace.csv has no requests below its header."),
        (H + "\n\n", "trace.csv has no requests below its header."),
        ("time,isl\n0,1\n", "trace.csv line 1: no column says the tokens of the answer; it must be called osl, "
                            'output_tokens, output_length, completion_tokens, GeneratedTokens or response_tokens; the '
                            'columns are "time", "isl".'),
        ("time,isl,osl,Output Tokens\n0,1,1,1\n",
         'line 1: columns "osl" and "Output Tokens" both say the tokens of the answer: leave one of them out.'),
        (H + "0,5,1\n0,x,1\n", 'trace.csv line 3: ContextTokens must be a whole number of at least 1, not "x".'),
        (H + "\n0,0,1\n", 'trace.csv line 3: ContextTokens must be a whole number of at least 1, not "0".'),
        (H + "0,5,-1\n", 'trace.csv line 2: GeneratedTokens must be a whole number of at least 0, not "-1".'),
        (H + "0,5,nan\n", 'trace.csv line 2: GeneratedTokens must be a whole number of at least 0, not "nan".'),
        (H + "0,,1\n", 'trace.csv line 2: ContextTokens must be a whole number of at least 1, not "".'),
        (H + "0,1.5,1\n", 'ContextTokens must be a whole number of at least 1, not "1.5".'),
        (H + "0,1_0,1\n", 'ContextTokens must be a whole number of at least 1, not "1_0".'),
        (H + "0,5000000,1\n", 'ContextTokens must be a whole number of at most 4,194,304, not "5000000".'),
        (H + f"0,{'9' * 5000},1\n", "trace.csv line 2: ContextTokens must be a whole number of at least 1, not \"9999"),
        (H + "nan,1,1\n", 'trace.csv line 2: TIMESTAMP must be a time in seconds of at least 0 or a date such as '
                          '"2023-11-16 18:17:03.97996", not "nan".'),
        (H + "inf,1,1\n", 'at least 0 or a date such as "2023-11-16 18:17:03.97996", not "inf".'),
        (H + "-1,1,1\n", 'not "-1".'),
        (H + "0,1,1\n2023-11-16,1,1\n", 'trace.csv line 3: TIMESTAMP must be a time in seconds'),
        (H + "now,1,1\n", 'trace.csv line 2: TIMESTAMP must be a date such as "2023-11-16 18:17:03.97996", like the '
                          'first one, not "now".'),
        (H + "2023-11-16,1,1\n2023-02-30,1,1\n", 'trace.csv line 3: TIMESTAMP must be a date'),
        (H + "2023-11-16,1,1\n7,1,1\n", 'line 3: TIMESTAMP must be a date such as "2023-11-16 18:17:03.97996", like'),
        (H + "9999-01-01,1,1\n", 'line 2: TIMESTAMP must be a date'),
        (H + "0,1,1\n0,1\n", "trace.csv line 3: 2 fields where line 1 names 3."),
        (H + "0,1,1,1\n", "trace.csv line 2: 4 fields where line 1 names 3."),
        (H + '0,1,"1\n', "trace.csv line 2: unexpected end of data."),
        (H.encode() + b"0,1,1\n0,\xff,1\n", "trace.csv line 3 is not UTF-8 text: byte 3 of it cannot be read."),
        (H.encode("utf-16"), "trace.csv line 1 is not UTF-8 text: byte 1 of it cannot be read."),
        ("time,isl,osl,hash_ids\n0,1,1,[true]\n", 'hash_ids must be a list of whole numbers or texts, not "[true]".'),
        ("time,isl,osl,hash_ids\n0,1,1,[1\n", 'hash_ids must be a list of whole numbers or texts, not "[1".'),
        ("time,isl,osl,hash_ids\n0,600,1,1 2 3\n",
         "trace.csv line 2: hash_ids has 3 ids for 601 tokens of prompt and answer in blocks of 512: give the tokens "
         "of a block."),
        ("time,isl,osl,priority\n0,1,1,x\n", 'priority must be a whole number of at least -2147483647, not "x".'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_said_by_line(refused, content, words):
    assert refused(content).endswith(words) or words in refused(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}\n", 't.jsonl line 1: no column says when a request arrives'),
        ("\n\n", "t.jsonl has no requests below its header."),
        ("[1]\n", 't.jsonl line 1 must be a JSON object, not "[1]".'),
        (MOONCAKE + "{", 't.jsonl line 3 must be a JSON object, not "{".'),
        ("[" * 100_000, 't.jsonl line 1 must be a JSON object, not "[[['),
        (MOONCAKE + '{"timestamp": 2000, "input_length": 1}', "line 3: no column says the tokens of the answer"),
        (MOONCAKE.replace("600", "true"), 'line 2: input_length must be a whole number of at least 1, not "True".'),
        (MOONCAKE.replace("600", "null"), 'line 2: input_length must be a whole number of at least 1, not "None".'),
        (MOONCAKE.replace("600", "NaN"), 'line 2: input_length must be a whole number of at least 1, not "nan".'),
        (MOONCAKE.replace("1500", "NaN"), "line 2: timestamp must be a time in seconds of at least 0"),
        (MOONCAKE.replace("1500", "[]"), "line 2: timestamp must be a time in seconds of at least 0"),
        (MOONCAKE.replace("[46, 12]", "5"), 'line 2: hash_ids must be a list of whole numbers or texts, not "5".'),
        (MOONCAKE.replace("[46, 12]", "[1.5]"), 'hash_ids must be a list of whole numbers or texts, not "[1.5]".'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_json_is_said_by_line(refused, content, words):
    assert words in refused(content, "t.jsonl")


def test_lines_of_quoted_fields_are_counted(refused):
    content = 'time,text,isl,osl\n0,"a\nb",1,1\n0,c,1,1\n0,d,x,1\n'
    assert refused(content) == 'trace.csv line 5: isl must be a whole number of at least 1, not "x".'


def test_files_beyond_the_limits_are_refused(read, refused, monkeypatch, tmp_path: Path):
    with pytest.raises(InputError, match="is not a file"):
        load_trace(tmp_path)
    with pytest.raises(InputError, match=r"is not a file|cannot be read"):
        load_trace("\0")
    with pytest.raises(InputError, match=r"The unit of a trace's times must be s, ms, us, ns, not 'h'"):
        read(AZURE, unit="h")
    with pytest.raises(InputError, match="A block of a hashed prefix must have 1 to 4,194,304 tokens, not 0"):
        read(MOONCAKE, "t.jsonl", block=0)
    monkeypatch.setattr(trace, "MAX_REQUESTS", 2)
    assert refused(AZURE) == "trace.csv has more than 2 requests: split it, or take a part of it."
    monkeypatch.setattr(trace, "MAX_BYTES", 64)
    assert "is larger than 0 GiB" in refused(AZURE)


def test_a_line_without_end_is_refused(refused, monkeypatch):
    monkeypatch.setattr(trace, "MAX_LINE", 1 << 20)
    monkeypatch.setattr(trace, "READ", 1 << 18)
    assert refused(H + "0,1,1\n" + "9" * ((1 << 20) + 1)) == "trace.csv line 3 is longer than 1 MiB."


def test_a_file_of_many_pieces_is_one_file(read, refused, monkeypatch):
    """Lines that cross the ends of reads and of chunks keep their values and their numbers."""
    monkeypatch.setattr(trace, "READ", 7)
    monkeypatch.setattr(trace, "CHUNK", 2)
    rows = "".join(f"{i / 4},{i + 1},{i}\n" + "\n" * (i % 3 == 0) for i in range(11))
    t = read("time,isl,osl\n" + rows)
    assert t.isl.tolist() == list(range(1, 12))
    assert t.arrival.tolist() == [i / 4 for i in range(11)]
    assert refused("time,isl,osl\n" + rows + "9,é,1\n") == (
        'trace.csv line 17: isl must be a whole number of at least 1, not "\\u00e9".'
    )
    assert read(MOONCAKE * 1, "t.jsonl").isl.tolist() == [1200, 600]


def frame(t: Traffic) -> pl.DataFrame:
    columns: dict[str, object] = {"arrival": t.arrival, "isl": t.isl, "osl": t.osl, "priority": t.priority}
    if t.prefixes is not None:
        ends = t.prefixes.offsets.tolist()
        columns["hash_ids"] = [t.prefixes.ids[a:b].tolist() for a, b in itertools.pairwise(ends)]
    return pl.DataFrame(columns)


def write_csv(t: Traffic, path: Path) -> None:
    rows = frame(t).to_dicts()
    lines = [",".join(rows[0])]
    for row in rows:
        cells = [" ".join(map(str, v)) if isinstance(v, list) else repr(v) for v in row.values()]
        lines.append(",".join(cells))
    path.write_text("\n".join(lines))


def write_json(t: Traffic, path: Path) -> None:
    path.write_text("\n".join(map(json.dumps, frame(t).to_dicts())))


WRITERS = {"t.csv": write_csv, "t.jsonl": write_json, "t.parquet": lambda t, path: frame(t).write_parquet(path)}


@st.composite
def traffics(draw: st.DrawFn) -> Traffic:
    count = draw(st.integers(1, 12))
    column = lambda values: draw(st.lists(values, min_size=count, max_size=count))  # noqa: E731
    gaps = column(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)))
    lists = column(st.lists(st.integers(0, 3), max_size=6))
    flat = np.array([i for ids in lists for i in ids], np.int64)
    found = joined(np.array([len(ids) for ids in lists]), dense(flat), 2) if draw(st.booleans()) else None
    return make_traffic(
        "t",
        column(st.integers(12, 1 << 22)),
        column(st.integers(0, 1 << 22)),
        np.cumsum([0.0, *gaps[1:]]),
        priority=column(st.integers(-(2**31) + 1, 2**31 - 1)),
        prefixes=found,
    )


@FUZZ
@given(t=traffics(), file=st.sampled_from(sorted(WRITERS)))
def test_what_is_written_is_read_back(tmp_path: Path, t: Traffic, file: str):
    path = tmp_path / file
    WRITERS[file](t, path)
    assert load_trace(path, name="t", source="", block=2) == t


def test_parquet_columns_may_be_dates_texts_or_floats(tmp_path: Path):
    path = tmp_path / "t.parquet"
    times = ["2023-11-16 18:17:03.5", "2023-11-16 18:17:04"]
    for cast in (pl.String, pl.Datetime("ms"), pl.Datetime("ns", "UTC")):
        dates = pl.Series(times).str.to_datetime(time_unit="ns")
        column = pl.Series(times) if cast == pl.String else dates.dt.replace_time_zone(
            getattr(cast, "time_zone", None)).cast(cast)  # fmt: skip
        pl.DataFrame({"time": column, "isl": [1.0, 2.0], "osl": pl.Series([3, 4], dtype=pl.UInt8)}).write_parquet(path)
        t = load_trace(path)
        assert t.arrival.tolist() == [0, 0.5]
        assert (t.isl.tolist(), t.osl.tolist()) == ([1, 2], [3, 4])


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("isl", [1, None], 'row 2: isl must be a whole number of at least 1, not "None".'),
        ("isl", [1.0, 2.5], 'row 2: isl must be a whole number of at least 1, not "2.5".'),
        ("isl", [1, 0], 'row 2: isl must be a whole number of at least 1, not "0".'),
        ("time", [0.0, float("nan")], "row 2: time must be a time in seconds of at least 0"),
        ("time", [True, False], "row 1: time must be a time in seconds of at least 0"),
        ("time", ["x", "y"], "row 1: time must be a date"),
        ("hash_ids", [[1], [None]], "row 2: hash_ids must be a list of whole numbers or texts"),
        ("hash_ids", [1, 2], "row 1: hash_ids must be a list of whole numbers or texts"),
    ],
)
def test_what_is_wrong_with_parquet_is_said_by_row(tmp_path: Path, column, values, words):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"time": [0.0, 1.0], "isl": [1, 2], "osl": [1, 1]} | {column: values}).write_parquet(path)
    with pytest.raises(InputError) as found:
        load_trace(path)
    assert words in str(found.value)


def test_an_empty_date_of_parquet_is_refused(tmp_path: Path):
    path = tmp_path / "t.parquet"
    times = pl.Series(["2023-11-16", None]).str.to_datetime()
    pl.DataFrame({"time": times, "isl": [1, 2], "osl": [1, 1]}).write_parquet(path)
    with pytest.raises(InputError, match="row 2: time must be a date; it is empty"):
        load_trace(path)


def test_parquet_without_rows_or_columns_is_refused(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"time": [0.0], "isl": [1], "osl": [1]}).clear().write_parquet(path)
    with pytest.raises(InputError, match="has no rows"):
        load_trace(path)
    pl.DataFrame({"time": [0.0], "isl": [1]}).write_parquet(path)
    with pytest.raises(InputError, match="no column says the tokens of the answer"):
        load_trace(path)


def read_or_refuse(path: Path, **options) -> None:
    """A traffic or one sentence, never anything else."""
    said = ""
    try:
        load_trace(path, **options)
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 1000 + len(str(path))


@FUZZ
@given(data=st.binary(max_size=300), file=st.sampled_from(["t", *sorted(WRITERS)]), head=st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes, file: str, head: bool):
    path = tmp_path / file
    path.write_bytes((b"time,isl,osl\n" if head else b"") + data)
    read_or_refuse(path)


@FUZZ
@given(data=st.data(), sort=st.booleans())
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, data: st.DataObject, sort: bool):
    file = data.draw(st.sampled_from(["azure.csv", "mooncake.jsonl", "t.parquet"]))
    path = tmp_path / file
    if file == "t.parquet":
        frame(make_traffic("t", [5, 6, 7], [1, 2, 3], [0.0, 1.0, 2.0])).write_parquet(path)
    else:
        path.write_text(AZURE if file == "azure.csv" else MOONCAKE)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(whole) - 1))
        piece = data.draw(
            st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from([b",", b"\n", b'"', b"-", b"9e9"]))
        )
        whole[place : place + data.draw(st.integers(0, 3))] = piece
    path.write_bytes(bytes(whole))
    read_or_refuse(path, sort=sort)


CELL = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=6),
    st.lists(st.one_of(st.integers(-5, 2**70), st.text(max_size=3), st.none()), max_size=3),
    st.sampled_from(["2023-11-16 18:17:03.97996", "2023-11-16T18:17:03Z", "1e3", "٣"]),
)  # fmt: skip


@FUZZ
@given(rows=st.lists(st.tuples(CELL, CELL, CELL, CELL), max_size=4), sort=st.booleans(), names=st.permutations(
    ["time", "isl", "osl", "hash_ids", "priority"]))  # fmt: skip
def test_any_cells_of_json_and_csv_are_read_or_refused(tmp_path: Path, rows, sort: bool, names: list[str]):
    given_rows = [dict(zip(names, row, strict=False)) for row in rows]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, given_rows)) or "{}", encoding="utf-8")
    read_or_refuse(tmp_path / "t.jsonl", sort=sort)
    pl.DataFrame([{k: str(v) for k, v in row.items()} for row in given_rows] or {"time": []}).write_csv(
        tmp_path / "t.csv"
    )
    read_or_refuse(tmp_path / "t.csv", sort=sort)


@pytest.mark.skipif(not TRACES.exists(), reason="needs the public traces beside the repository")
@pytest.mark.parametrize(
    ("file", "count", "isl", "osl", "seconds"),
    [
        ("azure-2023/AzureLLMInferenceTrace_conv.csv", 19366, 1020, 129, 3502),
        ("azure-2023/AzureLLMInferenceTrace_code.csv", 8819, 1469, 13, 3436),
        ("mooncake/conversation_trace.jsonl", 12031, 6909, 350, 3537),
    ],
)
def test_public_traces(file: str, count: int, isl: float, osl: float, seconds: float):
    """Medians of the Azure traces are those of Splitwise, section III."""
    t = load_trace(TRACES / file)
    found = t.statistics()
    assert (found.requests, found.isl.p50, found.osl.p50, round(found.duration)) == (count, isl, osl, seconds)
    assert t.source
    if t.prefixes is not None:
        assert found.shared == pytest.approx(0.374, abs=0.001)


@pytest.mark.skipif(not TRACES.exists(), reason="needs the public traces beside the repository")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    file=st.sampled_from(["azure-2023/AzureLLMInferenceTrace_code.csv", "mooncake/conversation_trace.jsonl"]),
)
def test_damaged_public_traces_are_read_or_refused(tmp_path: Path, data: st.DataObject, file: str):
    whole = bytearray((TRACES / file).read_bytes()[:20_000])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place : place + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=4))
    path = tmp_path / Path(file).name
    path.write_bytes(bytes(whole))
    read_or_refuse(path)
