"""A Hugging Face class through torch.export on the meta device: no weights, one layer of each kind, known parts whole.

Attention, routed experts and norms are written by every model class in its own way. They stay whole: a custom operator
stands in their place, and what it stands for is kept in a record beside the graph. A norm is taken for one only when
its module computes what NormRule says, on random numbers; everything else is traced operator by operator.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from taygeta.base.errors import InputError, UnsupportedError, require
from taygeta.graph.functions import norm as reference_norm
from taygeta.spec.arithmetic import NormRule

if TYPE_CHECKING:
    import torch

PURPOSE = "exporting a model"
NAME = "taygeta"
FAR = 2**24  # a query behind every published window


@dataclass(frozen=True)
class AttentionCall:
    """What an attention operator was called with, beside its tensors."""

    scale: float
    softcap: float
    window: int
    sinks: str


@dataclass
class Trace:
    """An exported program with what its custom operators stand for.

    layers: for every layer of the model, which layer of the program it equals. prefix: the path of the layers' list.
    constants: buffers with their values, by path. attention, norms, experts: by the path of the module.
    """

    program: Any
    model: Any
    layers: tuple[int, ...]
    prefix: str
    tokens: int
    constants: dict[str, Any] = field(default_factory=dict)
    attention: dict[str, AttentionCall] = field(default_factory=dict)
    norms: dict[str, NormRule] = field(default_factory=dict)
    experts: dict[str, Any] = field(default_factory=dict)


@cache
def operators() -> Any:
    """Register the custom operators once and return their namespace. Raises MissingExtraError without torch."""
    torch = require("torch", "torch", PURPOSE)
    library = torch.library.Library(NAME, "DEF")
    library.define("norm(Tensor x, str path) -> Tensor")
    library.define("attention(Tensor q, Tensor k, Tensor v, str path) -> Tensor")
    library.define("experts(Tensor x, Tensor chosen, Tensor weights, str path) -> Tensor")
    library.impl("norm", lambda x, path: torch.empty_like(x), "Meta")
    library.impl(
        "attention",
        lambda q, k, v, path: q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[-1])),
        "Meta",
    )
    library.impl("experts", lambda x, chosen, weights, path: torch.empty_like(x), "Meta")
    operators.library = library  # type: ignore[attr-defined]  # a library that is dropped unregisters
    return torch.ops.taygeta


def register_interfaces() -> None:
    """Make our names known to transformers; the functions behind them are set for each export."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def outside(*_: Any, **__: Any) -> None:
        raise UnsupportedError("A model that was made for an export runs inside of an export only.")

    ALL_ATTENTION_FUNCTIONS.register(NAME, outside)
    ALL_EXPERTS_FUNCTIONS.register(NAME, outside)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *_, mask_function, **__: mask_function)


def trace(model: torch.nn.Module, constants: Mapping[str, Any]) -> Trace:
    """Return the trace of a causal language model that `construct` has made. Raises UnsupportedError."""
    torch = require("torch", "torch", PURPOSE)
    prefix, layers = _layer_list(model)
    kinds, places = _kinds(model, layers)
    out = Trace(None, model, tuple(places), prefix, _token_count(model))
    with _only(model, prefix, kinds), _whole(model, out), torch.no_grad():
        ids = torch.zeros((1, out.tokens), dtype=torch.long, device="meta")
        mask = torch.ones((1, out.tokens), dtype=torch.long, device="meta")  # no padding, and no packed sequences
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own classes
                out.program = torch.export.export(model, (), inputs, strict=False).run_decompositions({})
        except UnsupportedError:
            raise
        except Exception as error:  # code of any class runs here, under a tracer
            reason = " ".join(str(error).split())[:200]
            raise UnsupportedError(
                f"{type(model).__name__} cannot be exported: torch.export says {reason!r}; import its config.json."
            ) from error
    out.constants |= constants
    return out


def _layer_list(model: Any) -> tuple[str, Any]:
    """Return the path of the longest list of modules of one class, and the list."""
    torch = require("torch", "torch", PURPOSE)
    lists = [(p, m) for p, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    if not lists:
        raise UnsupportedError(f"{type(model).__name__} has no list of layers; export_module takes any module.")
    return max(lists, key=lambda item: (len(item[1]), -item[0].count(".")))


def _kinds(model: Any, layers: Any) -> tuple[list[int], list[int]]:
    """Return the first layer of each kind, and for every layer the index of its kind.

    Layers are of one kind when their modules, shapes and plain attributes are the same, and so is their entry in
    every list of the configuration that has one entry a layer.
    """
    config = model.config.get_text_config()
    lists = [v for v in vars(config).values() if isinstance(v, list) and len(v) == len(layers)]
    kinds: dict[object, int] = {}
    first, places = [], []
    for index, layer in enumerate(layers):
        key = (_signature(layer), tuple(str(v[index]) for v in lists))
        if key not in kinds:
            kinds[key] = len(kinds)
            first.append(index)
        places.append(kinds[key])
    return first, places


def _signature(layer: Any) -> object:
    plain = (bool, int, float, str, type(None))
    out: list[object] = []
    for path, module in layer.named_modules():
        shapes = tuple((n, tuple(p.shape)) for n, p in module.named_parameters(recurse=False))
        values = tuple(sorted(
            (n, v) for n, v in vars(module).items()
            if isinstance(v, plain) and n not in ("layer_idx", "training") and not n.startswith("_")
        ), )  # fmt: skip
        out.append((path, type(module).__name__, shapes, tuple((n, str(v)) for n, v in values)))
    return tuple(out)


def _token_count(model: Any) -> int:
    """A prime that divides no side of a parameter, so that the axis of tokens can be told from all others."""
    sides = {side for p in model.parameters() for side in p.shape}
    return next(p for p in (11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53) if all(s % p for s in sides))


@contextlib.contextmanager
def _only(model: Any, prefix: str, kinds: list[int]) -> Iterator[None]:
    """Keep one layer of each kind while the block runs, in the model and in its configuration."""
    torch = require("torch", "torch", PURPOSE)
    config = model.config.get_text_config()
    parent, _, name = prefix.rpartition(".")
    home = model.get_submodule(parent)
    whole, before = getattr(home, name), dict(vars(config))
    numbers = [(m, m.layer_idx) for layer in whole for m in layer.modules() if hasattr(m, "layer_idx")]
    try:
        for key, value in before.items():
            if isinstance(value, list) and len(value) == len(whole):
                setattr(config, key, [value[i] for i in kinds])
        config.num_hidden_layers = len(kinds)
        setattr(home, name, torch.nn.ModuleList([whole[i] for i in kinds]))
        for place, kind in enumerate(kinds):
            for module in whole[kind].modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = place
        yield
    finally:
        setattr(home, name, whole)
        for module, number in numbers:
            module.layer_idx = number
        for key in ("num_hidden_layers", *before):
            value = before.get(key, len(whole))
            if vars(config).get(key) is not value:
                setattr(config, key, value)


@contextlib.contextmanager
def _whole(model: Any, out: Trace) -> Iterator[None]:
    """Put the custom operators in the place of attention, experts and norms while the block runs."""
    ops = operators()
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    paths = {id(module): path for path, module in model.named_modules()}
    calls: list[tuple[Any, ...]] = []

    def attention(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float | None = None, **more: Any) -> Any:
        path = paths[id(module)]
        sinks = more.pop("s_aux", None)
        named = [f"{path}.{n}" for n, p in module.named_parameters() if p is sinks]
        if sinks is not None and not named:
            raise UnsupportedError(f"{path}: attention sinks that are no parameter of their own are not supported.")
        calls.append((module, path, q.shape[-1], mask, scaling, more, named[0] if named else ""))
        return ops.attention(q, k, v, path), None

    def experts(module: Any, x: Any, chosen: Any, weights: Any) -> Any:
        path = paths[id(module)]
        out.experts[path] = module
        return ops.experts(x, chosen, weights, path)

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts)
    patched = []
    try:
        for path, module in model.named_modules():
            rule = _norm_rule(module)
            if rule is not None:
                out.norms[path] = rule
                module.forward = lambda x, at=path: ops.norm(x, at)
                patched.append(module)
        yield
        out.attention |= {path: _attention_call(module, path, *rest) for module, path, *rest in calls}
    finally:
        for module in patched:
            del module.forward


@dataclass(frozen=True)
class Mask:
    """What a mask lets through: everything before (0), a window of so many tokens, or only a part of these (chunk)."""

    window: int = 0
    chunk: int = 0


def _mask(mask_function: Any) -> Mask:
    """Return what a mask lets through: how far back two neighbouring queries see tells a window from a chunk."""
    torch = require("torch", "torch", PURPOSE)

    def sees(query: int, key: int) -> bool:
        at = [torch.tensor(i) for i in (0, 0, query, key)]
        try:
            return bool(mask_function(*at))
        except Exception:  # it reads values of the traced program
            raise UnsupportedError("An attention mask that depends on values is not supported in an export.") from None

    def reach(query: int) -> int:
        """Tokens that a query sees, itself included: the keys it sees are the last ones."""
        low, high = 0, query  # the first visible key is in low..high
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if sees(query, middle) else (middle + 1, high)
        return query - low + 1

    if not sees(FAR, FAR) or sees(FAR, FAR + 1):
        raise UnsupportedError("An attention mask that is not causal is not supported; decoders have causal ones.")
    here, next_ = reach(FAR), reach(FAR + 1)
    if here == FAR + 1:
        return Mask()
    return Mask(window=here) if here == next_ else Mask(chunk=1)


def _attention_call(
    module: Any, path: str, dim: int, mask_function: Any, scaling: float | None, more: Mapping[str, Any], sinks: str
) -> AttentionCall:
    """Return what the operator stands for; what it does not know is refused by name."""
    known = {"dropout", "sliding_window", "softcap", "position_ids", "is_causal", "use_cache", "cache_position"}
    rest = [name for name, value in more.items() if name not in known and value is not None and value is not False]
    if rest:
        raise UnsupportedError(f"{path}: attention is called with {rest[0]}, which is not supported.")
    if not callable(mask_function) or more.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise UnsupportedError(f"{path}: attention that is not causal, or has a mask of its own, is not supported.")
    mask = _mask(mask_function)
    if mask.chunk:
        raise UnsupportedError(f"{path}: a causal mask that is no sliding window is not supported in an export.")
    window = mask.window
    asked = more.get("sliding_window")
    if asked is not None and asked != window:
        raise UnsupportedError(
            f"{path}: attention asks for a window of {asked} tokens and its mask has {window or 'none'}."
        )
    return AttentionCall(
        dim**-0.5 if scaling is None else float(scaling),
        float(more.get("softcap") or 0.0),
        window,
        sinks,
    )


def _norm_rule(module: Any) -> NormRule | None:
    """Return the rule that a module computes, None when it is no norm: decided on random numbers, not by its name."""
    torch = require("torch", "torch", PURPOSE)
    parameters = dict(module.named_parameters())
    if "Norm" not in type(module).__name__ or list(module.children()) or "weight" not in parameters:
        return None
    weight = parameters["weight"]
    if weight.ndim != 1 or set(parameters) - {"weight", "bias"} or list(module.buffers()):
        return None
    eps = [v for n, v in vars(module).items() if "eps" in n and isinstance(v, float)]
    if len(eps) != 1:
        return None
    rng = np.random.default_rng(0)
    size = weight.shape[0]
    mine = copy.deepcopy(module).to_empty(device="cpu").float()
    values = {name: rng.uniform(0.5, 1.5, size).astype(np.float32) for name in parameters}
    # Rows as small as the root of eps show where eps stands.
    x = (rng.standard_normal((4, size)) * np.array([[1.0], [10.0], [eps[0] ** 0.5], [0.1]])).astype(np.float32)
    with torch.no_grad():
        for name, parameter in mine.named_parameters():
            parameter.copy_(torch.from_numpy(values[name]))
        try:
            found = mine(torch.from_numpy(x)).numpy()
        except (TypeError, RuntimeError):  # it takes more than one value
            return None
    stored = np.stack([values["weight"], *([values["bias"]] if "bias" in values else [])])
    for kind in ("rms", "layer"):
        for offset in (0.0, 1.0):
            rule = NormRule(kind, eps[0], offset)
            if np.allclose(reference_norm(x, stored, rule), found, rtol=1e-5, atol=1e-6):
                return rule
    return None


def construct(config: Any, architecture: Any = None) -> tuple[Any, dict[str, Any]]:
    """Return the model of a configuration on the meta device, and the values of its constant buffers, by path.

    Only what is computed from the configuration (rotary frequencies, an embedding's scale) is really made; everything
    of the size of a weight is made without memory. Raises InputError where transformers refuses the configuration.
    """
    torch = require("torch", "torch", PURPOSE)
    transformers = require("transformers", "torch", PURPOSE)
    from torch.overrides import TorchFunctionMode

    blank = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.normal}

    class Weightless(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if function in blank and kwargs.get("device") is None:
                kwargs["device"] = "meta"
            return function(*args, **kwargs)

    operators()
    register_interfaces()
    config._attn_implementation = config._experts_implementation = NAME
    make = architecture._from_config if architecture else transformers.AutoModelForCausalLM.from_config
    try:
        with Weightless():
            model = make(config, dtype=torch.float32).eval()
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{type(config).__name__} makes no model: transformers says {reason!r}.") from error
    constants = {path: buffer.clone() for path, buffer in model.named_buffers() if buffer.device.type != "meta"}
    return model.to("meta"), constants
