"""The serving engine: what belongs to the framework and its host, never to a model or a chip.

One set of numbers for each framework (data/engines/*.toml), each with its source or as fitted with its provenance.
"""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from taygeta.base import units
from taygeta.base.errors import InputError, UnknownNameError
from taygeta.base.formats import format_of
from taygeta.spec.fields import LIBRARIES

MEMORIES = ("total", "static", "free")
POLICIES = ("mixed", "prefill_first", "decode_first")
MAX_BYTES = 1 << 20  # of a user's own file
SETTABLE_POLICIES = {"vllm": ("mixed",), "sglang": ("prefill_first", "mixed"), "trtllm": ("mixed",)}
"""Policies that each framework can be set to.

SGLang runs prompts first, or mixes them into decode steps with --enable-mixed-chunk; vLLM's V1 scheduler and
TensorRT-LLM's executor always mix.
"""


@dataclass(frozen=True)
class Engine:
    """The engine's constants.

    Memory. kv_format: of the KV cache where the launch sets one; "" is the checkpoint's own. memory_fraction: share
    that the engine takes, of "total" memory for weights, activations and KV cache, of "static" memory for weights and
    KV cache, or of "free" memory beside weights and activations for the KV cache alone: memory_of. block_tokens: tokens
    of a block of the KV cache. prefix_caching: blocks of prompts are kept and found again.

    Scheduler. policy: "mixed": chunks of prompts ride on decode steps; "prefill_first": prompts run alone and before
    decodes, as many together as the budget holds; "decode_first": prompts run alone and when nothing decodes.
    token_budget: new tokens that one step may hold. sequence_limit: sequences that run at once on an attention-DP
    rank. chunks_prompts: a prompt may be split over steps. reserve: share of its answer for which a request must find
    room before it is admitted. intake_steps: steps between two looks at new requests while others decode; after a
    step with prompts they are looked at in any case. wait_steps: steps that prompts wait at most for more of them,
    until they fill wait_share of the budget.

    Host. host_step, host_request: seconds of a step that the chip waits for, and the same for each sequence of it.
    overlaps_host: they run beside the step, which takes the longer of the two. plans_ahead: a step is planned while
    the one before it runs, so that a request that comes meanwhile waits for one step more. captured_tokens: new tokens
    up to which a step that holds prompts is replayed from captured graphs. eager_launch: seconds in which the host
    launches a kernel of a longer one, and prompt_step: seconds that such a step takes beyond. prompt_slowdown: what
    the kernels of every step with prompts take over what is modelled, since engines choose and fuse them for decodes
    and long steps run hot. compile_pieces: seconds in which an engine that was not warmed up compiles kernels, once,
    in the first step that takes only a piece of a prompt: those for the pieces to come. intake_request, intake_token:
    seconds for which a request, and each token of its prompt, keeps the front end before the scheduler sees it.
    client_delay: seconds that tokens take on their way to the client. emit_token:
    seconds of the front end for an emitted chunk of tokens. stream_interval: tokens that leave together;
    streams_first: the first leaves alone.

    Kernels. fused_all_reduce: the all-reduce, the residual add and the norm are one kernel. fused_epilogues: rotary
    embedding, activation functions and casts ride on the neighbouring matrix multiply. quantise_launches: kernels of
    its own for quantising the activations of a multiply; block_launches: the same where scales are of blocks of a row,
    found as they come. direct_start, direct_second, direct_efficiency: the engine's
    own one- and two-shot all-reduce kernels, as taygeta.cost.collective names them. experts_wide, experts_eight,
    experts_four: libraries of expert layers with weights of 16, 8 and 4 bits, the first for which the chip has
    constants; the chip's own where it has none. shared_fused: libraries that compute a shared expert as one more routed
    expert, whose tokens are all; shared_beside: tokens of a step up to which shared experts, where they are not fused,
    run on a stream beside the routed ones, which hides their launches.
    """

    name: str
    memory_fraction: float
    token_budget: int
    host_step: float
    host_request: float
    quantise_launches: float
    fused_all_reduce: bool
    fused_epilogues: bool
    direct_start: float
    direct_second: float
    direct_efficiency: float
    block_launches: float = 1.0
    experts_wide: str = ""
    experts_eight: str = ""
    experts_four: str = ""
    shared_fused: str = ""
    shared_beside: int = 0
    kv_format: str = ""
    memory_of: str = "total"
    policy: str = "mixed"
    sequence_limit: int = 256
    block_tokens: int = 16
    chunks_prompts: bool = True
    reserve: float = 0.0
    prefix_caching: bool = True
    intake_steps: int = 1
    wait_steps: int = 0
    wait_share: float = 1.0
    overlaps_host: bool = False
    captured_tokens: int = 0
    eager_launch: float = 0.0
    prompt_step: float = 0.0
    prompt_slowdown: float = 1.0
    compile_pieces: float = 0.0
    plans_ahead: bool = False
    client_delay: float = 0.0
    intake_request: float = 0.0
    intake_token: float = 0.0
    emit_token: float = 0.0
    stream_interval: int = 1
    streams_first: bool = True
    sources: tuple[str, ...] = ()

    @property
    def mixes_prefill(self) -> bool:
        """Whether chunks of prompts ride on decode steps."""
        return self.policy == "mixed"

    @property
    def framework(self) -> str:
        """The engine of the catalogue that this one is, or is made from."""
        return self.name.partition("@")[0].partition(":")[0]


_DIMENSIONS = {
    "memory_fraction": units.RATIO,
    "token_budget": units.COUNT,
    "host_step": units.SECONDS,
    "host_request": units.SECONDS,
    "quantise_launches": units.RATIO,
    "block_launches": units.RATIO,
    "direct_start": units.RATIO,
    "direct_second": units.RATIO,
    "direct_efficiency": units.RATIO,
    "sequence_limit": units.COUNT,
    "shared_beside": units.COUNT,
    "block_tokens": units.COUNT,
    "reserve": units.RATIO,
    "intake_steps": units.COUNT,
    "wait_steps": units.COUNT,
    "wait_share": units.RATIO,
    "captured_tokens": units.COUNT,
    "eager_launch": units.SECONDS,
    "prompt_step": units.SECONDS,
    "prompt_slowdown": units.RATIO,
    "compile_pieces": units.SECONDS,
    "client_delay": units.SECONDS,
    "intake_request": units.SECONDS,
    "intake_token": units.SECONDS,
    "emit_token": units.SECONDS,
    "stream_interval": units.COUNT,
}
# Fixed with the kernels, or said elsewhere; the rest is what a user may set for a run.
_FIXED = ("sources", "block_launches", "shared_fused", "shared_beside", "kv_format")
SCHEDULER = tuple(f.name for f in fields(Engine) if f.default is not MISSING and f.name not in _FIXED)


def engine_names() -> tuple[str, ...]:
    """Return the engines of the catalogue."""
    return tuple(sorted(_files()))


def engine(name: str) -> Engine:
    """Return an engine by name, such as "vllm", or as a public benchmark runs it, such as "vllm@inferencex", or from a
    user's own .toml file: `base = "vllm"` and the fields that differ, each as { value = ..., source = "..." }.

    Raises UnknownNameError, or InputError for a benchmark that the engine's file does not have, or for a file that
    cannot be used.
    """
    if name.endswith(".toml"):
        return _read_own(Path(name))
    plain, _, benchmark = name.lower().partition("@")
    return _read(plain, benchmark)


@cache
def engine_document(name: str) -> dict[str, Any]:
    """Return the file of an engine as it is written, rules and benchmarks among it. Raises UnknownNameError."""
    files = _files()
    if name not in files:
        raise UnknownNameError("Engine", name, files, f"Engines are {', '.join(engine_names())}.")
    return tomllib.loads(files[name].read_text(encoding="utf-8"))


@cache
def _files() -> dict[str, Path]:
    root = Path(str(resources.files("taygeta") / "data" / "engines"))
    return {path.stem: path for path in root.glob("*.toml")}


@cache
def _read(plain: str, benchmark: str) -> Engine:
    document = dict(engine_document(plain))
    own = document.get("benchmark", {})
    if benchmark:
        if benchmark not in own:
            known = ", ".join(f"{plain}@{name}" for name in sorted(own)) or "none"
            raise InputError(f"Engine {plain} has no settings for the benchmark {benchmark!r}; known are {known}.")
        document |= own[benchmark]
    known = {f.name for f in fields(Engine)} - {"name", "sources"}
    missing = known - set(document)
    if missing:
        raise InputError(f"{plain}.toml: {sorted(missing)[0]} is missing.")
    values: dict[str, Any] = {}
    sources: list[str] = []
    for key in known:
        item = document[key]
        values[key] = checked(key, item["value"], f"{plain}.toml: {key}")
        sources.append(f"{key}: {item['source']}")
    name = f"{plain}@{benchmark}" if benchmark else plain
    return Engine(name=name, sources=tuple(sorted(sources)), **values)


def _read_own(path: Path) -> Engine:
    """Return the engine of a user's file: one of the catalogue with some fields of its own."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB: it is no engine.")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}.") from None
    base = document.pop("base", None)
    if not isinstance(base, str) or base.endswith(".toml"):
        raise InputError(f"{path}: base must name the engine that it differs from: {', '.join(engine_names())}.")
    found = engine(base)
    values: dict[str, Any] = {}
    sources = {source.partition(":")[0]: source for source in found.sources}
    for key, item in document.items():
        if key not in _TYPES or key in ("name", "sources"):
            raise InputError(f"{path}: an engine has no field {key!r}; fields are {', '.join(sorted(sources))}.")
        if not isinstance(item, dict) or set(item) != {"value", "source"} or not isinstance(item["source"], str):
            raise InputError(f'{path}: {key} must be {{ value = ..., source = "..." }}, not {str(item)[:80]!r}.')
        values[key] = checked(key, item["value"], f"{path}: {key}")
        sources[key] = f"{key}: {item['source']}"
    own = f"{found.name}:{path.stem}"
    return replace(found, **values, name=own, sources=tuple(sorted(sources.values())))


def policies(found: Engine) -> tuple[str, ...]:
    """Return the scheduling policies that an engine can be set to, its own among them."""
    return tuple(dict.fromkeys((found.policy, *SETTABLE_POLICIES.get(found.framework, ()))))


def checked(key: str, value: Any, where: str) -> Any:
    """Return the value of an engine's field from a file or the command line, in SI units. Raises InputError."""
    if key in _CHOICES:
        known = _CHOICES[key]
        if value not in known:
            raise InputError(f"{where} must be {', '.join(known[:-1])} or {known[-1]}, not {value!r}.")
        return value
    kind = _TYPES[key]
    if kind == "bool":
        if str(value).lower() not in ("true", "false"):
            raise InputError(f"{where} must be true or false, not {value!r}.")
        return str(value).lower() == "true"
    if key == "kv_format":
        return format_of(str(value)).name if value else ""
    if key.startswith("experts_") or key == "shared_fused":
        unknown = [name for name in str(value).split() if name not in LIBRARIES]
        if unknown:
            raise InputError(f"{where} names libraries of {', '.join(LIBRARIES)}, not {unknown[0]!r}.")
        return str(value)
    number = units.parse(value, _DIMENSIONS[key], where)
    if kind == "int":
        if number < _LEAST.get(key, 1) or number != int(number):
            raise InputError(f"{where} must be a whole number of at least {_LEAST.get(key, 1)}, not {value!r}.")
        return int(number)
    return number


_TYPES = {f.name: str(f.type) for f in fields(Engine)}
_CHOICES = {"policy": POLICIES, "memory_of": MEMORIES}
_LEAST = {"wait_steps": 0, "shared_beside": 0, "captured_tokens": 0}
