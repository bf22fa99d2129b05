"""Layers counted by hand, with the arithmetic written out."""

from taygeta.frontend import import_config, model
from taygeta.spec.mixers import Attention, LatentAttention, LinearAttention, StateSpace
from taygeta.spec.model import DenseFfn, MoeFfn


def elements(layer, d_model):
    return sum(w.elements for w in layer.weights(d_model))


def test_one_layer_of_llama_3_1_70b():
    llama = model("llama-3.1-70b")
    assert len(llama.layers) == 80
    assert len(llama.kinds()) == 1
    assert elements(llama.layers[0], llama.d_model) == (
        8192 * 64 * 128  # queries: 64 heads of 128
        + 2 * 8192 * 8 * 128  # keys and values: 8 heads of 128
        + 64 * 128 * 8192  # output
        + 3 * 8192 * 28672  # gate, up, down
        + 2 * 8192  # two norms
    )
    assert llama.parameters() == 80 * 855_654_400 + 2 * 128256 * 8192 + 8192  # layers, embedding and head, last norm


def test_one_layer_of_gpt_oss_120b():
    oss = model("gpt-oss-120b")
    assert [layer.mixer.window for layer in oss.layers] == [128, None] * 18
    assert elements(oss.layers[0], 2880) == (
        2880 * 64 * 64 + 64 * 64  # queries: 64 heads of 64, and their bias
        + 2 * (2880 * 8 * 64 + 8 * 64)  # keys and values: 8 heads of 64, and their biases
        + 64 * 64 * 2880 + 2880  # output and its bias
        + 64  # one sink a head
        + 2880 * 128 + 128  # router and its bias
        + 128 * (2880 * 2 * 2880 + 2 * 2880)  # gate and up of 128 experts, and their biases
        + 128 * (2880 * 2880 + 2880)  # down of 128 experts, and its bias
        + 2 * 2880  # two norms
    )  # fmt: skip


def test_one_layer_of_deepseek_v3():
    deepseek = model("deepseek-v3")
    assert [type(layer.ffn) for layer in deepseek.layers] == [DenseFfn] * 3 + [MoeFfn] * 58
    attention = (
        7168 * 1536 + 1536 + 1536 * 128 * (128 + 64)  # queries down, norm, up: 128 heads of 128 + 64
        + 7168 * (512 + 64) + 512 + 512 * 128 * (128 + 128)  # latent and rotary key down, norm, keys and values up
        + 128 * 128 * 7168  # output
        + 2 * 7168  # the layer's two norms
    )  # fmt: skip
    assert elements(deepseek.layers[0], 7168) == attention + 3 * 7168 * 18432
    assert elements(deepseek.layers[3], 7168) == attention + (256 + 1) * 3 * 7168 * 2048 + 7168 * 256 + 256
    # One more layer, the projection of two joined vectors, and three norms; embedding and head are the model's own.
    extra = elements(deepseek.layers[3], 7168) + 2 * 7168 * 7168 + 3 * 7168
    assert deepseek.parameters(mtp=True) - deepseek.parameters() == extra


def test_cache_of_grouped_queries():
    # 2 (key and value) x 8 heads x 128, whatever the 64 query heads.
    assert model("llama-3.1-70b").layers[0].mixer.cache_elements() == 2 * 8 * 128


def test_cache_of_latent_attention():
    # A latent of 512 and a rotary key of 64; with an indexer its key of 128 too.
    assert model("deepseek-v3").layers[0].mixer.cache_elements() == 512 + 64
    assert model("deepseek-v3.2").layers[0].mixer.cache_elements() == 512 + 64 + 128


def test_cache_of_a_sliding_window():
    narrow, wide = (layer.mixer for layer in model("gpt-oss-20b").layers[:2])
    assert narrow.cache_elements() == wide.cache_elements() == 2 * 8 * 64
    assert (narrow.visible(100), narrow.visible(4096), wide.visible(4096)) == (100, 128, 4096)


def test_gpt2_has_positions_biases_and_a_tied_head():
    gpt2 = model("gpt2")
    layer = 4 * 768 * 768 + 4 * 768 + 2 * 768 * 3072 + 3072 + 768 + 4 * 768  # attention, its biases, ffn, norms
    assert gpt2.parameters() == 50257 * 768 + 1024 * 768 + 12 * layer + 2 * 768
    assert gpt2.tied
    assert not gpt2.layers[0].mixer.rotary


def test_llama_4_chunks_rotary_layers_only():
    mixers = [layer.mixer for layer in model("llama-4-scout").layers]
    assert [m.rotary for m in mixers] == [True, True, True, False] * 12
    assert [m.chunk for m in mixers] == [8192, 8192, 8192, None] * 12
    assert [m.qk_norm for m in mixers] == ["unit", "unit", "unit", "none"] * 12
    assert mixers[0].visible(20_000) == 8192
    assert model("llama-4-scout").layers[0].ffn == MoeFfn(16, 1, 8192, shared_d_ff=8192)


def test_llama_4_with_dense_layers_between():
    config = {
        "model_type": "llama4_text", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 10, "hidden_act": "silu",
        "max_position_embeddings": 100, "num_attention_heads": 4, "num_local_experts": 8, "num_experts_per_tok": 1,
        "intermediate_size": 32, "intermediate_size_mlp": 128, "interleave_moe_layer_step": 2,
    }  # fmt: skip
    ffns = [layer.ffn for layer in import_config(config, "maverick", "test").layers]
    assert [type(f) for f in ffns] == [DenseFfn, MoeFfn] * 2
    assert ffns[0] == DenseFfn(128)


def test_qwen3_5_attends_in_every_fourth_layer():
    qwen = model("qwen3.5-397b-a17b")
    assert [type(layer.mixer) for layer in qwen.layers] == [*[LinearAttention] * 3, Attention] * 15
    full = qwen.layers[3].mixer
    assert (full.output_gate, full.qk_norm, full.head_dim) == (True, "head", 256)
    linear = qwen.layers[0].mixer
    assert linear.state_elements() == 64 * 128 * 128  # value heads x key width x value width
    assert linear.conv_elements() == (2 * 16 * 128 + 64 * 128) * 3  # channels x (kernel - 1)
    assert qwen.layers[0].ffn.shared_gate
    assert len(qwen.mtp) == 1


def test_nemotron_is_one_block_a_layer():
    nemotron = model("nemotron-3-super")
    mixers = [type(layer.mixer) for layer in nemotron.layers]
    assert (mixers.count(StateSpace), mixers.count(Attention), mixers.count(type(None))) == (40, 8, 40)
    experts = nemotron.layers[1].ffn
    assert elements(nemotron.layers[1], 4096) == (
        4096 * 512 + 512  # router, and the correction of its scores
        + 512 * 2 * 1024 * 2688  # up and down of 512 experts, in a latent space of 1024, without gates
        + 2 * 4096 * 1024  # into and out of that space
        + 2 * 4096 * 5376  # the shared expert
        + 4096  # one norm
    )  # fmt: skip
    assert (experts.top_k, experts.activation) == (22, "relu2")
    assert not nemotron.layers[7].mixer.rotary
    assert [type(layer.mixer or layer.ffn) for layer in nemotron.mtp] == [Attention, MoeFfn]


def test_kinds_of_norms_on_queries_and_keys():
    assert model("qwen3-8b").layers[0].mixer.qk_norm == "head"
    assert model("minimax-m2.5").layers[0].mixer.qk_norm == "full"
    assert model("llama-3.1-8b").layers[0].mixer.qk_norm == "none"


def test_biases():
    mimo, oss, llama = (model(n).layers[0].mixer for n in ("mimo-7b", "gpt-oss-20b", "llama-3.1-8b"))
    assert (mimo.qkv_bias, mimo.output_bias) == (True, False)
    assert (oss.qkv_bias, oss.output_bias) == (True, True)
    assert (llama.qkv_bias, llama.output_bias) == (False, False)


def test_latent_attention_with_an_indexer():
    mixer = model("glm-5").layers[0].mixer
    assert isinstance(mixer, LatentAttention)
    assert (mixer.indexer.heads, mixer.indexer.dim, mixer.indexer.top_k) == (32, 128, 2048)


def test_windows_of_qwen_hold_above_max_window_layers():
    config = {
        "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 10, "hidden_act": "silu",
        "max_position_embeddings": 100, "num_attention_heads": 4, "intermediate_size": 32,
        "sliding_window": 16, "max_window_layers": 3,
    }  # fmt: skip
    off = import_config(config, "tiny", "test")
    on = import_config({**config, "use_sliding_window": True}, "tiny", "test")
    assert [layer.mixer.window for layer in off.layers] == [None] * 4
    assert [layer.mixer.window for layer in on.layers] == [None, None, None, 16]


def test_windows_of_gemma_alternate():
    assert [layer.mixer.window for layer in model("gemma-2-9b").layers] == [4096, None] * 21
    assert model("gemma-2-9b").layers[0].norms == 4


def test_window_of_mistral_holds_everywhere():
    assert {layer.mixer.window for layer in model("mistral-7b").layers} == {4096}
