"""What a wrong configuration is told, word for word."""

import json

import pytest

from taygeta.base.errors import InputError, UnsupportedError
from taygeta.frontend import import_config, load_config
from taygeta.frontend.config import MAX_BYTES

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100,
    "max_position_embeddings": 512, "hidden_act": "silu", "rope_theta": 500000.0, "bos_token_id": 1,
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 512, "hidden_act": "silu",
    "kv_lora_rank": 16, "q_lora_rank": 32, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1,
}  # fmt: skip
NEMOTRON = {
    "model_type": "nemotron_h", "hidden_size": 64, "hybrid_override_pattern": "M*", "vocab_size": 100,
    "max_position_embeddings": 512, "num_attention_heads": 4, "mamba_num_heads": 4, "mamba_head_dim": 16,
    "n_groups": 2, "ssm_state_size": 8, "conv_kernel": 4,
}  # fmt: skip
OSS = {**LLAMA, "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_local_experts": 4}
OSS |= {"num_experts_per_tok": 2, "sliding_window": 16, "head_dim": 16}


def refusal(config, kind=InputError):
    with pytest.raises(kind) as caught:
        import_config(config, "tiny", "test")
    return str(caught.value)


@pytest.mark.parametrize("config", [LLAMA, DEEPSEEK, NEMOTRON, OSS])
def test_the_configurations_of_this_file_are_good(config):
    assert import_config(config, "tiny", "test").parameters() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": True}, "tiny: hidden_size must be a whole number from 1 to 10000000, not true."),
        ({"hidden_size": 64.0}, "tiny: hidden_size must be a whole number from 1 to 10000000, not 64.0."),
        ({"hidden_size": "64"}, "tiny: hidden_size must be a whole number from 1 to 10000000, not '64'."),
        ({"hidden_size": -64}, "tiny: hidden_size must be a whole number from 1 to 10000000, not -64."),
        ({"hidden_size": 10**9}, "tiny: hidden_size must be a whole number from 1 to 10000000, not 1000000000."),
        ({"hidden_size": 10**5000}, "tiny: hidden_size must be a whole number from 1 to 10000000, "
                                    "not a number of 16610 bits."),
        ({"num_hidden_layers": 0}, "tiny: num_hidden_layers must be a whole number from 1 to 10000, not 0."),
        ({"num_hidden_layers": 10**5}, "tiny: num_hidden_layers must be a whole number from 1 to 10000, not 100000."),
        ({"num_hidden_layers": [2]}, "tiny: num_hidden_layers must be a whole number from 1 to 10000, "
                                    "not a list of 1."),
        ({"vocab_size": None}, "tiny: vocab_size must be a whole number from 1 to 100000000, not null."),
        ({"tie_word_embeddings": 1}, "tiny: tie_word_embeddings must be true or false, not 1."),
        ({"hidden_act": 3}, "tiny: hidden_act must be gelu, gelu_fast, gelu_new, gelu_pytorch_tanh, relu, relu2, silu "
                            "or swish, not 3."),
        ({"layer_types": "full"}, "tiny: layer_types must be a list of texts, not 'full'."),
        ({"layer_types": [1, 2]}, "tiny: layer_types must be a list of texts, not with 1 in it."),
        ({"layer_types": ["full_attention"]}, "tiny: layer_types has 1 entries and num_hidden_layers is 2; "
                                              "it needs one for each layer."),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "tiny: layer_types has sliding layers and "
                                              "sliding_window is null; give the window in tokens."),
        ({"num_key_value_heads": 3}, "tiny: num_attention_heads = 4 must be a multiple of num_key_value_heads = 3."),
        ({"hidden_size": 66}, "tiny: head_dim is missing, and hidden_size = 66 is not a multiple of "
                              "num_attention_heads = 4; give head_dim."),
        ({"quantization_config": 8}, "tiny: quantization_config must be a table of fields, not 8."),
        ({"model_type": 5}, None),
    ],
)  # fmt: skip
def test_wrong_values(changes, message):
    found = refusal({**LLAMA, **changes})
    assert found == message or (
        message is None and found.startswith("tiny: model_type must be a text, not 5; supported")
    )


def test_missing_fields():
    without = {name: value for name, value in LLAMA.items() if name != "vocab_size"}
    assert refusal(without) == "tiny: vocab_size is missing; it must be a whole number from 1 to 100000000."
    without = {name: value for name, value in LLAMA.items() if name != "hidden_act"}
    assert refusal(without).startswith("tiny: hidden_act is missing; it must be gelu, ")
    without = {name: value for name, value in LLAMA.items() if name != "model_type"}
    assert refusal(without).startswith("tiny: model_type is missing; supported are deepseek_v3, ")
    assert refusal({"model_type": "llama4"}) == (
        "tiny: text_config is missing; a llama4 configuration holds its text model there."
    )


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (LLAMA, {"logit_scale": 0.0625}, "tiny: logit_scale = 0.0625 is not a field that the import of llama models "
         "understands; if it does not change the computation, remove it."),
        (LLAMA, {"sliding_window": 4096}, "tiny: sliding_window = 4096 is not supported; it can be null."),
        (LLAMA, {"architectures": ["LlamaForSequenceClassification"]}, "tiny: architectures = "
         "'LlamaForSequenceClassification' is not supported with model_type = llama; it can be LlamaForCausalLM."),
        (LLAMA, {"is_encoder_decoder": True}, "tiny: is_encoder_decoder = true is not supported; it can be false."),
        (LLAMA, {"layer_types": ["full_attention", "mamba"]}, "tiny: layer_types holds 'mamba', which is not "
         "supported; it can hold full_attention or sliding_attention."),
        (DEEPSEEK, {"attention_bias": True}, "tiny: attention_bias = true is not supported; it can be false."),
        (DEEPSEEK, {"moe_layer_freq": 2}, "tiny: moe_layer_freq = 2 is not supported; it can be 1."),
        (DEEPSEEK, {"topk_method": "greedy"}, "tiny: topk_method = 'greedy' is not supported; it can be noaux_tc."),
        (NEMOTRON, {"hybrid_override_pattern": "MX"}, "tiny: hybrid_override_pattern has the letter 'X', which is not "
         "supported; it can have M, *, - and E."),
        (NEMOTRON, {"num_nextn_predict_layers": 1}, "tiny: mtp_hybrid_override_pattern = '*E' has a kind of layer that "
         "the model has not; it can use * M."),
        (NEMOTRON, {"use_bias": True}, "tiny: use_bias = true is not supported; it can be false."),
    ],
)  # fmt: skip
def test_unsupported_values(base, changes, message):
    assert refusal({**base, **changes}, UnsupportedError) == message


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (DEEPSEEK, {"num_experts_per_tok": 9}, "tiny: num_experts_per_tok = 9 must not exceed the 8 experts."),
        (DEEPSEEK, {"n_group": 3}, "tiny: n_routed_experts = 8 must be a multiple of n_group = 3, "
         "and topk_group = 1 must not exceed it."),
        (DEEPSEEK, {"qk_head_dim": 16}, "tiny: qk_head_dim = 16 contradicts qk_nope_head_dim + qk_rope_head_dim = 12; "
         "they must be equal."),
        (DEEPSEEK, {"mlp_layer_types": ["dense", "sparse"]}, "tiny: mlp_layer_types contradicts first_k_dense_replace "
         "= 0; leave one of them out."),
        (NEMOTRON, {"num_hidden_layers": 3}, "tiny: hybrid_override_pattern has 2 letters and num_hidden_layers is 3; "
         "it needs one for each layer."),
        (NEMOTRON, {"n_groups": 3}, "tiny: mamba_num_heads = 4 must be a multiple of n_groups = 3."),
        (NEMOTRON, {"hybrid_override_pattern": None}, "tiny: hybrid_override_pattern is missing; it must be a text of "
         "one letter a layer."),
        (NEMOTRON, {"hybrid_override_pattern": 7}, "tiny: hybrid_override_pattern must be a text of one letter a "
         "layer, not 7."),
        (OSS, {"experts_per_token": 4}, "tiny: experts_per_token = 4 contradicts num_experts_per_tok = 2; "
         "they must be equal."),
    ],
)  # fmt: skip
def test_contradictions(base, changes, message):
    assert refusal({**base, **changes}) == message


def test_unknown_model_types_list_the_known_ones():
    text = refusal({"model_type": "falcon"}, UnsupportedError)
    assert text.startswith("tiny: model_type = 'falcon' is not supported; supported are deepseek_v3, deepseek_v32, ")
    assert "llama, " in text


def test_things_that_are_no_table():
    assert refusal([]) == "tiny: a model configuration must be a table of fields, not a list of 0."  # type: ignore
    deep: dict = {}
    for _ in range(100):
        deep = {"text_config": deep}
    assert refusal(deep) == "tiny: the configuration is nested deeper than 24 levels; a model's has four or five."
    assert refusal({"layer_types": [0] * 600_000}) == (
        "tiny: the configuration holds more than 500000 values; a model's has a few hundred."
    )
    assert refusal({1: 2}) == "tiny: the names of fields must be texts."  # type: ignore[dict-item]


def test_harmless_fields_change_nothing():
    more = {"rope_scaling": {"factor": 8.0}, "eos_token_id": [1, 2], "attention_dropout": 0.1, "unknown": None}
    more |= {"initializer_range": 0.02, "use_cache": True, "time_step_limit": [0.0, float("inf")]}
    assert import_config({**LLAMA, **more}, "tiny", "test") == import_config(LLAMA, "tiny", "test")


def file_refusal(path):
    with pytest.raises(InputError) as caught:
        load_config(path)
    return str(caught.value)


def test_files(tmp_path):
    path = tmp_path / "config.json"
    assert file_refusal(tmp_path) == f"{path}: the file cannot be read: No such file or directory."
    path.write_text("{")
    assert file_refusal(path).startswith(f"{path}: not JSON: ")
    path.write_text('{"a": 1, "a": 2}')
    assert file_refusal(path) == f"{path}: the field 'a' is given twice; keep one."
    path.write_bytes(b"\xff\xfe")
    assert file_refusal(path) == f"{path}: the file is not UTF-8 text; a config.json is."
    path.write_text(" " * (MAX_BYTES + 1))
    assert file_refusal(path) == f"{path}: the file is larger than 4 MiB; a model's config.json has a few KiB."
    path.write_text("[" * 100_000)
    assert file_refusal(path).startswith(f"{path}: not JSON")
    path.write_text('{"a": ' + "9" * 10_000 + "}")
    assert file_refusal(path) == (
        f"{path}: not JSON that can be read: nested too deep, or a number of thousands of digits."
    )


def test_a_directory_names_the_model(tmp_path):
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**LLAMA, "time_step_limit": [0.0, float("inf")]}))
    found = load_config(folder)
    assert found.name == "my-llama"
    assert found.source == str(folder / "config.json")
    single = tmp_path / "org--my-llama.json"
    single.write_text(json.dumps(LLAMA))
    assert load_config(single).name == "org/my-llama"
