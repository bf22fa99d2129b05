"""Built-in workloads against the figures they cite, and options that become a traffic or contradict each other."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taygeta.base.errors import InputError, UnknownNameError
from taygeta.serving.lengths import Fixed, LogNormal, Uniform
from taygeta.serving.options import TrafficOptions, build_traffic, parse_arrivals, parse_lengths
from taygeta.serving.synthetic import Closed, Gamma, OnOff, Paced, Poisson, benchmark, synthesise
from taygeta.serving.trace import load_trace
from taygeta.serving.workloads import workload, workload_names, workload_traffic

TRACES = Path(__file__).parents[3] / "shared" / "traces"


def test_names():
    assert workload_names() == ("chat", "code", "long-chat", "reason", "summarise")
    assert workload(" Long_Chat ").name == "long-chat"
    with pytest.raises(UnknownNameError, match="Did you mean chat\\?"):
        workload("chta")


@pytest.mark.parametrize("name", workload_names())
def test_every_number_has_a_source(name: str):
    text = (resources.files("taygeta") / "data" / "workloads" / f"{name}.toml").read_text(encoding="utf-8")
    document = tomllib.loads(text)
    found = workload(name)
    assert found.source == document["source"]
    assert "arXiv:" in found.source
    tables = {key for key, value in document.items() if isinstance(value, dict)}
    assert {source.split(":")[0] for source in found.sources} == tables
    assert all(len(source) > 20 for source in found.sources)


@pytest.mark.parametrize(
    ("name", "isl", "osl"),
    [("chat", 1155, 211), ("code", 2048, 28), ("reason", 69.5, 6000), ("summarise", 7904, 230)],
)
def test_means_are_those_of_the_source(name: str, isl: float, osl: float):
    """Straight lines between quantiles, and the cap, move the mean by up to 3 %, of code's heavy tail by 12 %."""
    found = workload(name)
    assert found.inputs.mean == pytest.approx(isl, rel=0.03)
    assert found.outputs.mean == pytest.approx(osl, rel=0.12 if name == "code" else 0.03)


@pytest.mark.skipif(not TRACES.exists(), reason="needs the public traces beside the repository")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("chat", "azure-2023/AzureLLMInferenceTrace_conv.csv"),
        ("code", "azure-2023/AzureLLMInferenceTrace_code.csv"),
        ("long-chat", "mooncake/conversation_trace.jsonl"),
    ],
)
def test_workloads_are_like_the_traces_they_are_of(name: str, file: str):
    trace = load_trace(TRACES / file).statistics()
    drawn = workload_traffic(name, requests=20_000).statistics()
    assert drawn.isl.mean == pytest.approx(trace.isl.mean, rel=0.06)
    assert drawn.isl.p50 == pytest.approx(trace.isl.p50, rel=0.06)
    assert drawn.osl.p50 == pytest.approx(trace.osl.p50, rel=0.06)
    assert drawn.shared == pytest.approx(trace.shared, abs=0.02)
    assert workload(name).rate == pytest.approx(trace.rate, rel=0.002)


def test_traffic_of_a_workload():
    t = workload_traffic("chat", requests=30, seed=4)
    assert (len(t), t.name, t.source) == (30, "chat", workload("chat").source)
    assert t == workload_traffic("chat", rate=5.53, requests=30, seed=4)
    assert t != workload_traffic("chat", requests=30, seed=5)
    assert (t.isl == workload_traffic("chat", requests=30, seed=4, arrivals=Closed(3)).isl).all()
    with pytest.raises(InputError, match="No rate was published of workload reason: give one"):
        workload_traffic("reason")
    with pytest.raises(InputError, match="give them or a rate, not both"):
        workload_traffic("chat", rate=1.0, arrivals=Closed(3))
    assert (workload_traffic("long-chat", requests=50).after >= 0).any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "cannot be read as a workload"),
        ("", "inputs is missing: a table of the lengths of its requests."),
        ("[inputs]\ntokens = 5\nsource = ''", "outputs is missing"),
        ("speed = 1", "speed is no field of a workload"),
        ("source = 1\n[inputs]\ntokens=5\nsource=''\n[outputs]\ntokens=5\nsource=''", "source must be text, not 1."),
        ("rate = 5\n[inputs]\ntokens=5\nsource=''\n[outputs]\ntokens=5\nsource=''", "rate must be a table of a value"),
        ("inputs = 5", "inputs must be a table of lengths with a source."),
        ("[inputs]\ntokens = '5'\nsource = ''", "inputs.tokens must be a number of 0 to 1e9, not '5'."),
        ("[inputs]\ntokens = nan\nsource = ''", "inputs.tokens must be a number of 0 to 1e9, not nan."),
        ("[inputs]\nlow = 5\nsource = ''", "inputs must have tokens, or shares and tokens, or median or mean"),
        ("[inputs]\nshares = 1\ntokens = 1\nsource = ''", "inputs.shares must be a list of numbers, not 1."),
        ("[inputs]\nmean = 5\nsource = ''", "A log-normal length needs a median or a mean"),
        (
            "think = {value=1, source=''}\n[inputs]\ntokens=5\nsource=''\n[outputs]\ntokens=5\nsource=''",
            "turns is missing: a workload with think or follow has sessions.",
        ),
    ],
)
def test_a_file_that_is_no_workload_is_refused(tmp_path: Path, text: str, words: str):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as found:
        workload(str(path))
    assert words in str(found.value)
    assert str(found.value).startswith(str(path))
    assert "\n" not in str(found.value)


def test_a_file_of_ones_own(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("[inputs]\ntokens = 7\nsource = 'me'\n[outputs]\nmean = 9\nsigma = 0.5\nsource = 'me'")
    found = workload(str(path))
    assert (found.name, found.inputs, found.rate) == ("mine", Fixed(7), None)
    with pytest.raises(InputError, match="cannot be read as a workload: No such file"):
        workload(str(tmp_path / "none.toml"))


def test_lengths_as_text():
    assert parse_lengths("fixed", 7) == Fixed(7)
    assert parse_lengths("Uniform", 7) == Uniform(7, 0.8)
    assert parse_lengths("uniform:0.5", 7) == Uniform(7, 0.5)
    assert parse_lengths("log-normal:0.5", 7) == LogNormal.of(mean=7, sigma=0.5)
    assert parse_lengths("lognormal", 7).mean == pytest.approx(7)
    for text in ("", "fixed:3", "uniform:x", "uniform:nan", "uniform:.5:.6", "normal", "lognormal:"):
        with pytest.raises(
            InputError, match="--lengths must be fixed, uniform, uniform:LOW, lognormal or lognormal:SIG"
        ):
            parse_lengths(text, 7)


def test_arrivals_as_text():
    assert parse_arrivals("poisson", 2.0) == Poisson(2.0)
    assert parse_arrivals("UNIFORM", 2.0) == Paced(2.0)
    assert parse_arrivals("gamma:3", 2.0) == Gamma(2.0, 3.0)
    assert parse_arrivals("on-off:10:20", 2.0) == OnOff(2.0, 10.0, 20.0)
    assert parse_arrivals("on_off:10:20", 2.0) == OnOff(2.0, 10.0, 20.0)
    for text in ("", "poisson:1", "gamma", "gamma:x", "on-off:1", "on-off:1:inf", "bursts"):
        with pytest.raises(InputError, match="--arrivals must be poisson, uniform, gamma:CV or on-off:ON:OFF"):
            parse_arrivals(text, 2.0)


PLAIN = TrafficOptions(isl=100, osl=10)


def test_lengths_and_a_rate_or_a_concurrency():
    t = build_traffic(replace(PLAIN, rate=4.0, seed=3))
    assert t == synthesise(1000, Poisson(4.0), Fixed(100), Fixed(10), 3, "isl 100, osl 10")
    loop = build_traffic(replace(PLAIN, concurrency=4, lengths="uniform", seed=3))
    assert loop == benchmark(4, Uniform(100), Uniform(10), 3, "isl 100, osl 10, uniform")
    assert len(build_traffic(replace(PLAIN, concurrency=4, requests=7))) == 7
    talk = build_traffic(replace(PLAIN, rate=4.0, turns=3.0, think=5.0, system=64, requests=20))
    assert (talk.after >= 0).any()
    assert talk.isl.min() == 164


def test_a_workload_by_options():
    assert build_traffic(TrafficOptions(workload="chat", requests=9)) == workload_traffic("chat", requests=9)
    loop = build_traffic(TrafficOptions(workload="reason", concurrency=2))
    assert (len(loop), loop.concurrency) == (20, 2)
    burst = build_traffic(TrafficOptions(workload="chat", rate=2.0, arrivals="gamma:4", requests=9))
    assert burst == workload_traffic("chat", requests=9, arrivals=Gamma(2.0, 4.0))


def test_a_trace_by_options(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("time,isl,osl\n0,1,1\n2,2,1\n4,3,1\n")
    only = TrafficOptions(trace=str(path))
    assert build_traffic(only) == load_trace(path)
    assert build_traffic(replace(only, scale=2.0)).arrival.tolist() == [0, 1, 2]
    assert build_traffic(replace(only, rate=2.0)).statistics().rate == 2.0
    assert build_traffic(replace(only, requests=2, unit="ms")).arrival.tolist() == [0, 0.002]
    path.write_text("time,isl,osl\n2,1,1\n2,2,1\n")
    with pytest.raises(InputError, match="its requests arrive all at once and have no rate that --rate could scale"):
        build_traffic(replace(only, rate=2.0))
    path.write_text("time,isl,osl\n2,1,1\n1,2,1\n")
    assert build_traffic(replace(only, sort=True)).isl.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (TrafficOptions(), "Traffic needs a --trace, a --workload, or --isl and --osl."),
        (TrafficOptions(isl=5), "Traffic needs a --trace, a --workload, or --isl and --osl."),
        (PLAIN, "Traffic needs a --rate (requests per second) or a --concurrency."),
        (replace(PLAIN, rate=1.0, requests=0), "--requests must be 1 or more, not 0."),
        (replace(PLAIN, rate=1.0, scale=2.0), "--scale has no meaning here: it is of a --trace."),
        (replace(PLAIN, rate=1.0, sort=True), "--sort has no meaning here: it is of a --trace."),
        (
            replace(PLAIN, rate=1.0, concurrency=1),
            "--rate and --concurrency exclude each other: in a closed loop an end",
        ),
        (replace(PLAIN, arrivals="poisson", concurrency=1), "--arrivals and --concurrency exclude each other"),
        (replace(PLAIN, rate=1.0, think=1.0), "--think is the time between the turns of a session: give --turns too."),
        (replace(PLAIN, turns=2.0, concurrency=1), "--turns and --concurrency exclude each other"),
        (replace(PLAIN, rate=-1.0), "A rate in requests per second must be 1e-06 to 1e+06, not -1."),
        (replace(PLAIN, isl=0, rate=1.0), "A fixed length must be 1 to 4,194,304 tokens, not 0."),
        (replace(PLAIN, concurrency=0), "The concurrency of a closed loop must be 1 to 20,000,000, not 0."),
        (replace(PLAIN, workload="chat"), "--isl and --workload exclude each other: the workload says so itself."),
        (TrafficOptions(workload="chat", turns=2.0), "--turns and --workload exclude each other"),
        (
            TrafficOptions(workload="reason"),
            "No rate was published of workload reason: give a --rate or a --concurrency.",
        ),
        (
            TrafficOptions(workload="long-chat", concurrency=3),
            "Workload long-chat has sessions, whose turns cannot run",
        ),
        (TrafficOptions(trace="x", workload="chat"), "--workload and --trace exclude each other: the trace says so"),
        (TrafficOptions(trace="x", concurrency=1), "--concurrency and --trace exclude each other"),
        (TrafficOptions(trace="x", rate=1.0, scale=1.0), "--scale and --rate both set the rate of a trace"),
        (TrafficOptions(trace="no such file"), "no such file is not a file."),
    ],
)
def test_contradictions_are_said(options: TrafficOptions, words: str):
    with pytest.raises(InputError) as found:
        build_traffic(options)
    assert words in str(found.value)


NUMBER = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 1.0, 3.5]))
COUNT = st.one_of(st.none(), st.integers(-3, 300))
TEXT = st.one_of(st.none(), st.text(max_size=4), st.sampled_from(["uniform", "gamma:2", "on-off:1:2", "lognormal:1"]))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    options=st.builds(
        TrafficOptions, workload=st.sampled_from([None, None, "chat", "long-chat", "x"]), isl=COUNT, osl=COUNT,
        lengths=TEXT, arrivals=TEXT, rate=NUMBER, scale=st.none() | NUMBER, concurrency=COUNT, requests=COUNT,
        turns=NUMBER, think=NUMBER, system=COUNT, seed=st.integers(-1, 2**64),
    )
)  # fmt: skip
def test_any_options_make_a_traffic_or_one_sentence(options: TrafficOptions):
    try:
        t = build_traffic(options)
    except InputError as error:
        t, said = None, str(error)
        assert "\n" not in said
    assert t is None or np.isfinite(t.arrival).any()
