"""The native formats of a checkpoint: what quantization_config says, part by part.

A method names a format; a list of module names says what keeps the base format. Each part of each layer is asked by
the names that its modules have in published checkpoints. A pattern that names no module known here is refused, so
that none is ignored by accident. Regular expressions are read as the small language that checkpoints use and are
never run as such: an expression from a file could take for ever.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.frontend.config import Fields, shown
from taygeta.spec.mixers import Attention, LatentAttention
from taygeta.spec.model import DenseFfn, Layer, MoeFfn, NativeFormats

_BASES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_STEMS = ("model", "model.language_model", "language_model.model", "backbone")
_BLOCKS = ("mlp", "block_sparse_moe", "feed_forward", "mixer", "moe")
_FFN = ("down_proj", "up_proj", "gate_proj", "gate_up_proj", "gate_up_down_proj", "fc2", "c_proj")
_ATTENTION = ("o_proj", "q_proj", "k_proj", "v_proj", "qkv_proj", "q_b_proj", "kv_b_proj", "kv_a_proj_with_mqa")
_RECURRENT = ("out_proj", "in_proj", "in_proj_qkv", "in_proj_qkvz")
# Modules that stay in the base format whatever a file says of them, or that are not part of the text model.
_NEVER = re.compile(
    r"norm|gate\b|router|embed|bias|indexer|eh_proj|visual|vision|multi_modal|mm_projector|shared_head|conv1d"
    r"|in_proj_[ab]\b|latent_proj|shared_expert_gate|lm_head|mtp"
)
_LAYER_NUMBER = re.compile(r"layers\.(\d{1,6})(?=\.|$)")
_MAX_FORMS = 500


@dataclass(frozen=True)
class Recipe:
    """What a quantisation method makes of a checkpoint: the formats, and the modules that keep the base format."""

    weights: str
    activations: str
    kv: str
    skipped: tuple[str, ...]
    experts_only: bool = False
    head: bool = False


def native_formats(
    fields: Fields, layers: Sequence[Layer], quantisation: Fields | None
) -> tuple[NativeFormats, tuple[str, ...]]:
    """Return the native formats of a model and the notes they call for.

    The base format is dtype (or torch_dtype), bf16 when the file is silent. Raises InputError and UnsupportedError.
    """
    base = _BASES[fields.text("dtype", _BASES, fields.text("torch_dtype", _BASES, "bfloat16"))]
    plain = NativeFormats(base, base, base, base, base, base, base, base)
    if quantisation is None:
        return plain, ()
    recipe = _recipe(quantisation, base)
    numbers = {layer: number for number, layer in enumerate(dict.fromkeys(layers))}
    kinds = [numbers[layer] for layer in layers]
    matcher = _Matcher(recipe.skipped, quantisation.where, len(layers), tuple(numbers))
    formats: dict[str, str] = {}
    notes: list[str] = []
    for part in ("attention", "ffn", "experts", "shared"):
        having = {number for layer, number in numbers.items() if part in _parts(layer)}
        indices = [i for i, kind in enumerate(kinds) if kind in having]
        if recipe.experts_only and part != "experts":
            continue
        kept = sum(matcher.keeps(i, part, kinds[i]) for i in indices)
        if 2 * kept < len(indices):
            formats[part] = recipe.weights
        if 0 < kept < len(indices):
            notes.append(
                f"{part}: {kept} of {len(indices)} layers keep {base}, the others are {recipe.weights}; "
                f"all are taken as {formats.get(part, base)}"
            )
    head = recipe.head and not matcher.names("lm_head")
    matcher.check_all_known()
    return NativeFormats(
        attention=formats.get("attention", base),
        ffn=formats.get("ffn", base),
        experts=formats.get("experts", base),
        shared=formats.get("shared", base),
        head=recipe.weights if head else base,
        activations=recipe.activations,
        kv=recipe.kv,
        embedding=base,
    ), tuple(notes)


def _recipe(q: Fields, base: str) -> Recipe:
    """Return the recipe of a quantization_config. Raises UnsupportedError for a method that is not known."""
    method = q.get("quant_method")
    if method is None and (q.has("quant_algo") or q.section("quantization")):
        method = "modelopt"
    readers = {
        "fp8": _fp8,
        "mxfp4": _mxfp4,
        "modelopt": _modelopt,
        "modelopt_fp4": _modelopt,
        "compressed-tensors": _compressed_tensors,
    }
    if not isinstance(method, str):
        raise InputError(f"{q.where}: quant_method must be the name of a method such as 'fp8', not {shown(method)}.")
    if method not in readers:
        raise UnsupportedError(
            f"{q.where}: quant_method = {shown(method)} is not supported; "
            "it can be fp8, mxfp4, modelopt or compressed-tensors."
        )
    recipe = readers[method](q, base)
    q.finish("quantised", _HARMLESS, ())
    return recipe


_HARMLESS = frozenset(
    ("format", "global_compression_ratio", "producer", "quantization_status", "run_compressed", "scale_fmt", "version")
)


def _fp8(q: Fields, base: str) -> Recipe:
    """fp8 e4m3 as Hugging Face and DeepSeek write it: in blocks of 128 x 128, or one scale a tensor."""
    q.text("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
    scheme = q.text("activation_scheme", ("dynamic", "static"), "dynamic")
    block = q.counts("weight_block_size", 65_536)
    if block and block != (128, 128):
        raise UnsupportedError(
            f"{q.where}: weight_block_size = {shown_list(block)} is not supported; it can be [128, 128]."
        )
    name = "fp8_block" if block else "fp8" if scheme == "dynamic" else "fp8_static"
    return Recipe(name, name, base, q.texts("modules_to_not_convert") + q.texts("ignored_layers"))


def _mxfp4(q: Fields, base: str) -> Recipe:
    """gpt-oss: the experts' matrices are MXFP4, all else and the arithmetic stay in the base format."""
    return Recipe("mxfp4", base, base, q.texts("modules_to_not_convert"), experts_only=True)


def _modelopt(q: Fields, base: str) -> Recipe:
    """NVIDIA Model Optimizer, in quantization_config or in the older hf_quant_config.json."""
    inner = q.section("quantization") or q
    algorithm = inner.text("quant_algo", ("FP8", "NVFP4"))
    inner.only("group_size", 16)
    skipped = inner.texts("ignore") + inner.texts("exclude_modules")
    groups = q.section("config_groups")
    if groups is not None:
        _check_modelopt_groups(groups, algorithm)
    kv = (
        _kv(inner, "kv_cache_quant_algo", base) if inner.has("kv_cache_quant_algo") else _kv(q, "kv_cache_scheme", base)
    )
    if inner is not q:
        inner.finish("quantised", _HARMLESS, ())
    name = "nvfp4" if algorithm == "NVFP4" else "fp8_static"
    return Recipe(name, name, kv, skipped, head=True)


def _check_modelopt_groups(groups: Fields, algorithm: str) -> None:
    """Refuse config_groups that say something else than quant_algo."""
    bits = 4 if algorithm == "NVFP4" else 8
    for name in groups.values:
        group = groups.section(name)
        if group is None:
            continue
        group.texts("targets")
        for side in ("weights", "input_activations"):
            scheme = group.section(side)
            if scheme is None:
                continue
            scheme.only("num_bits", bits)
            scheme.only("type", "float")
            scheme.only("dynamic", False)
            scheme.only("group_size", 16)
            scheme.finish("quantised", ("strategy", "symmetric"), ())
        group.finish("quantised", (), ())


def _compressed_tensors(q: Fields, base: str) -> Recipe:
    """compressed-tensors with one group of linear layers: int4 in groups of 32, int8, fp8 or NVFP4."""
    groups = q.section("config_groups")
    names = list(groups.values) if groups else []
    group = groups.section(names[0]) if groups and len(names) == 1 else None
    if group is None:
        raise UnsupportedError(f"{q.where}: config_groups must hold one group of layers, not {len(names)}.")
    targets = group.texts("targets")
    if targets != ("Linear",):
        raise UnsupportedError(f"{group.where}: targets must be ['Linear'], not {shown_list(targets)}.")
    group.only("output_activations")
    weights, inputs = group.section("weights"), group.section("input_activations")
    if weights is None:
        raise InputError(f"{group.where}: weights is missing; it must be a table with num_bits and type.")
    group.finish("quantised", ("format",), ())
    name = _scheme(weights, dynamic_inputs=inputs is not None and inputs.get("dynamic") is not False)
    activations = base
    if inputs is not None:
        _check_inputs(inputs, weights)
        activations = name
    kv = _kv(q, "kv_cache_scheme", base)
    return Recipe(name, activations, kv, q.texts("ignore"), head=True)


def _scheme(weights: Fields, dynamic_inputs: bool) -> str:
    """Return the format of a compressed-tensors weight scheme. Raises UnsupportedError."""
    bits = weights.count("num_bits", 16)
    kind = weights.text("type", ("int", "float"), "int")
    strategy = weights.text("strategy", ("tensor", "channel", "group", "block", "tensor_group"), "tensor")
    size = weights.count("group_size", 1_000_000, default=0, least=0) if weights.get("group_size") != -1 else 0
    block = weights.counts("block_structure", 65_536)
    weights.only("dynamic", False)
    weights.only("actorder")
    weights.finish("quantised", ("symmetric", "observer", "observer_kwargs", "zp_dtype", "scale_dtype"), ())
    known = {
        (4, "int", "group", 32, ()): "int4",
        (8, "int", "channel", 0, ()): "int8",
        (8, "float", "channel", 0, ()): "fp8",
        (8, "float", "tensor", 0, ()): "fp8" if dynamic_inputs else "fp8_static",
        (8, "float", "block", 0, (128, 128)): "fp8_block",
        (4, "float", "tensor_group", 16, ()): "nvfp4",
    }
    found = known.get((bits, kind, strategy, size, block))
    if found is None:
        raise UnsupportedError(
            f"{weights.where}: {bits}-bit {kind} with strategy {strategy} and group_size {size} is not supported; "
            "it can be int4 in groups of 32, int8 or fp8 by channel, fp8 by tensor or in blocks of 128 x 128, or NVFP4."
        )
    return found


def _check_inputs(inputs: Fields, weights: Fields) -> None:
    """Refuse activations of another width than the weights: no format here computes on a mix."""
    bits = weights.values.get("num_bits")
    inputs.only("num_bits", bits)
    inputs.only("type", weights.values.get("type"))
    harmless = (
        "dynamic",
        "strategy",
        "symmetric",
        "observer",
        "observer_kwargs",
        "group_size",
        "zp_dtype",
        "scale_dtype",
    )
    inputs.finish("quantised", (*harmless, "block_structure"), ())


def _kv(q: Fields, name: str, base: str) -> str:
    """Return the format of the KV cache: fp8 with a scale known in advance, or the base format."""
    value = q.get(name)
    if value is None:
        return base
    if isinstance(value, str):
        q.text(name, ("FP8",))
        return "fp8_static"
    scheme = q.section(name) or Fields({}, q.where)
    scheme.only("num_bits", 8)
    scheme.only("type", "float")
    scheme.finish("quantised", ("dynamic", "strategy", "symmetric", "observer", "observer_kwargs", "group_size"), ())
    return "fp8_static"


def shown_list(values: Sequence[object]) -> str:
    """Return a short list as it stands in a file."""
    return "[" + ", ".join(shown(v) for v in values[:8]) + (", ...]" if len(values) > 8 else "]")


def _parts(layer: Layer) -> tuple[str, ...]:
    out = ("attention",) if layer.mixer is not None else ()
    if isinstance(layer.ffn, DenseFfn):
        out += ("ffn",)
    elif isinstance(layer.ffn, MoeFfn):
        out += ("experts", "shared") if layer.ffn.shared_d_ff else ("experts",)
    return out


def _modules(part: str, layer: Layer) -> tuple[str, ...]:
    """Return the names, inside its layer, that the matrices of a part have in published checkpoints."""
    if part == "attention":
        softmax = isinstance(layer.mixer, Attention | LatentAttention)
        blocks = ("self_attn", "mixer") if softmax else ("linear_attn", "mixer")
        return tuple(f"{b}.{m}" for m in (_ATTENTION if softmax else _RECURRENT) for b in blocks)
    inner = {"ffn": "", "experts": "experts.0.", "shared": "shared_experts."}[part]
    out = tuple(f"{b}.{inner}{m}" for m in _FFN for b in _BLOCKS)
    if part == "experts":
        out += tuple(f"{b}.experts.{m}" for b in _BLOCKS for m in ("down_proj", "gate_up_proj", "0.w2"))
    if part == "shared":
        out += tuple(f"{b}.shared_expert.{m}" for b in _BLOCKS for m in _FFN)
    return out


class _Matcher:
    """Asks a list of patterns which parts of which layers they name.

    Lists in checkpoints repeat a few patterns for every layer, so each is reduced to its form for layer 0, which is
    asked once for each part and kind of layer.
    """

    def __init__(self, patterns: Sequence[str], where: str, layers: int, kinds: Sequence[Layer]) -> None:
        self.where = where
        self.kinds = kinds
        self.forms: dict[str, re.Pattern[str]] = {}
        self.everywhere: set[str] = set()
        self.single: dict[int, set[str]] = {}
        self.patterns: dict[str, str] = {}
        self.answers: dict[tuple[str, str, int], bool] = {}
        self.general: dict[tuple[str, int], bool] = {}
        for pattern in patterns:
            number = _LAYER_NUMBER.search(pattern)
            form = _LAYER_NUMBER.sub("layers.0", pattern, count=1)
            if number is None:
                self.everywhere.add(form)
            else:
                self.single.setdefault(int(number.group(1)), set()).add(form)
                if int(number.group(1)) >= layers:
                    continue  # a multi-token prediction layer
            self.patterns.setdefault(form, pattern)
        if len(self.patterns) > _MAX_FORMS:
            raise InputError(f"{where}: {len(self.patterns)} different patterns of modules are too many to be read.")
        for form, pattern in self.patterns.items():
            self.forms[form] = re.compile("|".join(translate(glob) for glob in _globs(form, pattern, where)))

    def names(self, module: str) -> bool:
        """Return whether a pattern that holds for every layer names the module, such as lm_head."""
        return any(self.forms[form].match(f".{module}.") for form in self.everywhere)

    def keeps(self, index: int, part: str, kind: int) -> bool:
        """Return whether a part of a layer, whose kind is given by number, keeps the base format."""
        if (part, kind) not in self.general:
            self.general[part, kind] = any(self._asks(form, part, kind) for form in self.everywhere)
        return self.general[part, kind] or any(self._asks(form, part, kind) for form in self.single.get(index, ()))

    def _asks(self, form: str, part: str, kind: int) -> bool:
        key = (form, part, kind)
        if key not in self.answers:
            expression = self.forms[form]
            modules = _modules(part, self.kinds[kind])
            self.answers[key] = any(expression.match(f".{stem}.layers.0.{m}.") for m in modules for stem in _STEMS)
        return self.answers[key]

    def check_all_known(self) -> None:
        """Refuse a pattern that names no part and is not one of the modules that never change format."""
        kinds = [(part, number) for number, layer in enumerate(self.kinds) for part in _parts(layer)]
        for form, pattern in self.patterns.items():
            known = _NEVER.search(form) or any(self._asks(form, part, number) for part, number in kinds)
            if not known:
                raise UnsupportedError(
                    f"{self.where}: {shown(pattern)} names no module that is known here; module names look like "
                    "'lm_head', 'model.layers.0.self_attn' or 're:.*mlp.*'."
                )


def _globs(form: str, pattern: str, where: str) -> list[str]:
    """Return a pattern as shell patterns over '.module.name.'.

    A plain name stands for itself, all it holds, and every module it ends; '*' stands for anything. 're:' expressions
    can have words, '.*', escaped dots and one level of (a|b), and are matched from the start.
    """
    bad = UnsupportedError(
        f"{where}: the pattern {shown(pattern)} is not understood; it can be the name of a module with '*' in it, "
        "or an expression after 're:' with words, '.*', escaped dots and (a|b)."
    )
    if len(form) > 300 or set(form) & set("?[]"):
        raise bad
    if not form.startswith("re:"):
        return [f".{form}.*"] if form.startswith("*") else [f".{form}.*", f"*.{form}.*"]
    text = form[3:].removeprefix("^")
    body = text.removesuffix("$")
    pieces = re.findall(r"\(([\w|.]{1,200})\)|(\.\*)|(\\\.)|(\\d\+)|([\w-]+|\.)", body)
    if "".join(f"({p[0]})" if p[0] else "".join(p[1:]) for p in pieces) != body:
        raise bad
    out = ["."]
    for choice, anything, dot, digits, plain in pieces:
        options = choice.split("|") if choice else ["*" if anything or digits else "." if dot else plain]
        out = [head + tail for head in out for tail in options]
        if len(out) > 64:
            raise bad
    return [glob + "." if text.endswith("$") else glob + "*" for glob in out]
