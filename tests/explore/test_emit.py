"""What is printed to start an engine, word for word, and what is refused."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from taygeta.api import deploy
from taygeta.base.errors import InputError, UnsupportedError
from taygeta.explore.emit import emit
from taygeta.spec.deployment import Deployment, Parallelism


def served(engine: str, **how: object) -> Deployment:
    return deploy("llama-3.1-8b", "h100:4", **{"tp": 2, "engine": engine, **how})  # type: ignore[arg-type]


def experts(engine: str, p: Parallelism) -> Deployment:
    return deploy("qwen3-30b-a3b", f"h100:{p.chips}", tp=p.tp, pp=p.pp, ep=p.ep, dp=p.dp, engine=engine)


def test_vllm() -> None:
    assert emit(served("vllm"), "vllm", 4096).text() == (
        "# one of 2 replicas; each takes 2 chips\n"
        "vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 2 --pipeline-parallel-size 1 \\\n"
        "  --max-num-batched-tokens 8192 --max-num-seqs 1024 --gpu-memory-utilization 0.9 \\\n"
        "  --block-size 16 --kv-cache-dtype auto --enable-chunked-prefill --enable-prefix-caching \\\n"
        "  --max-model-len 4096"
    )


def test_sglang() -> None:
    assert emit(served("sglang"), "sglang").text() == (
        "# one of 2 replicas; each takes 2 chips\n"
        "python -m sglang.launch_server --model-path meta-llama/Llama-3.1-8B --tp-size 2 \\\n"
        "  --pp-size 1 --chunked-prefill-size 8192 --max-running-requests 1024 \\\n"
        "  --mem-fraction-static 0.9 --kv-cache-dtype auto"
    )


def test_trtllm() -> None:
    assert emit(served("trtllm"), "trtllm").text() == (
        "# one of 2 replicas; each takes 2 chips\n"
        "cat > extra_llm_api_options.yaml <<'END'\n"
        "enable_attention_dp: false\n"
        "enable_chunked_prefill: false\n"
        "kv_cache_config:\n"
        "  enable_block_reuse: true\n"
        "  dtype: auto\n"
        "  tokens_per_block: 32\n"
        "  free_gpu_memory_fraction: 0.85\n"
        "scheduler_config:\n"
        "  capacity_scheduler_policy: GUARANTEED_NO_EVICT\n"
        "END\n"
        "trtllm-serve meta-llama/Llama-3.1-8B --tp_size 2 --pp_size 1 --max_num_tokens 8192 \\\n"
        "  --max_batch_size 2048 --kv_cache_free_gpu_memory_fraction 0.85 \\\n"
        "  --extra_llm_api_options extra_llm_api_options.yaml"
    )


def flags(d: Deployment, target: str) -> list[str]:
    return list(emit(d, target).command)


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_expert_and_data_parallelism_in_each_engines_counting() -> None:
    p = Parallelism(tp=2, dp=4, ep=8)
    words = flags(experts("vllm", p), "vllm")
    assert (after(words, "--tensor-parallel-size"), after(words, "--data-parallel-size")) == ("2", "4")
    assert "--enable-expert-parallel" in words
    words = flags(experts("sglang", p), "sglang")  # ranks, tokens and requests of all attention-DP ranks
    assert (after(words, "--tp-size"), after(words, "--dp-size"), after(words, "--ep-size")) == ("8", "4", "8")
    assert (after(words, "--chunked-prefill-size"), after(words, "--max-running-requests")) == ("32768", "4096")
    assert "--enable-dp-attention" in words
    launch = emit(experts("trtllm", Parallelism(dp=4, ep=4)), "trtllm")
    assert after(list(launch.command), "--tp_size") == "4"
    assert after(list(launch.command), "--max_num_tokens") == "8192"
    assert "enable_attention_dp: true" in launch.files["extra_llm_api_options.yaml"]


def test_settings_of_the_engine_become_flags() -> None:
    d = served("vllm", kv="fp8", weights="fp8")
    e = replace(d.engine, prefix_caching=False, chunks_prompts=False, stream_interval=20, token_budget=2048)
    words = flags(replace(d, engine=e), "vllm")
    assert "--no-enable-prefix-caching" in words
    assert "--no-enable-chunked-prefill" in words
    assert (after(words, "--kv-cache-dtype"), after(words, "--quantization")) == ("fp8", "fp8")
    assert (after(words, "--stream-interval"), after(words, "--max-num-batched-tokens")) == ("20", "2048")
    d = served("sglang", kv="fp8")
    e = replace(d.engine, prefix_caching=False, policy="mixed", intake_steps=10, chunks_prompts=False)
    words = flags(replace(d, engine=e), "sglang")
    assert "--disable-radix-cache" in words
    assert "--enable-mixed-chunk" in words
    assert (after(words, "--scheduler-recv-interval"), after(words, "--chunked-prefill-size")) == ("10", "-1")
    assert after(words, "--kv-cache-dtype") == "fp8_e4m3"
    d = served("trtllm")
    e = replace(d.engine, reserve=0.0, wait_steps=20, wait_share=0.8, stream_interval=20)
    text = emit(replace(d, engine=e), "trtllm").files["extra_llm_api_options.yaml"]
    assert "capacity_scheduler_policy: MAX_UTILIZATION" in text
    assert "batch_wait_timeout_iters: 20\nbatch_wait_max_tokens_ratio: 0.8\n" in text
    assert "stream_interval: 20\n" in text


def test_narrow_weights_that_an_engine_cannot_make_are_noted() -> None:
    launch = emit(served("vllm", weights="mxfp4"), "vllm")
    assert "--quantization" not in launch.command
    assert "the model must be a checkpoint whose weights are stored in mxfp4" in launch.notes


def with_engine(d: Deployment, **fields: object) -> Deployment:
    return replace(d, engine=replace(d.engine, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("d", "target", "text"),
    [
        (served("vllm"), "tgi", "--emit takes vllm, sglang or trtllm, not 'tgi'."),
        (served("vllm"), "sglang", "sglang cannot be started with a fraction of total memory, as vllm has: plan with"),
        (served("vllm", tp=1, cp=2), "vllm", "cannot be started with context parallelism over cp=2"),
        (experts("vllm", Parallelism(tp=4, ep=2)), "vllm", "vllm cannot be started with ep=2: use ep=4 or ep=1."),
        (experts("trtllm", Parallelism(tp=2, dp=2, ep=4)), "trtllm", "attention data parallelism with tp=2: use tp=1"),
        (with_engine(served("vllm"), policy="prefill_first"), "vllm", "with the policy prefill_first: it has mixed."),
        (served("sglang", kv="nvfp4"), "sglang", "a KV cache in nvfp4"),
        (with_engine(served("vllm"), wait_steps=3), "vllm", "a wait of 3 steps"),
        (with_engine(served("trtllm"), reserve=0.5), "trtllm", "a reserve of 0.5: it reserves all or nothing"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(d: Deployment, target: str, text: str) -> None:
    with pytest.raises((UnsupportedError, InputError)) as error:
        emit(d, target)
    assert text in str(error.value)


def test_another_engine_is_said() -> None:
    d = with_engine(served("vllm"), memory_of="static")
    assert "planned with the scheduler and the host times of vllm, not of sglang" in emit(d, "sglang").notes


def test_names_are_quoted_for_the_shell() -> None:
    d = served("vllm")
    odd = replace(d, model=replace(d.model, name="my models/a; rm -rf b"))
    line = emit(odd, "vllm").text().splitlines()[1]
    assert shlex.split(line.rstrip("\\"))[2] == "my models/a; rm -rf b"
