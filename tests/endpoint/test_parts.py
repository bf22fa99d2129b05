"""The parts by themselves: stops, synthetic text, the clock, histograms, the metrics' text, hashes of prefixes."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import MODEL, service
from small_fleets import DEPLOYMENT, bounds, step_tables, traffic

from taygeta.base.errors import InputError
from taygeta.endpoint.clock import FREE, Clock, parse_speed
from taygeta.endpoint.metrics import Histogram, Lag
from taygeta.endpoint.service import Bounds, Service
from taygeta.endpoint.stops import Stops
from taygeta.endpoint.synthetic import WORDS, Synthetic, SyntheticAnswer, split
from taygeta.endpoint.text import Ask
from taygeta.serving.fleet import Fleet, Pool
from taygeta.serving.lengths import Fixed, LogNormal
from taygeta.serving.live import Live
from taygeta.serving.setup import HORIZON, Kind, Setup
from taygeta.serving.traffic import Prefixes

LETTERS = st.text("ab", min_size=1, max_size=4)


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(LETTERS, max_size=3), st.integers(0, 3))
def test_stops_against_the_whole_text(pieces: list[str], stops: list[str], least: int) -> None:
    """After each token: all of the text that can not be the beginning of a stop any more, and nothing of one."""
    found = Stops(stops, least)
    shown, free, watched = "", "", ""
    for number, piece in enumerate(pieces, start=1):
        shown += found.feed(piece)
        if number <= least:
            free += piece
            continue
        watched += piece
        places = [watched.find(stop) for stop in stops if stop in watched]
        assert found.found == bool(places)
        if places:
            assert shown == free + watched[: min(places)]
            return
        held = max((k for stop in stops for k in range(len(stop)) if watched.endswith(stop[:k])), default=0)
        assert shown == free + watched[: len(watched) - held]
    assert shown + found.rest() == "".join(pieces)


def answer(source: Synthetic, **more):
    return source.answer(Ask(**{"prompt": (1, 2), "limit": 50, **more}))


def said(found) -> list[str]:
    return [found.piece(i).text for i in range(found.tokens)]


def test_every_word_is_one_token() -> None:
    assert max(map(len, WORDS)) <= 8
    source = Synthetic(Fixed(60), 1)
    found = answer(source, limit=200)
    pieces = said(found)
    assert (len(pieces), pieces[-1], pieces.count(".") >= 3) == (60, ".", True)
    assert list(found.ahead()) == list(source.encode("".join(pieces))) == [split(p)[0] for p in pieces]


@given(st.integers(1, 60), st.integers(0, 1 << 64), st.integers(1, 80))
def test_one_full_stop_ends_a_sentence(tokens: int, number: int, limit: int) -> None:
    pieces = said(SyntheticAnswer(Synthetic(Fixed(9), 0), number, min(tokens, limit), ends=tokens < limit))
    assert ".." not in "".join(pieces)
    assert (len(pieces) > 1 and tokens < limit) <= (pieces[-1] == ".")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("one two", 2), ("  a\n b", 2), ("internationalization", 3), ("a,b.", 4), ("a  ", 2)],
)
def test_the_rule_of_tokens(text: str, tokens: int) -> None:
    assert len(split(text)) == tokens


def test_lengths_of_answers() -> None:
    source = Synthetic(LogNormal.of(mean=100, sigma=0.9), 4)
    drawn = np.array([answer(source, limit=10**6, seed=i).tokens for i in range(2000)])
    assert abs(drawn.mean() / 100 - 1) < 0.1
    assert answer(source, limit=5, endless=True).tokens == 5
    assert said(answer(source, seed=7)) == said(answer(source, seed=7)) != said(answer(source, seed=8))


def test_a_conversation_begins_with_the_one_before_it() -> None:
    """So that what was said is found in a prefix cache, the answer too."""
    source = Synthetic(Fixed(9), 0)
    turns = [("user", "how are you")]
    asked = source.encode_chat(turns)
    found = source.answer(Ask(prompt=asked, limit=99))
    later = source.encode_chat([*turns, ("assistant", "".join(said(found))), ("user", "more")])
    assert list(later[: len(asked) + 9]) == [*asked, *found.ahead()]


def test_a_tokenizer_counts(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))  # noqa: S106
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    source = Synthetic(Fixed(3), 0, path)
    assert list(source.encode("a b zzz a")) == [1, 2, 0, 1]
    assert len(source.encode_chat([("user", "a b")])) == 4 + 2 + 3
    path.write_text("{}")
    with pytest.raises(InputError, match="is no tokenizer"):
        Synthetic(Fixed(3), 0, path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Synthetic(Fixed(3), 0, tmp_path / "none.json")


def test_the_clock() -> None:
    clock = Clock(10.0)
    assert clock.fleet_time(clock.began + 2.0) == pytest.approx(20.0)
    assert clock.wall_time(20.0) == pytest.approx(clock.began + 2.0)
    assert Clock(FREE).wall_time(1e9) == pytest.approx(Clock(FREE).began, abs=1.0)
    assert [parse_speed(x) for x in ("max", "MAX", "10", "0.1")] == [FREE, FREE, 10.0, 0.1]
    for text in ("0", "-1", "nan", "inf", "1e9", "fast", ""):
        with pytest.raises(InputError, match="--speed must be max or a number"):
            parse_speed(text)


def test_a_histogram() -> None:
    found = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        found.observe(value)
    assert (found.counts, found.sum) == ([2, 1, 1], 12.0)


def test_the_lag_of_the_last_seconds() -> None:
    lag = Lag()
    assert [lag.note(0.005, 3, 100.0), lag.note(0.5, 2, 101.0)] == [False, True]
    assert (lag.seen, lag.late, lag.largest(102.0), lag.largest(112.0), lag.largest(150.0)) == (5, 2, 0.5, 0.5, 0.0)


LINE = re.compile(r'^([a-zA-Z_:][\w:]*)\{((?:\w+="(?:[^"\\\n]|\\.)*",?)*)\} (-?[\d.e+-]+|\+Inf)$')


def test_metrics_are_prometheus_text() -> None:
    """Every line parses, every family is announced once, buckets add up, and the counts are those of one request."""
    served = service()
    served.names = ('odd "name"\\',)

    async def one() -> str:
        task = asyncio.ensure_future(served.run())
        stream = served.open("x", [(Ask((1, 2, 3), 4, endless=True), ())], 0, 0.0, 3)
        while len(stream.marks) < 4:
            await asyncio.sleep(0)
        text = served.metrics.text(served.live, served.now(), served.names[0], 1)
        task.cancel()
        return text

    text = asyncio.run(one())
    values: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            _, what, name, words = line.split(" ", 3)
            assert what in ("HELP", "TYPE")
            kinds |= {name: words} if what == "TYPE" else {}
            continue
        found = LINE.match(line)
        assert found, line
        assert re.sub("_(bucket|sum|count)$", "", found[1]) in kinds or found[1] in kinds
        assert r'model_name="odd \"name\"\\"' in found[2]
        values[found[1] + "".join(re.findall('(?:le|reason)="([^"]*)"', found[2]))] = float(found[3])
    assert values["vllm:prompt_tokens_total"] == 3
    assert values["vllm:generation_tokens_total"] == 4
    assert values["vllm:time_to_first_token_seconds_count"] == 1
    assert values["vllm:time_to_first_token_seconds_bucket0.01"] == 1  # the step takes 10 ms
    assert values["vllm:inter_token_latency_seconds_count"] == 3
    assert values["vllm:inter_token_latency_seconds_sum"] == pytest.approx(0.03)
    assert values["vllm:e2e_request_latency_seconds_sum"] == pytest.approx(0.04)
    assert values["vllm:e2e_request_latency_seconds_bucket+Inf"] == 1
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
                 "vllm:gpu_cache_usage_perc", "vllm:num_preemptions_total", "taygeta:lag_seconds",
                 "taygeta:late_tokens_total", "vllm:request_success_totalstop"):  # fmt: skip
        assert name in values


def test_a_prompt_that_came_before_is_found_in_the_cache() -> None:
    """Blocks of 4 tokens: of a second prompt that begins with 8 tokens of the first, 8 need no work."""
    pool = Pool(DEPLOYMENT, 1)
    kind = Kind(pool, step_tables(0.01), bounds(caches=1, hash_tokens=4, hash_blocks=1, blocks=99), 0.0, 0.0, 0.0)
    known = traffic([0.0], 1, 1, prefixes=Prefixes(np.zeros(2), np.zeros(0, np.int64), 4))
    live = Live(Setup(Fleet((pool,)), known, (kind,), np.zeros(1, np.int64), HORIZON))
    served = Service(live, Synthetic(Fixed(9), 0), Clock(FREE), [MODEL], Bounds(4096))

    async def both() -> None:
        task = asyncio.ensure_future(served.run())
        for prompt in (range(10), [*range(9), 77, 78, 79]):
            stream = served.open("x", [(Ask(tuple(prompt), 2, endless=True), ())], 0, 0.0, len(prompt))
            while len(stream.marks) < 2:
                await asyncio.sleep(0)
        task.cancel()

    asyncio.run(both())
    assert (served.metrics.cache_queries, served.metrics.cache_hits) == (22, 8)


def test_answers_are_the_same_in_another_process() -> None:
    code = (
        "import json\nfrom taygeta.endpoint.synthetic import Synthetic\nfrom taygeta.endpoint.text import Ask\n"
        "from taygeta.serving.lengths import Fixed\na = Synthetic(Fixed(9), 1).answer(Ask((1, 2), 50))\n"
        "print(json.dumps([a.text(i) for i in range(9)]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == said(answer(Synthetic(Fixed(9), 1)))
