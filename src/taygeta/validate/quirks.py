"""Rows that measure something else than the kernel they name, so that scores can leave them out.

Each function says which rows of a table it removes; its first sentence is the reason that reports print. What
is left out was told apart by other measurements of the same shape (other versions and frameworks) or by
physics (faster than the roofline). Three filters of attention were chosen after predictions of other sources of the
same kernel fitted and theirs did not; reports mark them. Scores of all rows stand beside those without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from taygeta.base.errors import require

if TYPE_CHECKING:
    import polars

    Column = Callable[[str], polars.Expr]
    Quirk = Callable[[Column], polars.Expr]


def mislabelled_device(c: Column) -> polars.Expr:
    """Rows that name another device than the table does."""
    return c("mislabelled_device")


def without_graphs(c: Column) -> polars.Expr:
    """SGLang 0.5.6.post2 ran without graphs: launches show."""
    return (c("framework") == "sglang") & (c("version") == "0.5.6.post2")


def slow_quantisation(c: Column) -> polars.Expr:
    """Block fp8 of vLLM 0.18, 0.22 and 0.24 is 3 to 8 times slow at small m, fp8 of vLLM 0.14 50 to 70 %."""
    block = (c("dtype") == "fp8_block") & c("version").is_in(["0.18.0", "0.22.0", "0.24.0"])
    return (c("framework") == "vllm") & (block | ((c("dtype") == "fp8") & (c("version") == "0.14.0")))


def static_as_dynamic(c: Column) -> polars.Expr:
    """TensorRT-LLM fp8_static equals its fp8 with activations quantised at run time."""
    return (c("framework") == "trtllm") & (c("dtype") == "fp8_static")


def early_block_kernel(c: Column) -> polars.Expr:
    """TensorRT-LLM fp8_block on B200 before 1.3.0rc20 runs another kernel, 2 to 20 times slower."""
    return (
        (c("framework") == "trtllm")
        & (c("dtype") == "fp8_block")
        & (c("gpu") == "b200_sxm")
        & (c("version") != "1.3.0rc20")
    )


def bimodal_decode(c: Column) -> polars.Expr:
    """TensorRT-LLM decode before 1.3.0rc20 jumps between 0.55 and 2 times; on Hopper and Ada 1.3.0rc20 still
    does.
    """
    jumps = (c("version") != "1.3.0rc20") | c("gpu").is_in(["h100_sxm", "h200_sxm", "l40s"])
    return (c("framework") == "trtllm") & jumps


def bimodal_long_decode(c: Column) -> polars.Expr:
    """Release 0.19.0 of vLLM: decode on H200 is bimodal: long contexts take up to 2.7 times those of 0.18,
    0.22 and 0.24.
    """
    return (c("gpu") == "h200_sxm") & (c("framework") == "vllm") & (c("version") == "0.19.0")


def too_fast_prefill(c: Column) -> polars.Expr:
    """Prefill of vLLM 0.19.0 on H200 (0.20 of other releases), of SGLang 0.5.10 on B200 (0.39) and of vLLM 0.14.0 on
    L40S with an fp8 cache (up to 11 times its peak) is anomalously fast.
    """
    hopper = (c("gpu") == "h200_sxm") & (c("framework") == "vllm") & (c("version") == "0.19.0")
    ada = (c("gpu") == "l40s") & (c("kernel") == "vllm_flashinfer") & (c("version") == "0.14.0")
    return hopper | ada | ((c("gpu") == "b200_sxm") & (c("framework") == "sglang") & (c("version") == "0.5.10"))


def untuned_attention(c: Column) -> polars.Expr:
    """Triton attention (untuned, 2 to 10 times slow) and FlashAttention-4 previews on Hopper, which nothing
    uses by default.
    """
    return c("kernel").str.contains("triton|fa4")


def other_clock(c: Column) -> polars.Expr:
    """SGLang 0.5.12 on L40S disagrees with every other source both ways: prefill 25 % fast, short decode up
    to 12 times slow.
    """
    return (c("gpu") == "l40s") & (c("framework") == "sglang") & (c("version") == "0.5.12")


def beats_physics(c: Column) -> polars.Expr:
    """Rows faster than their arithmetic at peak, or than the roofline although their bytes exceed twice the cache."""
    return c("impossible")


def rotary_included(c: Column) -> polars.Expr:
    """TensorRT-LLM prefill includes rotary embedding and cache append: 16 to 25 % more than the bare kernel."""
    return c("framework") == "trtllm"


def single_token_prefill(c: Column) -> polars.Expr:
    """One-token rows of a prefill kernel without a decode path: servers send such groups to the decode
    kernel.
    """
    return c("isl") <= 1


def unshared_window(c: Column) -> polars.Expr:
    """FlashAttention-2 decode gives up sharing keys within a group, and splitting, once there is a window."""
    return (c("kernel") == "vllm_flash_attn_fa2") & (c("window") > 0)


def slow_experts(c: Column) -> polars.Expr:
    """TensorRT-LLM 1.3.0rc15 experts take 1.8 times those of rc10 and rc20; vLLM Marlin int4 and CUTLASS on
    Hopper and Ada 3 to 5 times.
    """
    marlin = c("kernel").str.contains("vllm_marlin_int4")
    cutlass = c("kernel").str.contains("flashinfer_cutlass") & c("gpu").str.contains("h100|h200|l40s")
    return (c("version") == "1.3.0rc15") | marlin | cutlass


def spread_experts(c: Column) -> polars.Expr:
    """With ep > 1 the load of the measured rank is not what the columns say at few tokens, up to 3 times."""
    return c("ep") > 1


def host_bound(c: Column) -> polars.Expr:
    """Eager calls below 4 MiB and eager custom kernels measure the host that launches them, not the links."""
    custom = c("library").str.contains("custom")
    return (c("mode") == "eager") & (
        custom | ((c("library") == "vidur_torch_nccl") & (c("bytes") < 4 * 2**20))
    )


def other_path(c: Column) -> polars.Expr:
    """Transfers between the paired A40 run at 5 GB/s at most, a tenth of the bridge that the table names and a fifth of
    PCIe: through the host, as no row of another system.
    """
    return (c("gpu") == "a40_pairwise_nvlink") & (c("op") == "p2p")


def other_host(c: Column) -> polars.Expr:
    """SGLang 0.5.12 on L40S ran on a host whose cards reach each other at full rate: eight sum 13 times as fast as NCCL
    and every other release on the host of the table.
    """
    return (c("gpu") == "l40s") & (c("library") == "sglang_custom") & (c("version") == "0.5.12")


def not_clean(c: Column) -> polars.Expr:
    """The table's own label: not aggregated, attention-DP above 1, TTFT of 10 s or more, or concurrency that
    is not the batch.
    """
    return ~c("clean")


_ATTENTION = (mislabelled_device, without_graphs, untuned_attention, other_clock, beats_physics)
QUIRKS: dict[str, tuple[Quirk, ...]] = {
    "gemm": (mislabelled_device, slow_quantisation, static_as_dynamic, early_block_kernel),
    "attention_prefill": (*_ATTENTION, too_fast_prefill, rotary_included, single_token_prefill),
    "attention_decode": (*_ATTENTION, bimodal_decode, bimodal_long_decode, unshared_window),
    "moe": (mislabelled_device, without_graphs, slow_experts, spread_experts),
    "comm": (host_bound, other_host, other_path),
    "e2e": (not_clean,),
}


def reason(quirk: Quirk) -> str:
    """Return why a filter leaves rows out: the first sentence of its documentation."""
    return (quirk.__doc__ or "").strip()


def apply(table: str, frame: polars.DataFrame) -> tuple[polars.Series, dict[str, int]]:
    """Return which rows no filter of the table removes, and how many each removes by itself."""
    pl = require("polars", "tables", "Scoring")
    keep = pl.repeat(True, frame.height, eager=True)
    removed: dict[str, int] = {}
    for quirk in QUIRKS.get(table, ()):
        hit = frame.select(quirk(pl.col).fill_null(False).alias("hit"))["hit"]
        removed[quirk.__name__] = int(hit.sum())
        keep = keep & ~hit
    return keep, removed
