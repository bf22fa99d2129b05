"""Rows of tables of measured silicon, each with every column, to change one thing at a time."""

from __future__ import annotations


def gemm_row(**values) -> dict:
    row = {
        "gpu": "h100_sxm",
        "framework": "trtllm",
        "version": "1.2.0rc5",
        "kernel": "torch_flow",
        "dtype": "bfloat16",
    }
    return {**row, "m": 64, "n": 4096, "k": 4096, "latency_s": 1e-5, "mislabelled_device": False, **values}


def moe_row(**values) -> dict:
    row = {
        "gpu": "h100_sxm",
        "framework": "trtllm",
        "version": "1.2.0rc5",
        "kernel": "moe_torch_flow_cutlass",
    }
    row |= {
        "dtype": "bfloat16",
        "num_tokens": 128,
        "hidden_size": 4096,
        "inter_size": 1536,
        "topk": 8,
        "num_experts": 128,
    }
    return {
        **row,
        "tp": 1,
        "ep": 1,
        "distribution": "balanced",
        "latency_s": 1e-3,
        "mislabelled_device": False,
        **values,
    }


def decode_row(**values) -> dict:
    row = {
        "gpu": "h100_sxm",
        "framework": "vllm",
        "version": "0.24.0",
        "kernel": "vllm_flash_attn_fa3",
        "batch_size": 64,
    }
    row |= {
        "q_heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "compute_dtype": "bfloat16",
        "kv_dtype": "bfloat16",
    }
    return {**row, "latency_s": 1e-4, "mislabelled_device": False, "window": 0.0, "kv_len": 4097, **values}


def prefill_row(**values) -> dict:
    row = {**decode_row(), "version": "0.22.0", "isl": 2048, "step": 0, "batch_size": 2}
    del row["kv_len"]
    return {**row, **values}


def comm_row(**values) -> dict:
    row = {
        "gpu": "h100_sxm",
        "library": "nccl",
        "version": "2.27.3",
        "op": "all_reduce",
        "dtype": "half",
        "mode": "graph",
    }
    return {**row, "num_gpus": 8, "bytes": 1 << 20, "latency_s": 5e-5, **values}


def e2e_row(**values) -> dict:
    row = {
        "id": "a",
        "backend": "vllm",
        "model_path": "meta-llama/Llama-3.1-70B",
        "system": "h100_sxm",
        "precision": "fp8",
    }
    row |= {
        "gemm_quant_mode": "fp8",
        "moe_quant_mode": "fp8",
        "mode": "agg",
        "isl": 1000,
        "osl": 1000,
        "concurrency": 16.0,
    }
    row |= {"batch_size": 16.0, "tp_size": 4.0, "pp_size": 1.0, "attention_dp_size": 1.0, "moe_tp_size": 4.0}
    return {
        **row,
        "moe_ep_size": 1.0,
        "ttft_s": 0.5,
        "tpot_s": 0.02,
        "clean": True,
        "source": "gap_analysis",
        **values,
    }
