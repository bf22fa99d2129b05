"""The functions that meanings are made of: by hand, and against torch."""

from __future__ import annotations

import numpy as np
import pytest

from taygeta.graph.functions import activation, gate, norm, rotate, route, softmax_attention
from taygeta.graph.meaning import Route
from taygeta.spec.arithmetic import GateRule, NormRule, Rope


def test_norms_by_hand():
    x = np.array([[3.0, 4.0]], np.float32)  # mean square 12.5, mean 3.5
    assert norm(x, np.array([[2.0, 1.0]]), NormRule(eps=0.0))[0].tolist() == pytest.approx(
        [6 / 12.5**0.5, 4 / 12.5**0.5]
    )
    offset = norm(x, np.array([1.0, 0.0]), NormRule(eps=0.0, offset=1.0))
    assert offset[0].tolist() == pytest.approx([6 / 12.5**0.5, 4 / 12.5**0.5])
    layer = norm(x, np.array([[2.0, 1.0], [0.5, 0.25]]), NormRule("layer", eps=0.0))
    assert layer[0].tolist() == pytest.approx([-1.5, 1.25])


def test_rotation_by_hand():
    """A quarter turn a position; the third element is not turned."""
    rope = Rope(2, 10.0, magnitude=2.0)  # one pair, one radian a position
    found = rotate(np.array([[[1.0, 0.0, 7.0]]], np.float32), np.array([1]), rope)
    assert found[0, 0].tolist() == pytest.approx([2 * np.cos(1), 2 * np.sin(1), 7.0])
    x = np.arange(8, dtype=np.float32).reshape(1, 8)
    near = rotate(x, np.array([3]), Rope(8, 50.0, interleaved=True))
    far = rotate(np.concatenate((x[:, 0::2], x[:, 1::2]), axis=1), np.array([3]), Rope(8, 50.0))
    assert np.array_equal(near, far)


def test_rotations_depend_on_distance_only():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 8)).astype(np.float32)
    for rope in (Rope(8, 100.0), Rope(4, 100.0), Rope(8, 100.0, interleaved=True)):
        at = [float((rotate(q, np.array([p + 5]), rope) * rotate(k, np.array([p]), rope)).sum()) for p in (0, 3, 40)]
        assert at == pytest.approx([at[0]] * 3, abs=1e-5)


def loop_attention(q, k, v, scale, softcap=0.0, window=0, chunk=0, sinks=None):
    """The same in loops over scalars."""
    new, heads, _ = q.shape
    context, kv_heads, _ = k.shape
    out = np.zeros((new, heads, v.shape[2]))
    for i in range(new):
        at = context - new + i
        for h in range(heads):
            g = h * kv_heads // heads
            seen = [
                j for j in range(at + 1)
                if (not window or at - j < window) and (not chunk or at // chunk == j // chunk)
            ]  # fmt: skip
            logits = [float(q[i, h] @ k[j, g]) * scale for j in seen]
            if softcap:
                logits = [softcap * np.tanh(x / softcap) for x in logits]
            total = sum(np.exp(x) for x in logits) + (np.exp(sinks[h]) if sinks is not None else 0.0)
            for j, x in zip(seen, logits, strict=True):
                out[i, h] += np.exp(x) / total * v[j, g]
    return out


@pytest.mark.parametrize(
    "how",
    [{}, {"window": 1}, {"window": 4}, {"chunk": 3}, {"softcap": 1.5}, {"sinks": np.array([0.0, 1.0, -9.0, 3.0])},
     {"window": 3, "softcap": 2.0, "sinks": np.array([2.0, 1.0, 0.5, 3.0])}],
)  # fmt: skip
@pytest.mark.parametrize(("new", "context"), [(1, 1), (1, 9), (4, 9), (9, 9)])
def test_attention_against_loops(how, new, context):
    rng = np.random.default_rng(1)
    q = rng.standard_normal((new, 4, 6)).astype(np.float32)
    k, v = (rng.standard_normal((context, 2, d)).astype(np.float32) for d in (6, 5))
    found = softmax_attention(q, k, v, 0.4, **how)
    assert found == pytest.approx(loop_attention(q, k, v, 0.4, **how), abs=2e-6)


def test_gates_by_hand():
    x = np.array([[[9.0, -8.0], [10.0, 0.5]]], np.float32)  # gate, up
    rule = GateRule("relu", limit=7.0, shift=1.0)
    assert gate(x, rule)[0].tolist() == [7.0 * 8.0, 0.0]
    assert gate(x[:, :1], GateRule("relu2", gated=False))[0].tolist() == [81.0, 0.0]
    silu = gate(np.array([[[2.0], [3.0]]], np.float32), GateRule("silu", alpha=1.702))
    assert silu[0, 0] == pytest.approx(2.0 / (1 + np.exp(-3.404)) * 3.0)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "options"), [("silu", {}), ("gelu", {}), ("gelu_tanh", {"approximate": "tanh"}), ("relu", {})]
)
def test_activations_against_torch(name, options):
    torch = pytest.importorskip("torch")
    x = np.linspace(-30, 30, 4001, dtype=np.float32)
    function = getattr(torch.nn.functional, name.removesuffix("_tanh"))
    expected = function(torch.tensor(x), **options).numpy()
    assert activation(x, GateRule(name)) == pytest.approx(expected, abs=3e-6)
    assert activation(x, GateRule(name)).dtype == np.float32


def test_routes_by_hand():
    logits = np.log(np.array([[1.0, 4.0, 3.0, 2.0]], np.float32))
    weights, chosen = route(Route(2), logits, None, None)
    assert chosen.tolist() == [[1, 2]]
    assert weights[0].tolist() == pytest.approx([4 / 7, 3 / 7])
    weights, _ = route(Route(2, normalise=False, scale=5.0), logits, None, None)
    assert weights[0].tolist() == pytest.approx([2.0, 1.5])
    _, chosen = route(Route(1), logits, np.array([9.0, 0, 0, 0]), None)
    assert chosen.tolist() == [[0]]
    # sigmoid 1 / (1 + 1/x): 1/2, 4/5, 3/4, 2/3; the correction picks and does not weigh
    rule = Route(2, "sigmoid", normalise=False, correction="c")
    weights, chosen = route(rule, logits, None, np.array([0.0, 0.0, -1.0, 0.2]))
    assert chosen.tolist() == [[3, 1]]
    assert weights[0].tolist() == pytest.approx([2 / 3, 4 / 5])


def test_groups_by_hand():
    """Groups of two: their sums are 1.3, 1.55, 1.1; of the two best groups three experts."""
    scores = np.array([[0.9, 0.4, 0.75, 0.8, 0.99, 0.11]])
    logits = np.log(scores / (1 - scores)).astype(np.float32)
    rule = Route(3, "sigmoid", groups=3, top_groups=2, normalise=False)
    weights, chosen = route(rule, logits, None, None)
    assert chosen.tolist() == [[0, 3, 2]]
    assert weights[0].tolist() == pytest.approx([0.9, 0.8, 0.75])


def test_equal_scores_go_to_the_lower_expert():
    _, chosen = route(Route(3), np.zeros((2, 5), np.float32), None, None)
    assert chosen.tolist() == [[0, 1, 2]] * 2
