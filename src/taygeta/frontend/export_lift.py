"""An exported program -> Model: every layer's residual halves, found by following values and not by names of classes.

A layer is x' = x + mixer(norm(x)); y = x' + ffn(norm(x')), with a second norm of what is added where there is one. What
the parts compute is found in export_attention and export_ffn. Everything alive in the program must be explained in the
end, or the export is refused by the operator and the module it stands in.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from taygeta.base.errors import UnsupportedError
from taygeta.frontend.export_attention import lift_attention
from taygeta.frontend.export_ffn import lift_ffn
from taygeta.frontend.export_region import Matmul, Program, agree
from taygeta.frontend.recipes import Recipe, conv1d, linear, norm, plain
from taygeta.spec.arithmetic import Arithmetic, NormRule
from taygeta.spec.mixers import Weight
from taygeta.spec.model import Layer, Model


@dataclass
class Lifted:
    """A model with what its parameters are made of: by kind of layer (None: outside of layers) and name."""

    model: Model
    recipes: dict[tuple[int | None, str], Recipe] = field(default_factory=dict)


def lift(program: Program) -> Lifted:
    """Return the model that a trace computes. Raises UnsupportedError."""
    trace = program.trace
    config = trace.model.config.get_text_config()
    calls = {n.args[-1]: n for n in program.nodes if program.kind(n) == "attention"}
    x, outer = _embedding(program, _first_stream(program, calls))
    kinds: list[Layer] = []
    rules: list[NormRule] = []
    recipes: dict[tuple[int | None, str], Recipe] = {}
    for kind in range(len(set(trace.layers))):
        inside = f"{trace.prefix}.{kind}."
        mine = [node for path, node in calls.items() if path.startswith(inside)]
        if len(mine) != 1:
            raise UnsupportedError(f"{inside[:-1]} has {len(mine)} attentions; a layer with one is understood.")
        walk = _Walk(program, x)
        kinds.append(walk.layer(mine[0]))
        rules += walk.rules
        recipes |= {(kind, name): recipe for name, recipe in walk.recipes.items()}
        x = walk.x
    head = _head(program, x, outer, rules)
    program.check_all_used()
    if len(set(rules)) != 1:
        raise UnsupportedError(f"{type(trace.model).__name__} has norms of several kinds over d_model: {set(rules)}.")
    model = Model(
        name=type(trace.model).__name__,
        d_model=x.meta["val"].shape[-1],
        vocab=outer.vocab,
        layers=tuple(kinds[k] for k in trace.layers),
        max_context=getattr(config, "max_position_embeddings", 0) or outer.positions or 2048,
        tied=head.tied,
        positions=outer.positions,
        final_norm_bias=rules[-1].kind == "layer",
        head_bias=head.bias,
        source=f"torch.export of {type(trace.model).__module__}.{type(trace.model).__name__}",
        arithmetic=Arithmetic(str(getattr(config, "model_type", "")), rules[0], outer.scale, head.softcap),
    )
    _outer_recipes(model, outer, head, recipes)
    return Lifted(model, recipes)


class _Walk:
    """Follows the residual stream through one layer."""

    def __init__(self, program: Program, x: Any) -> None:
        self.program, self.x = program, x
        self.rules: list[NormRule] = []
        self.recipes: dict[str, Recipe] = {}

    def layer(self, call: Any) -> Layer:
        """Return the layer around an attention, and leave its result in x."""
        mixer, made = lift_attention(self.program, call)
        h, out = made.source, made.result
        self.recipes |= made.recipes
        post = self._half("mixer", h, out)
        ffn, made = lift_ffn(self.program, self._next_norm())
        self.recipes |= made.recipes
        if self._half("ffn", made.source, made.result) != post:
            raise self.program.refused(made.result, "is normalised in one half of the layer and not in the other")
        bias = self.rules[0].kind == "layer"
        return Layer(mixer, ffn, norms=4 if post else 2, norm_bias=bias, post_norms=post)

    def _next_norm(self) -> Any:
        norms = [n for n in self.program.readers(self.x) if self.program.kind(n) == "norm"]
        if len(norms) != 1:
            raise self.program.refused(self.x, f"is read by {len(norms)} norms; before a feed-forward block stands one")
        return norms[0]

    def _half(self, name: str, h: Any, out: Any) -> bool:
        """Check that h is a norm of x and `out` what is added to x; return whether it is normalised before."""
        p = self.program
        if p.kind(h) != "norm" or p.strip(h.args[0]) is not self.x:
            raise p.refused(h, f"is what the {name} reads, and a norm of the residual stream is understood")
        self._norm(f"{name}_norm", h)
        after = [n for n in p.readers(out) if p.kind(n) == "norm"]
        post = bool(after) and after[0].args[0].meta["val"].shape == self.x.meta["val"].shape
        if post and not self._added(out):
            self._norm(f"{name}_post_norm", after[0])
            out = after[0]
        else:
            post = False
        adds = self._added(out)
        if len(adds) != 1:
            raise p.refused(out, "is not added to the residual stream as it is")
        p.used.add(adds[0])
        self.x = adds[0]
        return post

    def _added(self, out: Any) -> list[Any]:
        """The sums of `out` and x."""
        p = self.program
        sums = [n for n in p.readers(out) if str(n.target) == "aten.add.Tensor" and not n.kwargs.get("alpha")]
        return [n for n in sums if {p.strip(a) for a in n.args if hasattr(a, "target")} == {self.x, p.strip(out)}]

    def _norm(self, name: str, node: Any) -> None:
        path = node.args[1]
        rule = self.program.trace.norms[path]
        self.program.used.add(node)
        self.rules.append(rule)
        rows, size = (2 if rule.kind == "layer" else 1), node.meta["val"].shape[-1]
        self.recipes[name] = norm(Weight(name, (("scale_and_shift", rows), ("d_model", size)), "norm"), path)


def _first_stream(program: Program, calls: dict[str, Any]) -> Any:
    """Return the value that the first norm of the first layer reads."""
    first = next((n for n in program.nodes if program.kind(n) == "norm"), None)
    if first is None or not calls:
        raise UnsupportedError(
            f"{type(program.trace.model).__name__} has no attention or no norm that is understood; "
            f"export_module takes any module."
        )
    return program.strip(first.args[0])


@dataclass(frozen=True)
class _Outer:
    table: str
    vocab: int
    scale: float
    positions: int
    learned: str


def _embedding(program: Program, x: Any) -> tuple[Any, _Outer]:
    """Return the first residual stream, and the tables behind it: scale * table[ids] + positions[position]."""
    sources = program.sources(x)
    if not 1 <= len(sources) <= 2 or any(program.kind(n) != "aten.embedding.default" for n in sources):
        raise program.refused(x, "begins the residual stream, and one or two tables are understood")
    ids = [n for n in sources if _reads_ids(n)]
    if len(ids) != 1:
        raise program.refused(x, "begins the residual stream, and one table of token ids is understood")
    (first,) = ids
    program.strip(first.args[1])
    other = [n for n in sources if n is not first]
    given = {n: program.draw(n) for n in sources}
    (found,) = program.run(given, x)
    zero = {first: np.ones_like(given[first]), **{n: np.zeros_like(given[n]) for n in other}}
    scale = float(np.unique(program.run(zero, x)[0]).mean())
    expected = np.float32(scale) * given[first] + sum(given[n] for n in other)
    if not agree(found, expected):
        raise program.refused(x, "begins the residual stream, and is no scaled sum of tables")
    d_model = x.meta["val"].shape[-1]
    root = float(d_model) ** 0.5  # known more exactly than fp32 shows it
    scale = root if abs(scale / root - 1) < 1e-6 else scale
    learned = ""
    for node in other:
        (rows,) = program.run({}, node.args[1])
        if not (rows.reshape(-1) == np.arange(program.trace.tokens)).all():
            raise program.refused(node, "reads learned positions that do not count from 0")
        learned = program.parameters[node.args[0].name]
    vocab = first.args[0].meta["val"].shape[0]
    count = other[0].args[0].meta["val"].shape[0] if other else 0
    return x, _Outer(_table(program, first), vocab, scale, count, learned)


def _table(program: Program, node: Any) -> str:
    """Return the path of the embedding's table: of the names of a tied one, that of the embedding's own module."""
    traced = program.parameters[node.args[0].name]
    own = f"{list(node.meta['nn_module_stack'].values())[-1][0]}.weight" if node.meta.get("nn_module_stack") else ""
    return own if own != traced and _shared(program, own, traced) else traced


def _reads_ids(node: Any) -> bool:
    stack = [node.args[1]]
    while stack:
        n = stack.pop()
        if n.op == "placeholder":
            return n.name == "input_ids"
        stack += n.all_input_nodes
    return False


@dataclass(frozen=True)
class _Head:
    matrix: Matmul
    norm: str
    tied: bool
    bias: bool
    softcap: float


def _head(program: Program, x: Any, outer: _Outer, rules: list[NormRule]) -> _Head:
    """Return the last norm, the head and the soft cap of the logits."""
    (out,) = (n for n in program.nodes if n.op == "output")
    logits = out.all_input_nodes[0]
    sources = program.sources(logits)
    matrix = program.matmul(sources[0]) if len(sources) == 1 else None
    if matrix is None:
        raise program.refused(logits, "gives the logits, and one multiply is understood")
    last = program.strip(matrix.source)
    while str(last.target) == "aten.slice.Tensor" and last.meta["val"].shape == last.args[0].meta["val"].shape:
        program.used.add(last)
        last = program.strip(last.args[0])
    if program.kind(last) != "norm" or program.strip(last.args[0]) is not x:
        raise program.refused(last, "is what the head reads, and a norm of the residual stream is understood")
    program.used |= {last, matrix.node}
    rules.append(program.trace.norms[last.args[1]])
    raw = 10 * program.draw(matrix.node)
    softcap = 0.0
    (found,) = program.run({matrix.node: raw}, logits)
    if not agree(found, raw):
        (top,) = program.run({matrix.node: np.full_like(raw, 1e30)}, logits)
        softcap = float(top.max())
        if not np.isfinite(softcap) or not agree(found, np.float32(softcap) * np.tanh(raw / np.float32(softcap))):
            raise program.refused(logits, "changes the logits, and a soft cap is understood")
    tied = matrix.weight == outer.table or _shared(program, matrix.weight, outer.table)
    return _Head(matrix, last.args[1], tied, bool(matrix.bias), softcap)


def _shared(program: Program, one: str, other: str) -> bool:
    parameters = dict(program.trace.model.named_parameters(remove_duplicate=False))
    return one in parameters and parameters.get(one) is parameters.get(other)


def _outer_recipes(model: Model, outer: _Outer, head: _Head, recipes: dict[tuple[int | None, str], Recipe]) -> None:
    weights = {w.name: w for w in model.outer_weights()}
    recipes[None, "embedding"] = plain(weights["embedding"], outer.table)
    recipes[None, "final_norm"] = norm(weights["final_norm"], head.norm)
    if outer.learned:
        recipes[None, "positions"] = plain(weights["positions"], outer.learned)
    if model.head_bias:
        recipes[None, "head_bias"] = plain(weights["head_bias"], head.matrix.bias)
    if model.tied:
        stored = tuple(size for _, size in weights["embedding"].axes)
        recipes[None, "tied head"] = Recipe(((outer.table, stored),), lambda a: a.T)
    else:
        make = conv1d if head.matrix.transposed else linear
        recipes[None, "head"] = make(weights["head"], head.matrix.weight)


def of_layer(recipe: Recipe, before: str, after: str) -> Recipe:
    """Return the recipe of another layer: the path `before` of its tensors replaced by `after`."""
    names = tuple((after + name.removeprefix(before), shape) for name, shape in recipe.tensors)
    return replace(recipe, tensors=names)
