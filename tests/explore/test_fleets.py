"""Fleets in words and in files, and every message word for word."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taygeta.base.errors import InputError, TaygetaError
from taygeta.explore.fleet_file import load_fleet, read_fleet
from taygeta.explore.fleets import (
    FleetWords,
    PoolWords,
    engine_settings,
    parse_autoscale,
    parse_failure,
    parse_pool,
    parse_speculation,
)
from taygeta.serving.fleet import Autoscale, Failure
from taygeta.serving.limits import Speculation

MODEL = "llama-3.1-8b"


def words(*pools: PoolWords, **more: object) -> FleetWords:
    return FleetWords(MODEL, pools, **more)  # type: ignore[arg-type]


def refused(text: str) -> pytest.RaisesExc[InputError]:
    return pytest.RaisesExc(InputError, check=lambda e: str(e) == text)


@pytest.mark.parametrize(
    ("on", "replicas", "tp", "chips"),
    [("h100:8", None, 2, 8), ("h100:8", 4, None, 8), ("h100:8", 4, 2, 8), ("h100", 4, 2, 8), ("h100", None, None, 1)],
)
def test_replicas_share_the_chips(on: str, replicas: int | None, tp: int | None, chips: int) -> None:
    fleet = words(PoolWords(on, replicas=replicas, how={"tp": tp})).build()
    assert fleet.chips == chips
    assert fleet.pools[0].deployment.chips == chips
    assert fleet.replicas == (4 if tp or replicas else 1)


def test_replicas_that_do_not_share_evenly() -> None:
    with refused("3 replicas cannot share 8 chips evenly: use h100:9."):
        words(PoolWords("h100:8", replicas=3)).build()
    with refused("2 replicas of tp=2 are 4 chips, not 8: use h100:4."):
        words(PoolWords("h100:8", replicas=2, how={"tp": 2})).build()


def test_a_pool_says_more_than_the_fleet() -> None:
    pools = (parse_pool("h100:4,tp=2", "prefill"), parse_pool("a100:2,kv=fp8,engine=sglang", "decode"))
    fleet = words(*pools, how={"tp": 1, "kv": "bf16"}, engine={"token_budget": "4096", "host_step": "1 ms"}).build()
    first, second = fleet.pools
    assert (first.role, first.replicas, first.deployment.parallelism.tp) == ("prefill", 2, 2)
    assert (second.role, second.replicas, second.deployment.formats.kv) == ("decode", 2, "fp8")
    assert second.deployment.engine.name == "sglang"
    assert first.deployment.engine.token_budget == second.deployment.engine.token_budget == 4096
    assert first.deployment.engine.host_step == 1e-3


def test_texts() -> None:
    assert parse_pool(" h100:8 , tp=4, replicas=2 , sequence") == PoolWords(
        "h100:8", "both", 2, {"tp": 4, "sequence": True}
    )
    assert parse_failure("3@30s") == Failure(3, 30.0, math.inf)
    assert parse_failure("0@1min:2min") == Failure(0, 60.0, 120.0)
    assert parse_autoscale("32") == Autoscale(32.0)
    assert parse_autoscale("32.5:2:90s") == Autoscale(32.5, 2, startup=90.0)
    assert parse_speculation("3:0.7") == Speculation(3, 0.7)
    assert parse_speculation("3:0.7:0.05") == Speculation(3, 0.7, 0.05)


@pytest.mark.parametrize(
    "text", ["h100:8,tp", "h100:8,tp=0", "h100:8,tp=two", "h100:8,colour=red", "h100:8,", "h100,kv="]
)
def test_a_pool_that_is_none(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_pool(text)
    assert str(caught.value) == (
        "A pool is written CHIP:COUNT,NAME=VALUE,... such as h100:8,tp=4,replicas=2, with the names replicas, tp, pp,"
        f" ep, dp, cp, sequence, weights, activations, kv, engine; not {text!r}."
    )


def test_messages() -> None:
    with refused("A pool begins with a chip such as h100:8, not ',tp=2'."):
        parse_pool(",tp=2")
    for text in ("0", "@3s", "x@3s", "0@", "0@3s:"):
        with refused(f"A failure is written REPLICA@TIME or REPLICA@TIME:UNTIL such as 0@30s:90s, not {text!r}."):
            parse_failure(text)
    with refused("The time of failure '0@3' = '3' has no unit: write a time such as '10 us'."):
        parse_failure("0@3")
    for text in ("", "many", "nan", "1:x", "1:1:1s:1"):
        with refused(
            "Autoscaling is written TARGET[:LEAST[:STARTUP]] such as 32:2:90s (requests on a replica, replicas, time),"
            f" not {text!r}."
        ):
            parse_autoscale(text)
    for text in ("", "3", "x:0.5", "3:x", "3:0.5:0.1:1", "3:inf"):
        with refused(f"Speculation is written TOKENS:ACCEPTANCE[:SHARE] such as 3:0.7 or 3:0.7:0.05, not {text!r}."):
            parse_speculation(text)
    with refused(
        "The router must be round_robin, least_loaded, prefix_affinity, or a function of your own as"
        " package.module:function, not 'fastest'."
    ):
        words(PoolWords("h100"), router="fastest").build()
    with pytest.raises(InputError, match=r"^The scheduler must be mixed, prefill_first, decode_first, or a function"):
        words(PoolWords("h100"), scheduler="best").build()


def test_engine_settings() -> None:
    given = {"token_budget": 4096, "policy": "prefill_first", "chunks_prompts": "false", "intake_request": "1 ms"}
    assert engine_settings(given) == {
        "token_budget": 4096, "policy": "prefill_first", "chunks_prompts": False, "intake_request": 1e-3,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"^An engine has no setting 'colour': settings are block_tokens, "):
        engine_settings({"colour": "red"})
    with refused("The engine's memory_fraction is a share and must be at most 1, not '90'."):
        engine_settings({"memory_fraction": "90"})
    with refused("The engine's token_budget must be at most 1,073,741,824, not '1e12'."):
        engine_settings({"token_budget": "1e12"})
    with refused("The engine's token_budget must be a whole number of at least 1, not '0'."):
        engine_settings({"token_budget": "0"})


FILE = """
model = "llama-3.1-8b"
router = "round_robin"
host_memory = "512 GB"
kv = "fp8"
speculation = { tokens = 3, acceptance = 0.7 }
[engine_settings]
token_budget = 4096
[set]
"hbm.bandwidth" = "3 TB/s"
[[pools]]
chip = "h100:4"
role = "prefill"
tp = 2
[[pools]]
chip = "a100:2"
role = "decode"
autoscale = { target = 32, startup = "30 s" }
[[failures]]
replica = 1
at = "100 s"
"""


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FILE)
    fleet = load_fleet(path)
    first, second = fleet.pools
    assert (first.role, first.replicas, first.deployment.chip.id, first.deployment.formats.kv) == (
        "prefill", 2, "h100", "fp8",
    )  # fmt: skip
    assert (second.replicas, second.autoscale) == (1, Autoscale(32.0, startup=30.0))
    assert first.deployment.chip.hbm.bandwidth == second.deployment.chip.hbm.bandwidth == 3e12
    assert first.deployment.engine.token_budget == 4096
    assert fleet.failures == (Failure(1, 100.0),)
    assert (fleet.speculation, fleet.host_bytes, fleet.router) == (Speculation(3, 0.7), 512e9, "round_robin")


def test_the_file_of_the_documentation(tmp_path: Path) -> None:
    """The example of the module reads, without its pools: they replace its chip."""
    from taygeta.explore import fleet_file

    text = textwrap.dedent((fleet_file.__doc__ or "").partition("\n\n")[2])
    begin, end = text.index("[[pools]]"), text.index("[[failures]]")
    path = tmp_path / "fleet.toml"
    path.write_text(text[:begin] + text[end:])
    found = read_fleet(path)
    assert found.pools[0].autoscale == Autoscale(32.0, 1, 10.0, 60.0)
    assert found.build().replicas == 2
    path.write_text('model = "m"\n' + text[begin:end])
    assert read_fleet(path).pools == (PoolWords("h100:8", "prefill", None, {"tp": 4}),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chip = 3", "model is missing, such as 'meta-llama/Llama-3.1-70B'."),
        ("model = 'm'", "a fleet has either one `chip` or [[pools]]; it has neither."),
        ("model = 'm'\nchip = 'c'\n[[pools]]\nchip = 'd'", "a fleet has either one `chip` or [[pools]]; it has both."),
        ("model = 'm'\nreplicas = 2\n[[pools]]\nchip = 'd'", "replicas is of a pool: write it in [[pools]]."),
        ("model = 3\nchip = 'c'", "model must be a text, not 3."),
        ("model = 'm'\nchip = 'c'\ntp = true", "tp must be a whole number of at least 1, not True."),
        ("model = 'm'\nchip = 'c'\nsequence = 1", "sequence must be true or false, not 1."),
        ("model = 'm'\nchip = 'c'\nskew = 'x'", "skew must be a number, not 'x'."),
        ("model = 'm'\nchip = 'c'\nset = 3", "set must be a table, not 3."),
        ("model = 'm'\nchip = 'c'\npools = 3", "pools must be tables, each under [[pools]]."),
        ("model = 'm'\nchip = 'c'\n[[failures]]\nreplica = 0", "failure 0: at is missing, a time such as '100 s'."),
        ("model = 'm'\nchip = 'c'\n[[failures]]\nat = '1 s'",
         "failure 0: replica must be a whole number of at least 0, not None."),
    ],
)  # fmt: skip
def test_messages_of_a_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with refused(f"{path}: {message}"):
        load_fleet(path)


def test_an_unknown_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text("model = 'm'\nchip = 'c'\ncolour = 'red'")
    with pytest.raises(
        InputError, match=r"fleet.toml: there is no field 'colour': fields are activations, autoscale, "
    ):
        load_fleet(path)
    path.write_text("model = 'm'\n[[pools]]\nchip = 'c'\nmodel = 'n'")
    with pytest.raises(InputError, match=r"fleet.toml: pool 0: there is no field 'model': fields are "):
        load_fleet(path)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    with refused(f"{path} cannot be read: No such file or directory."):
        load_fleet(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="is not TOML"):
        load_fleet(path)
    path.write_text("x" * (1 << 20 | 1))
    with refused(f"{path} is larger than 1 MiB: it is no fleet."):
        load_fleet(path)


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 5), st.floats(-3, 3), st.sampled_from(["h100", "1 s", "", "both", "x"])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("abc"), inner, max_size=2)),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([
    "chip", "tp", "replicas", "autoscale", "router", "scheduler", "host_memory", "speculation", "engine_settings",
    "set", "pools", "failures", "kv", "skew", "engine", "sequence",
]), VALUES, max_size=4))  # fmt: skip
def test_whatever_is_written_the_answer_is_a_fleet_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_text("model = 'llama-3.1-8b'\n" + "\n".join(f"{k} = {_toml(v)}" for k, v in document.items()))
    try:
        load_fleet(path)
    except TaygetaError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value).lower() if isinstance(value, (bool, float)) else repr(value)
