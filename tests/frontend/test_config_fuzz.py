"""No configuration ends in anything but a model or one sentence."""

import copy
import json

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from taygeta.base.errors import TaygetaError
from taygeta.frontend import entries, import_config, load_config
from taygeta.spec.model import Model

CONFIGS = [json.loads(json.dumps(entry.config)) for entry in entries()]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**31, 10**9, -(10**12), 10**400, 10**4000]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["silu", "FP8", "fp8", "llama", "full_attention", "linear_attention", "re:(a+)+", "*", "M*E-", "x" * 5000]
    ),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def paths(config, here=()):
    """Every place in a configuration that can be changed."""
    for name, value in config.items():
        yield (*here, name)
        if isinstance(value, dict):
            yield from paths(value, (*here, name))


@st.composite
def mutated(draw):
    """A real configuration with one to four fields dropped, replaced, wrapped, or added."""
    config = copy.deepcopy(draw(st.sampled_from(CONFIGS)))
    for _ in range(draw(st.integers(1, 4))):
        places = list(paths(config))
        if not places:
            break
        *outer, name = draw(st.sampled_from(places))
        table = config
        for step in outer:
            table = table[step]
        kind = draw(st.sampled_from(["drop", "replace", "nest", "add", "scale"]))
        if kind == "drop":
            del table[name]
        elif kind == "nest":
            table[name] = draw(st.sampled_from([{name: table[name]}, [table[name]], [table[name]] * 3]))
        elif kind == "add":
            table[draw(st.sampled_from(FIELDS))] = draw(JSON)
        elif kind == "scale" and isinstance(table[name], int):
            table[name] = table[name] * draw(st.sampled_from([-1, 0, 2, 10**6, 10**18]))
        else:
            table[name] = draw(JSON)
    return config


FIELDS = [
    *sorted({path[-1] for config in CONFIGS for path in paths(config)}),
    "layer_types", "mlp_only_layers", "decoder_sparse_step", "moe_layers", "no_rope_layers", "modules_to_not_convert",
    "layers_block_type", "ignore", "tie_word_embeddings", "architectures", "text_config", "config_groups",
    "attention_bias", "dtype", "quantization_config", "use_sliding_window", "max_window_layers", "kv_cache_scheme",
]  # fmt: skip


def outcome(config):
    """Import, use the model, and return it; the only error allowed is one of ours, in one line."""
    try:
        found = import_config(config, "fuzz", "fuzz")
    except TaygetaError as error:
        text = str(error)
        assert text.startswith("fuzz: ")
        assert "\n" not in text
        assert len(text) < 1000
        return None
    assert isinstance(found, Model)
    assert 0 < found.active_parameters() <= found.parameters() <= found.parameters(mtp=True)
    return found


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_mutated_configurations(config):
    """A model or a refusal, the same a second time, and the configuration is as it was."""
    before = repr(config)
    assert outcome(config) == outcome(config)
    assert repr(config) == before


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_any_json(config):
    """No such value has the dozen fields of a model: all are refused."""
    assert outcome(config) is None


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value, default=str)[:2000].encode()))
def test_any_file(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "config.json"
    path.write_bytes(content)
    with pytest.raises(TaygetaError, match=r"config\.json: "):
        load_config(path)
