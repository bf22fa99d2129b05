"""The command line that starts a planned deployment on a serving engine.

A table for each engine says which flag carries which number; sources: `vllm serve --help` and vllm/engine/arg_utils.py
(vLLM), docs/advanced_features/server_arguments and srt/server_args.py (SGLang), the reference of trtllm-serve and
tensorrt_llm/llmapi/llm_args.py (TensorRT-LLM). Each command starts one replica; what routes requests over several is
the user's. What an engine has no flag for is refused by name, or said in a note where the engine's own value stays.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.base.formats import format_of
from taygeta.spec.deployment import Deployment
from taygeta.spec.engine import SETTABLE_POLICIES, Engine
from taygeta.spec.model import MoeFfn

TARGETS = ("vllm", "sglang", "trtllm")
OPTIONS_FILE = "extra_llm_api_options.yaml"
_PER_LINE = 88  # columns of a printed command


@dataclass(frozen=True)
class Launch:
    """How to start one replica. files: names and texts that the command reads. notes: what it does not say."""

    command: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Return it for a shell: files as here-documents, the command, the notes as comments."""
        lines = [f"# {note}" for note in self.notes]
        for name, body in self.files.items():
            lines += [f"cat > {name} <<'END'", body.rstrip("\n"), "END"]
        return "\n".join([*lines, _wrapped(self.command)])


def emit(d: Deployment, target: str, longest: int | None = None) -> Launch:
    """Return how an engine is started as a deployment of one replica says.

    target: one of TARGETS. longest: tokens of the longest sequence, else the model's own limit. Raises UnsupportedError
    for what the engine cannot do, InputError for an engine that is not known.
    """
    if target not in _ENGINES:
        raise InputError(f"--emit takes {', '.join(TARGETS[:-1])} or {TARGETS[-1]}, not {target!r}.")
    _refuse(d, target)
    launch = _ENGINES[target](d, longest)
    notes = [*launch.notes, *_weights_note(d, target)]
    if d.replicas > 1:
        chips = "1 chip" if d.parallelism.chips == 1 else f"{d.parallelism.chips} chips"
        notes.insert(0, f"one of {d.replicas} replicas; each takes {chips}")
    if d.engine.framework != target:
        notes.append(f"planned with the scheduler and the host times of {d.engine.name}, not of {target}")
    if d.parallelism.sequence:
        notes.append("sequence parallelism is the engine's own choice here")
    return Launch(launch.command, launch.files, tuple(notes))


def check_memory(e: Engine, target: str) -> None:
    """Refuse, before a search, a target that counts its memory in another way than the engine that is planned with.

    Raises UnsupportedError.
    """
    if e.memory_of != _MEMORY[target]:
        raise UnsupportedError(
            f"{target} cannot be started with a fraction of {e.memory_of} memory, as {e.framework} has: plan with"
            f" --engine {target}."
        )


def _vllm(d: Deployment, longest: int | None) -> Launch:
    e, p = d.engine, d.parallelism
    flags: list[object] = ["vllm", "serve", d.model.name]
    flags += ["--tensor-parallel-size", p.tp, "--pipeline-parallel-size", p.pp]
    if p.dp > 1:
        flags += ["--data-parallel-size", p.dp]
    if p.ep > 1:
        flags += ["--enable-expert-parallel"]
    flags += ["--max-num-batched-tokens", e.token_budget, "--max-num-seqs", e.sequence_limit]
    flags += ["--gpu-memory-utilization", f"{e.memory_fraction:g}", "--block-size", e.block_tokens]
    flags += ["--kv-cache-dtype", _KV["vllm"][d.formats.kv], *_quantisation(d, "vllm")]
    flags += ["--enable-chunked-prefill" if e.chunks_prompts else "--no-enable-chunked-prefill"]
    flags += ["--enable-prefix-caching" if e.prefix_caching else "--no-enable-prefix-caching"]
    if e.stream_interval > 1:
        flags += ["--stream-interval", e.stream_interval]
    if longest:
        flags += ["--max-model-len", longest]
    return Launch(_words(flags))


def _sglang(d: Deployment, longest: int | None) -> Launch:
    """SGLang counts ranks, tokens and requests of all attention-DP ranks together."""
    e, p = d.engine, d.parallelism
    flags: list[object] = ["python", "-m", "sglang.launch_server", "--model-path", d.model.name]
    flags += ["--tp-size", p.tp * p.dp, "--pp-size", p.pp]
    if p.dp > 1:
        flags += ["--dp-size", p.dp, "--enable-dp-attention"]
    if p.ep > 1:
        flags += ["--ep-size", p.ep]
    flags += ["--chunked-prefill-size", e.token_budget * p.dp if e.chunks_prompts else -1]
    if not e.chunks_prompts:
        flags += ["--max-prefill-tokens", e.token_budget]
    if e.policy == "mixed":
        flags += ["--enable-mixed-chunk"]
    flags += ["--max-running-requests", e.sequence_limit * p.dp, "--mem-fraction-static", f"{e.memory_fraction:g}"]
    flags += ["--kv-cache-dtype", _KV["sglang"][d.formats.kv], *_quantisation(d, "sglang")]
    if not e.prefix_caching:
        flags += ["--disable-radix-cache"]
    if e.stream_interval > 1:
        flags += ["--stream-interval", e.stream_interval]
    if e.intake_steps > 1:
        flags += ["--scheduler-recv-interval", e.intake_steps]
    if longest:
        flags += ["--context-length", longest]
    return Launch(_words(flags))


def _trtllm(d: Deployment, longest: int | None) -> Launch:
    """TensorRT-LLM counts tokens and requests of one attention-DP rank, and ranks of all."""
    e, p = d.engine, d.parallelism
    flags: list[object] = ["trtllm-serve", d.model.name, "--tp_size", p.tp * p.dp, "--pp_size", p.pp]
    if p.ep > 1:
        flags += ["--ep_size", p.ep]
    flags += ["--max_num_tokens", e.token_budget, "--max_batch_size", e.sequence_limit]
    flags += ["--kv_cache_free_gpu_memory_fraction", f"{e.memory_fraction:g}"]
    if longest:
        flags += ["--max_seq_len", longest]
    flags += ["--extra_llm_api_options", OPTIONS_FILE]
    return Launch(_words(flags), MappingProxyType({OPTIONS_FILE: _trtllm_options(d)}))


def _trtllm_options(d: Deployment) -> str:
    e = d.engine
    lines = [f"enable_attention_dp: {_yaml(d.parallelism.dp > 1)}"]
    lines += [f"enable_chunked_prefill: {_yaml(e.chunks_prompts)}"]
    lines += ["kv_cache_config:", f"  enable_block_reuse: {_yaml(e.prefix_caching)}"]
    lines += [f"  dtype: {_KV['trtllm'][d.formats.kv]}", f"  tokens_per_block: {e.block_tokens}"]
    lines += [f"  free_gpu_memory_fraction: {e.memory_fraction:g}"]
    lines += ["scheduler_config:", f"  capacity_scheduler_policy: {_CAPACITY[e.reserve]}"]
    if e.stream_interval > 1:
        lines.append(f"stream_interval: {e.stream_interval}")
    if e.wait_steps:
        lines.append(f"batch_wait_timeout_iters: {e.wait_steps}")
        lines.append(f"batch_wait_max_tokens_ratio: {e.wait_share:g}")
    return "\n".join(lines) + "\n"


_ENGINES: Mapping[str, Callable[[Deployment, int | None], Launch]] = MappingProxyType(
    {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}
)
# Storage formats of a KV cache -> what the engine calls them.
_KV: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "vllm": {"bf16": "auto", "fp16": "auto", "fp8": "fp8", "fp8_static": "fp8"},
        "sglang": {"bf16": "auto", "fp16": "auto", "fp8": "fp8_e4m3", "fp8_static": "fp8_e4m3", "mxfp4": "fp4_e2m1"},
        "trtllm": {"bf16": "auto", "fp16": "auto", "fp8": "fp8", "fp8_static": "fp8", "nvfp4": "nvfp4"},
    }
)
# Formats into which an engine quantises the weights of a wide checkpoint when it loads them; the others are read from
# a checkpoint that holds them.
_ON_LOAD: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"vllm": {"fp8": "fp8"}, "sglang": {"fp8": "fp8"}, "trtllm": {}}
)
_CAPACITY = {1.0: "GUARANTEED_NO_EVICT", 0.0: "MAX_UTILIZATION"}
# How each engine counts the memory that it takes; a share of something else would be another number.
_MEMORY = {"vllm": "total", "sglang": "static", "trtllm": "free"}


def _refuse(d: Deployment, target: str) -> None:
    """Refuse what an engine cannot do, by name."""
    e, p = d.engine, d.parallelism
    check_memory(e, target)
    moe = any(isinstance(layer.ffn, MoeFfn) for layer, _ in d.model.kinds())
    all_ranks, has = p.tp * p.dp, SETTABLE_POLICIES[target]
    reasons = (
        (p.cp > 1, f"context parallelism over cp={p.cp} ranks of a chip's own"),
        (target == "vllm" and p.ep not in (1, all_ranks), f"ep={p.ep}: use ep={all_ranks} or ep=1"),
        (target != "trtllm" and p.dp > 1 and not moe, f"dp={p.dp} without experts: start replicas instead"),
        (target == "trtllm" and p.dp > 1 and p.tp > 1, f"attention data parallelism with tp={p.tp}: use tp=1"),
        (e.policy not in has, f"the policy {e.policy}: it has {' and '.join(has)}"),
        (d.formats.kv not in _KV[target], f"a KV cache in {d.formats.kv}: it has {', '.join(_KV[target])}"),
        (target == "trtllm" and e.reserve not in _CAPACITY, f"a reserve of {e.reserve:g}: it reserves all or nothing"),
        (target != "trtllm" and e.wait_steps > 0, f"a wait of {e.wait_steps} steps for prompts"),
    )
    for true, what in reasons:
        if true:
            raise UnsupportedError(f"{target} cannot be started with {what}.")


def _quantisation(d: Deployment, target: str) -> list[object]:
    """The flag that quantises weights at load, where the deployment stores them narrower than the checkpoint."""
    narrower = _narrower(d)
    return ["--quantization", _ON_LOAD[target][narrower]] if narrower in _ON_LOAD[target] else []


def _narrower(d: Deployment) -> str:
    """The format in which the deployment stores weights that the checkpoint stores wider; empty where it does not."""
    changed = [
        getattr(d.formats, part)
        for part in ("ffn", "experts")
        if format_of(getattr(d.formats, part)).bits < format_of(getattr(d.model.native, part)).bits
    ]
    return changed[0] if changed else ""


def _weights_note(d: Deployment, target: str) -> list[str]:
    narrower = _narrower(d)
    if not narrower or narrower in _ON_LOAD[target]:
        return []
    return [f"the model must be a checkpoint whose weights are stored in {narrower}"]


def _words(flags: list[object]) -> tuple[str, ...]:
    return tuple(str(flag) for flag in flags)


def _yaml(value: bool) -> str:
    return "true" if value else "false"


def _wrapped(command: tuple[str, ...]) -> str:
    """The command in lines, each flag with its value."""
    parts: list[str] = []
    for word in command:
        quoted = shlex.quote(word)
        if parts and (not word.startswith("--") or word == "--") and parts[-1].startswith("--"):
            parts[-1] += f" {quoted}"
        else:
            parts.append(quoted)
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 1 + len(part) <= _PER_LINE:
            lines[-1] += f" {part}"
        else:
            lines.append(f"  {part}")
    return " \\\n".join(lines)
