"""Remarks: sequences beyond the model's context, and chips without links."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import result_samples as samples

from taygeta import api
from taygeta.report.json import to_json
from taygeta.report.remarks import link_remarks, service_remarks, traffic_remarks
from taygeta.report.service import service_view, step_view
from taygeta.report.serving import serving_view
from taygeta.serving.fleet import Fleet, Pool
from taygeta.serving.metrics import report
from taygeta.serving.plain import run_plain
from taygeta.serving.setup import prepare
from taygeta.serving.traffic import make_traffic
from taygeta.spec.deployment import Batch

GPT2 = "openai-community/gpt2, 1,024 tokens"


def test_a_closed_loop_beyond_the_context_says_so() -> None:
    d = api.deploy("gpt2", "h100")
    said = f"isl + osl, 1,025 tokens, exceed the longest context of {GPT2}."
    long, longest = api.serve_rate(d, 1000, 25, 1), api.serve_rate(d, 1000, 24, 1)
    assert said in service_view(long).notes
    assert said in to_json(long)["notes"]
    assert not service_remarks(longest)


def test_a_step_beyond_the_context_says_so() -> None:
    d = api.deploy("gpt2", "h100")
    view = step_view(api.predict(d, Batch.decode(2, 1024)))
    assert view.notes[0] == f"the sequences, 1,025 tokens, exceed the longest context of {GPT2}."
    assert view.notes[1:] == step_view(api.predict(d, Batch.decode(2, 1023))).notes


def test_a_simulation_beyond_the_context_says_so() -> None:
    d = api.deploy("gpt2", "h100")
    traffic = make_traffic("long", [100, 4000, 1020], [10, 10, 10], np.zeros(3))
    (said,) = traffic_remarks(d, traffic)
    assert said == (
        f"isl + osl of 2 requests exceed the longest context of {GPT2}: up to 4,010. An engine would refuse or cut"
        " them."
    )
    assert said in serving_view(report(run_plain(prepare(Fleet((Pool(d, 1),)), traffic)))).notes
    assert not traffic_remarks(d, make_traffic("short", [1000], [24], np.zeros(1)))


@pytest.mark.parametrize("tp", [1, 4])
def test_chips_without_links_say_so_where_a_replica_has_several(tp: int) -> None:
    d = samples.deployed()
    spread = replace(d.parallelism, tp=tp, pp=1, ep=1, dp=1)
    apart = replace(d, chips=4, parallelism=spread, chip=replace(d.chip, link=None))
    found = link_remarks(apart)
    assert len(found) == (tp > 1) * (d.chip.network is not None)
    assert all("has no link between chips" in text and "link.bandwidth" in text for text in found)
    assert not link_remarks(replace(apart, chip=d.chip))
