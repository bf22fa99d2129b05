"""Views of one chip with the source of every number, and of one model with its layers."""

from __future__ import annotations

from taygeta.base import units
from taygeta.base.formats import format_of
from taygeta.report.view import Cell, Column, Fact, Grid, View, cells
from taygeta.report.words import count, number, size
from taygeta.spec.fields import FIELDS
from taygeta.spec.mixers import Attention, LatentAttention, LinearAttention, StateSpace
from taygeta.spec.model import Model, MoeFfn
from taygeta.spec.sheet import Entry, Sheet

_NATIVE = ("attention", "ffn", "experts", "shared", "head", "activations", "kv")


def sheet_view(sheet: Sheet) -> View:
    """Return one chip with every number, its source or the reason for which it is assumed."""
    texts = {k: v for k, v in sheet.texts.items() if k not in ("id", "name")}
    columns = (
        Column("field", False),
        Column("value"),
        Column("source or reason", False),
    )
    rows = tuple(_entry_row(path, sheet.entries[path]) for path in FIELDS if path in sheet.entries)
    pairs = [f"{w} by {a}" for w, a in sheet.activations.items()]
    return View(
        title=f"{sheet.id}: {sheet.texts.get('name', sheet.id)}",
        lines=((f"also called {', '.join(sheet.aliases)}",) if sheet.aliases else ()),
        facts=(
            *(Fact(k, v) for k, v in texts.items()),
            *((Fact("weights by activations", ", ".join(pairs)),) if pairs else ()),
        ),
        grids=(Grid("Numbers; below an assumed one its range", columns, rows),),
        notes=sheet.notes,
    )


def model_view(m: Model) -> View:
    """Return one model: size, layers, cache, formats, and the guesses behind an unpublished one."""
    facts = [
        Fact("parameters", parameters(m.parameters()), f"{m.parameters():,}"),
        Fact("active for a token", parameters(m.active_parameters()), f"{m.active_parameters():,}"),
    ]
    if m.mtp:
        facts.append(
            Fact(
                "with multi-token prediction",
                parameters(m.parameters(mtp=True)),
                count(len(m.mtp), "extra layer"),
            )
        )
    facts += [
        Fact(
            "layers",
            f"{len(m.layers)}",
            f"d_model {m.d_model:,}, vocabulary {m.vocab:,}{', tied' if m.tied else ''}",
        ),
        Fact("longest context", f"{m.max_context:,} tokens"),
        Fact("KV cache of a token", size(cache_bytes_per_token(m)), f"in {m.native.kv}{_limited(m)}"),
    ]
    if state_bytes(m):
        facts.append(Fact("state of a sequence", size(state_bytes(m)), "recurrent layers, in fp32"))
    facts.append(
        Fact(
            "formats", "as stored", ", ".join(f"{p} {getattr(m.native, p)}" for p in _NATIVE if _stores(m, p))
        )
    )
    columns = (
        Column("layers"),
        Column("mixer", False),
        Column("feed-forward", False),
        Column("parameters each", drop=1),
    )
    rows = tuple(
        cells(
            f"{n}",
            _mixer_text(layer.mixer),
            _ffn_text(layer.ffn),
            parameters(sum(w.elements for w in layer.weights(m.d_model))),
        )
        for layer, n in m.kinds()
    )
    return View(
        title=m.name,
        lines=(f"source: {m.source}",) if m.source else (),
        warning=f"{m.name} is unpublished: its shapes are estimates." if m.assumed else "",
        facts=tuple(facts),
        grids=(Grid("Layers", columns, rows), *_guesses(m)),
        notes=m.notes,
    )


def has_experts(m: Model) -> bool:
    """Return whether a layer has routed experts."""
    return any(isinstance(layer.ffn, MoeFfn) for layer, _ in m.kinds())


def parameters(n: float) -> str:
    """Return a number of parameters as model cards write it: 116.8 billion is '117 B'."""
    for scale, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M")):
        if n >= scale * 0.9995:
            return number(n / scale) + unit
    return f"{n:,.0f}"


def cache_bytes_per_token(m: Model) -> float:
    """Return the bytes that a token adds to the KV cache of all layers, in the model's own format."""
    elements = sum(
        layer.mixer.cache_elements()
        for layer in m.layers
        if isinstance(layer.mixer, (Attention, LatentAttention))
    )
    return elements * format_of(m.native.kv).bytes_per_element


def state_bytes(m: Model) -> float:
    """Return the bytes of recurrent state of one sequence: states in fp32, convolution histories in bf16."""
    recurrent = [layer.mixer for layer in m.layers if isinstance(layer.mixer, (LinearAttention, StateSpace))]
    return float(sum(4 * r.state_elements() + 2 * r.conv_elements() for r in recurrent))


def _entry_row(path: str, e: Entry) -> tuple[Cell, ...]:
    dimension = FIELDS[path].dimension
    reach = f"{units.show(e.low, dimension)} to {units.show(e.high, dimension)}" if e.assumed else ""
    origin = " (family)" if e.origin == "family" else ""
    return cells(
        path,
        Cell(units.show(e.nominal, dimension), reach),
        (f"assumed{origin}: {e.reason}" if e.assumed else e.source + origin),
    )


def _guesses(m: Model) -> tuple[Grid, ...]:
    if not m.guesses:
        return ()
    columns = (
        Column("guessed", False),
        Column("value"),
        Column("range", False),
        Column("who estimated it", False),
    )
    rows = tuple(
        cells(g.field, f"{g.nominal:,.10g}", f"{g.low:,.10g} to {g.high:,.10g}", g.reason) for g in m.guesses
    )
    return (Grid("Estimates that the model rests on", columns, rows),)


def _stores(m: Model, part: str) -> bool:
    """Whether the model has weights of a part; activations and KV cache it always has."""
    outer = {w.part for w in m.outer_weights()}
    inner = {w.part for layer, _ in m.kinds() for w in layer.weights(m.d_model)}
    return part in ("activations", "kv") or part in outer | inner


def _limited(m: Model) -> str:
    limits = {
        layer.mixer.window or layer.mixer.chunk
        for layer, _ in m.kinds()
        if isinstance(layer.mixer, Attention)
    } - {None}
    return (
        f"; layers with a window keep {' or '.join(f'{n:,}' for n in sorted(x for x in limits if x))} tokens"
        if limits
        else ""
    )


def _mixer_text(mixer: object) -> str:
    if isinstance(mixer, Attention):
        kind = "MHA" if mixer.kv_heads == mixer.heads else "MQA" if mixer.kv_heads == 1 else "GQA"
        reach = (
            f", window {mixer.window:,}"
            if mixer.window
            else f", chunks of {mixer.chunk:,}"
            if mixer.chunk
            else ""
        )
        heads = f"{kind} {mixer.heads} heads, {mixer.kv_heads} KV, {mixer.head_dim} wide"
        return f"{heads}{reach}{', sinks' if mixer.sinks else ''}"
    if isinstance(mixer, LatentAttention):
        sparse = f", picks {mixer.indexer.top_k:,} tokens" if mixer.indexer else ""
        return f"MLA {mixer.heads} heads, latent {mixer.kv_rank} + {mixer.rope_dim}{sparse}"
    if isinstance(mixer, LinearAttention):
        return f"gated DeltaNet {mixer.value_heads} heads, state {mixer.key_dim} x {mixer.value_dim}"
    if isinstance(mixer, StateSpace):
        return f"Mamba-2 {mixer.heads} heads, state {mixer.head_dim} x {mixer.state_dim}"
    return "none"


def _ffn_text(ffn: object) -> str:
    if isinstance(ffn, MoeFfn):
        shared = f", shared {ffn.shared_d_ff:,}" if ffn.shared_d_ff else ""
        return f"{ffn.top_k} of {ffn.experts} experts, d_ff {ffn.d_ff:,}{shared}"
    d_ff = getattr(ffn, "d_ff", None)
    return f"dense, d_ff {d_ff:,}" if d_ff else "none"
