"""JSON: keys are stable, numbers are SI and finite, nothing is lost on the way through a file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import result_samples as samples

from taygeta.report.assumptions import assumptions
from taygeta.report.catalogue import chip_json, fields_json, model_json
from taygeta.report.json import assumptions_json, text, to_json
from taygeta.report.words import UNBOUNDED
from taygeta.spec.deployment import Batch

RESULTS = {
    "service": samples.service(),
    "step": samples.step(samples.deployed(), Batch.decode(16, 1536), 0.01),
    "deployment": samples.deployed(),
    "comparisons": samples.comparisons(),
    "plan": samples.planned(),
    "sweep": samples.swept(),
    "crossed": samples.crossed(),
    "sensitivities": samples.sensitivities(),
}


@pytest.mark.parametrize("name", RESULTS)
def test_round_trip(name: str) -> None:
    document = to_json(RESULTS[name])
    assert json.loads(text(document)) == document


def test_keys_of_a_service() -> None:
    document = to_json(samples.service())
    assert list(document) == [
        "deployment",
        "isl",
        "osl",
        "concurrency",
        "tpot_s",
        "prefill_s",
        "tokens_per_s",
        "tokens_per_s_per_chip",
        "tokens_per_s_per_user",
        "dollars_per_million_tokens",
        "tokens_per_s_per_megawatt",
        "memory",
        "requests_that_fit",
        "tpot_parts",
        "prefill_parts",
        "decode",
        "prefill",
        "notes",
    ]
    assert list(document["deployment"]) == [
        "model",
        "model_unpublished",
        "chip",
        "chips",
        "replicas",
        "tp",
        "pp",
        "ep",
        "dp",
        "cp",
        "sequence",
        "formats",
        "engine",
    ]
    assert list(document["decode"]) == [
        "batch",
        "seconds",
        "interval_s",
        "lower_s",
        "upper_s",
        "bound",
        "mfu",
        "mbu",
        "intensity_flop_per_byte",
        "flop",
        "hbm_bytes",
        "link_bytes",
        "parts",
        "operations",
    ]


def test_values_of_a_service() -> None:
    document = to_json(samples.service())
    assert document["tpot_s"] == {"low": 0.016, "nominal": 0.02, "high": 0.025}
    assert document["tokens_per_s"]["nominal"] == 800  # 16 requests, one token each in 20 ms
    assert document["tokens_per_s_per_chip"]["nominal"] == 200
    assert document["tokens_per_s_per_user"] == {"low": 40, "nominal": 50, "high": pytest.approx(62.5)}
    assert document["memory"] == {
        "usable_bytes": 90e9,
        "weights_bytes": 30e9,
        "activations_bytes": 10e9,
        "cache_bytes": 50e9,
    }
    assert document["decode"]["batch"] == [{"requests": 16, "new_tokens": 1, "context": 1536}]
    assert document["decode"]["parts"][0] == {
        "part": "attention",
        "seconds": pytest.approx(0.005),
        "bound": "memory",
    }
    assert document["decode"]["operations"][0]["busy_s"]["memory"] == pytest.approx(0.002)


def test_what_is_unknown_is_null() -> None:
    s = replace(samples.service(), dollars=None, per_megawatt=None, room=UNBOUNDED)
    s = replace(s, decode=replace(s.decode, intensity=float("inf")))
    document = json.loads(text(to_json(s)))
    assert document["dollars_per_million_tokens"] is None
    assert document["tokens_per_s_per_megawatt"] is None
    assert document["requests_that_fit"] is None
    assert document["decode"]["intensity_flop_per_byte"] is None


def test_refusals() -> None:
    refused = to_json(samples.comparisons())["results"][2]
    assert refused == {"chip": "tiny:1", "best": None, "refused": "It needs 141 GB; 1 x tiny has 8 GB."}
    point = to_json(samples.swept())["points"][3]
    assert point == {"values": [8e12], "service": None, "refused": "hbm.bandwidth is too fast."}
    assert to_json(samples.planned())["refused"][0] == {"reason": "out of memory", "deployments": 3}
    assert to_json(samples.swept())["units"] == ["B/s"]


def test_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="int is no result that can be written as JSON"):
        to_json(3)


def test_assumptions() -> None:
    found = assumptions_json(assumptions(samples.sheet(), samples.SECRET))
    assert found == [
        {
            "of": "chip",
            "field": "clock",
            "low": 1e9,
            "nominal": 2e9,
            "high": 3e9,
            "unit": "Hz",
            "reason": "unpublished; guessed",
        },
        {
            "of": "model",
            "field": "num_hidden_layers",
            "low": 2,
            "nominal": 4,
            "high": 8,
            "unit": "",
            "reason": "a blog guessed it",
        },
    ]


def test_catalogue() -> None:
    chip = chip_json(samples.sheet())
    assert chip["id"] == "toy"
    assert chip["numbers"]["hbm.bandwidth"] == {
        "low": 1e12,
        "nominal": 1e12,
        "high": 1e12,
        "unit": "B/s",
        "assumed": False,
        "source": "Acme datasheet, 2026",
        "reason": None,
        "origin": "chip",
    }
    model = model_json(samples.SMALL)
    assert (
        model["kv_bytes_per_token"] == 4 * 2 * (64 + 64) * 2
    )  # layers x KV heads x (key + value) x bytes of bf16
    assert model["parameters"] == samples.SMALL.parameters()
    assert fields_json()["fields"][0]["field"] == "cores.count"
    for document in (chip, model, fields_json()):
        assert json.loads(text(document)) == document
