"""Hugging Face configurations to models: which family reads which model_type, and which fields do not matter.

`import_config` is exact or refuses: a field that nobody reads and that is not listed here as harmless is named in an
UnsupportedError. Harmless are token ids, training and generation settings, and scalars that change values but neither
shapes nor the operations that are counted (rotary bases, epsilons, routing scales, soft caps).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.frontend.arithmetic import with_arithmetic
from taygeta.frontend.config import Fields, check_nesting, read_json, shown
from taygeta.frontend.dense import STYLES, import_dense, import_gpt2
from taygeta.frontend.experts import (
    import_gpt_oss,
    import_llama4,
    import_minimax_m2,
    import_mixtral,
    import_qwen3_moe,
)
from taygeta.frontend.hybrid import import_nemotron_h, import_qwen3_5
from taygeta.frontend.latent import import_latent
from taygeta.frontend.quantisation import native_formats
from taygeta.frontend.settings import overridden
from taygeta.spec.model import Model

Family = Callable[[Fields], Model]

FAMILIES: dict[str, Family] = {
    "gpt2": import_gpt2,
    **{name: partial(import_dense, model_type=name) for name in STYLES},
    "mixtral": import_mixtral,
    "qwen3_moe": import_qwen3_moe,
    "gpt_oss": import_gpt_oss,
    "minimax_m2": import_minimax_m2,
    "llama4_text": import_llama4,
    "deepseek_v3": partial(import_latent, model_type="deepseek_v3"),
    "kimi_k2": partial(import_latent, model_type="kimi_k2"),
    "deepseek_v32": partial(import_latent, model_type="deepseek_v32"),
    "glm_moe_dsa": partial(import_latent, model_type="glm_moe_dsa"),
    "qwen3_5_text": partial(import_qwen3_5, model_type="qwen3_5_text"),
    "qwen3_5_moe_text": partial(import_qwen3_5, model_type="qwen3_5_moe_text"),
    "nemotron_h": import_nemotron_h,
}

# Multimodal files: the model_type outside, and those that text_config may have inside.
WRAPPERS = {
    "llama4": ("llama4_text",),
    "qwen3_5": ("qwen3_5_text",),
    "qwen3_5_moe": ("qwen3_5_moe_text",),
    "kimi_k25": ("kimi_k2", "deepseek_v3"),
    "gemma3": ("gemma3_text",),
}

_ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mimo": "MiMoForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "llama4_text": "Llama4ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "kimi_k25": "KimiK25ForConditionalGeneration",
    "deepseek_v32": "DeepseekV32ForCausalLM",
    "glm_moe_dsa": "GlmMoeDsaForCausalLM",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
}

_IDENTITY = "model_type architectures auto_map transformers_version _name_or_path name_or_path tokenizer_class"
_TRAINING = (
    "initializer_range initializer_cutoff_factor rescale_prenorm_residual router_aux_loss_coef aux_loss_alpha "
    "seq_aux router_jitter_noise output_router_logits pretraining_tp ep_size use_mamba_kernels "
    "gradient_checkpointing summary_activation summary_first_dropout summary_proj_to_labels summary_type "
    "summary_use_proj time_step_floor time_step_max time_step_min time_step_limit"
)
_GENERATION = (
    "use_cache cache_implementation num_logits_to_keep bad_words_ids begin_suppress_tokens diversity_penalty "
    "do_sample early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty length_penalty "
    "max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions "
    "output_hidden_states output_scores remove_invalid_values repetition_penalty return_dict "
    "return_dict_in_generate suppress_tokens temperature top_k top_p typical_p prefix problem_type "
    "task_specific_params finetuning_task id2label label2id tf_legacy_loss torchscript use_bfloat16 ignore_index "
    "video_placeholder use_unified_vision_chunk"
)
# Scalars and switches that change values, or how a kernel is written, and not what is computed at which size.
_VALUES = (
    "rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps rope_theta rope_scaling rope_parameters "
    "rope_local_base_freq rope_interleave indexer_rope_interleave rotary_dim partial_rotary_factor "
    "original_max_position_embeddings initial_context_length use_mrope norm_topk_prob scoring_func "
    "routed_scaling_factor swiglu_limit attn_temperature_tuning floor_scale attn_scale scale_attn_weights "
    "scale_attn_by_inverse_layer_idx reorder_and_upcast_attn query_pre_attn_scalar attn_logit_softcapping "
    "final_logit_softcapping mamba_ssm_dtype mamba_ssm_cache_dtype residual_in_fp32 chunk_size "
    "chunk_size_feed_forward expand moe_shared_expert_overlap _attn_implementation mm_tokens_per_image"
)
HARMLESS = frozenset(f"{_IDENTITY} {_TRAINING} {_GENERATION} {_VALUES}".split())
HARMLESS_ENDINGS = ("_token_id", "_token_index", "_dropout", "_pdrop", "_dropout_prob")
# Fields of the general configuration class that turn a decoder into something else.
_MUST_BE = {
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
}
_MUST_BE |= {"tie_encoder_decoder": (False,), "cross_attention_hidden_size": ()}


def import_config(config: Mapping[str, Any], name: str, source: str, where: str | None = None) -> Model:
    """Return the model that a Hugging Face configuration describes, exactly.

    name: what to call it; source: where the configuration is published; where: how messages name it (the name when
    None). A multimodal configuration gives its text model, with a note. Raises InputError and UnsupportedError.
    """
    where = where or name
    check_nesting(config, where)
    outer = Fields(config, where)
    outer_type = _model_type(outer, (*FAMILIES, *WRAPPERS))
    text, notes = outer, ()
    if outer_type in WRAPPERS:
        text, notes = _text_model(outer, outer_type)
    text_type = _model_type(text, WRAPPERS.get(outer_type, (outer_type,)))
    model = with_arithmetic(text, text_type, FAMILIES[text_type](text))
    if text is not outer and outer.has("tie_word_embeddings"):
        model = replace(model, tied=outer.flag("tie_word_embeddings", False))
    quantisation = text.section("quantization_config") or outer.section("quantization_config")
    native, more = native_formats(text if text is outer or _has_dtype(text) else outer, model.layers, quantisation)
    for fields in {id(text): text, id(outer): outer}.values():
        _check_rest(fields, outer_type)
    return replace(model, name=name, source=source, native=native, notes=(*notes, *model.notes, *more))


def load_config(path: str | Path, settings: Mapping[str, str] | None = None) -> Model:
    """Return the model in a config.json, or in a directory that holds one, with fields set by the user.

    The hf_quant_config.json of NVIDIA's Model Optimizer, where it lies beside, says the formats of a file that is
    silent on them. Raises InputError and UnsupportedError.
    """
    path = Path(path)
    try:
        file = path / "config.json" if path.is_dir() else path
        beside = file.with_name("hf_quant_config.json")
        extra = beside.is_file()
    except (OSError, ValueError):
        raise InputError(f"{shown(str(path))} is not a usable file name.") from None
    config = dict(read_json(file))
    if extra and config.get("quantization_config") is None:
        config["quantization_config"] = read_json(beside)
    if settings:
        config = overridden(config, settings, str(file))
    name = file.absolute().parent.name if file.name == "config.json" else file.stem.replace("--", "/")
    return import_config(config, name, str(file), where=str(file))


def supported() -> tuple[str, ...]:
    """Return the model types that can be imported, in alphabetical order."""
    return tuple(sorted((*FAMILIES, *WRAPPERS)))


def _model_type(fields: Fields, allowed: tuple[str, ...]) -> str:
    """Return the model_type, checked against the architectures that the file names."""
    value = fields.get("model_type")
    if not isinstance(value, str):
        state = "is missing" if value is None else f"must be a text, not {shown(value)}"
        raise InputError(f"{fields.where}: model_type {state}; supported are {', '.join(sorted(allowed))}.")
    if value not in allowed:
        raise UnsupportedError(
            f"{fields.where}: model_type = {shown(value)} is not supported; supported are {', '.join(sorted(allowed))}."
        )
    for architecture in fields.texts("architectures"):
        if architecture != _ARCHITECTURES[value]:
            raise UnsupportedError(
                f"{fields.where}: architectures = {shown(architecture)} is not supported with model_type = {value}; "
                f"it can be {_ARCHITECTURES[value]}."
            )
    return value


def _text_model(outer: Fields, outer_type: str) -> tuple[Fields, tuple[str, ...]]:
    """Return the table of the text model inside a multimodal file, and the note that says what is left out."""
    text = outer.section("text_config")
    if text is None:
        raise InputError(
            f"{outer.where}: text_config is missing; a {outer_type} configuration holds its text model there."
        )
    outer.section("vision_config")
    return text, ("text model only: the vision tower and its projector are left out",)


def _has_dtype(fields: Fields) -> bool:
    return fields.has("dtype") or fields.has("torch_dtype")


def _check_rest(fields: Fields, model_type: str) -> None:
    """Refuse what no one has read and what turns a decoder into something else."""
    for name, accepted in _MUST_BE.items():
        fields.only(name, *accepted)
    for name in ("dtype", "torch_dtype"):
        fields.get(name)
    fields.finish(model_type, HARMLESS, HARMLESS_ENDINGS)
