"""Any module: its operations counted by hand, its values as torch has them, what is unknown named with its place."""

from __future__ import annotations

import numpy as np
import pytest

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.graph.elementwise import evaluate, flop_of
from taygeta.graph.meaning import Apply, Elementwise

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from taygeta.frontend.export_module import export_module  # noqa: E402

pytestmark = pytest.mark.torch


class Block(nn.Module):
    """Grouped attention with a gate on the keys, a gated feed-forward block, norms of both kinds."""

    def __init__(self):
        super().__init__()
        self.table, self.norm, self.last = nn.Embedding(30, 24), nn.RMSNorm(24), nn.LayerNorm(24)
        self.q, self.o = nn.Linear(24, 24), nn.Linear(24, 24)
        self.k, self.v = nn.Linear(24, 12, bias=False), nn.Linear(24, 12, bias=False)
        self.up, self.down = nn.Linear(24, 64, bias=False), nn.Linear(32, 24)

    def forward(self, ids):
        x = self.table(ids)
        h = self.norm(x)
        q, k, v = (p(h).view(len(ids), -1, 6).transpose(0, 1) for p in (self.q, self.k, self.v))
        k = k * torch.sigmoid(k) + 0.5
        a = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)[0]
        x = x + self.o(a.transpose(0, 1).reshape(len(ids), 24))
        gate, up = self.up(self.last(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up), torch.softmax(x, -1)


def compare(module, exported, *inputs):
    with torch.no_grad():
        expected = module(*(torch.from_numpy(x) for x in inputs))
    tensors = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    found = exported.run(tensors, *inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == tuple(theirs.shape)
        assert np.abs(mine - theirs.numpy()).max() < 2e-6


def test_a_block_by_hand():
    torch.manual_seed(0)
    module = Block()
    exported = export_module(module, (torch.zeros(7, dtype=torch.long),))
    ops = [op for op, _ in exported.graph.ops()]
    assert [op.kind for op in ops] == [
        "vector",  # the table and the first norm
        "matmul",  # q, k and v in one
        "vector", "vector",  # the bias of q; the gate of k
        "vector", "attention", "matmul",
        "vector",  # the bias of o, the residual, the second norm, the softmax
        "matmul", "vector", "matmul", "vector",
    ]  # fmt: skip
    flop = [op.matmul_flop(1) for op in ops if op.kind == "matmul"]
    assert flop == [2 * 24 * (24 + 12 + 12), 2 * 24 * 24, 2 * 24 * 64, 2 * 32 * 24]
    assert exported.graph.weight_elements() == sum(p.numel() for p in module.parameters())
    (shape,) = (op.detail for op in ops if op.kind == "attention")
    assert (shape.heads, shape.kv_heads, shape.qk_dim, shape.v_dim) == (4, 2, 6, 6)
    compare(module, exported, np.random.default_rng(0).integers(0, 30, 13))


def test_the_meta_device_is_enough():
    with torch.device("meta"):
        module, ids = Block(), torch.zeros(7, dtype=torch.long)
    theirs = export_module(Block(), (torch.zeros(7, dtype=torch.long),))
    assert export_module(module, (ids,)).graph == theirs.graph


class Chain(nn.Module):
    """Every elementwise function, one after another, with broadcasting and parts."""

    def __init__(self):
        super().__init__()
        self.scale, self.one = nn.Parameter(torch.rand(3, 4)), nn.Parameter(torch.rand(1))

    def forward(self, x, y):
        x = x.view(-1, 3, 4)
        z = torch.exp(-x.abs()) + torch.sqrt(x * x + 1.0) - torch.rsqrt(x**2 + 2.0) / self.one
        z = torch.tanh(z) * self.scale + torch.maximum(x, z) - torch.minimum(x, F.relu(z))
        z = torch.cat((z[:, 1:], torch.sin(z), torch.cos(z)[:, :2]), dim=1)
        z = torch.log(2.0 + z.sigmoid()) * y[:, None, :] + z.mean(dim=-1, keepdim=True)
        first, second = z.split((2, 5), dim=1)
        return F.gelu(first), F.gelu(second, approximate="tanh").flatten(1), torch.softmax(z, 1)


def test_every_function_of_the_table():
    torch.manual_seed(1)
    module, rng = Chain(), np.random.default_rng(1)
    exported = export_module(module, (torch.rand(11, 12), torch.rand(11, 4)))
    (op,) = (op for op, _ in exported.graph.ops())
    assert op.kind == "vector"
    x, y = (rng.standard_normal((17, n)).astype(np.float32) for n in (12, 4))
    compare(module, exported, x, y)


def test_a_perceptron_in_another_batch_layout():
    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8, bias=False))
    exported = export_module(module, (torch.rand(1, 7, 8),))
    assert [(op.kind, op.flop) for op, _ in exported.graph.ops()] == [("matmul", 0), ("vector", 9), ("matmul", 0)]
    x = np.random.default_rng(2).standard_normal((1, 5, 8)).astype(np.float32)
    tensors = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    (found,) = exported.run(tensors, x[0])
    assert np.abs(found - module(torch.from_numpy(x)).detach().numpy()[0]).max() < 1e-6


class Inside(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.inner = function

    def forward(self, x):
        return self.inner(x)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


REFUSED = {
    "unknown": (Lambda(lambda x: torch.erfinv(x)), "aten.erfinv.default is not a known operator"),
    "sorted": (Lambda(lambda x: torch.sort(x, -1)[0]), "aten.sort.default is not a known operator"),
    "rows mixed": (Lambda(lambda x: x.cumsum(0)), "aten.cumsum.default is not a known operator"),
    "softmax of rows": (Lambda(lambda x: x.softmax(0)), "works along the rows, or along an axis of length 1"),
    "rows in a view": (Lambda(lambda x: x.reshape(-1, 4) * 2), "mixes rows with other axes"),
    "axes in another order": (
        Lambda(lambda x: x.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8)), "changes the order of the axes of a row"
    ),
    "convolution": (Lambda(lambda x: F.conv1d(x[:, None], torch.ones(1, 1, 3))[:, 0]), "is not a known operator"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_unknown_is_named_with_its_module(name):
    function, message = REFUSED[name]
    with pytest.raises(UnsupportedError) as caught:
        export_module(Inside(function), (torch.rand(7, 8),))
    assert str(caught.value).startswith("inner (Lambda): aten.")
    assert message in str(caught.value)
    assert str(caught.value).endswith(", so the export stops.")


def test_examples_that_cannot_tell_rows():
    with pytest.raises(InputError, match="The example has 8 rows and a parameter has a side of 8; give a prime"):
        export_module(nn.Linear(8, 4), (torch.rand(8, 8),))
    with pytest.raises(InputError, match="needs an example input with an axis of rows that is longer than 1"):
        export_module(nn.Linear(8, 4), (torch.rand(1, 1),))
    with pytest.raises(UnsupportedError, match=r"^Lambda cannot be exported: torch\.export says "):
        export_module(Lambda(lambda x: x if x.sum() > 0 else -x), (torch.rand(7, 8),))


def test_steps_by_hand():
    """(x + p) * 2, of which both results leave."""
    steps = (Apply("add", (0, 1), (False, False)), Apply("multiply", (2, 2.0), (False, True)))
    meaning = Elementwise(steps, (2, 3), ("p",))
    assert flop_of(meaning) == 2.0
    total, twice = evaluate(meaning, (np.float32([[1, 2]]),), {"p": np.float32([10, 20])})
    assert (total.tolist(), twice.tolist()) == ([[11, 22]], [[22, 44]])
