"""Engines as public benchmarks launch them: rules by traits, hand-counted settings, nothing by name."""

from dataclasses import replace

import pytest

from taygeta.base.errors import InputError, UnknownNameError
from taygeta.frontend.catalog import model, model_names
from taygeta.spec.catalog import chip, chip_names
from taygeta.spec.engine import engine, engine_document, engine_names
from taygeta.spec.launch import Case, _rule, case_of, launched, release_of


def case(name: str, system: str, chips: int, weights: str = "", **load: int) -> Case:
    """The case of a model of the catalogue on a chip, under a load."""
    return replace(case_of(model(name), chip(system), chips, weights), **load)


@pytest.mark.parametrize(
    ("name", "attention", "experts"),
    [
        ("meta-llama/Llama-3.1-70B", "grouped", False),
        ("openai/gpt-oss-120b", "grouped", True),
        ("deepseek-ai/DeepSeek-R1", "latent", True),
        ("zai-org/GLM-5-FP8", "sparse", True),
        ("Qwen/Qwen3.5-397B-A17B", "recurrent", True),
    ],
)
def test_a_case_says_the_kind_of_a_model(name: str, attention: str, experts: bool) -> None:
    found = case(name, "h200", 8)
    assert (found.attention, found.experts, found.four_bit) == (attention, experts, False)
    assert case(name, "b200", 8).four_bit


def test_arrivals_are_looked_at_less_often_under_load_on_blackwell() -> None:
    looks = {
        (system, requests): launched(
            "sglang@inferencex", case("deepseek-ai/DeepSeek-R1", system, 8, requests=requests)
        ).intake_steps
        for system in ("h200", "b200")
        for requests in (4, 15, 16)
    }
    assert [looks["b200", n] for n in (4, 15, 16)] == [10, 10, 30]
    assert [looks["h200", n] for n in (4, 15, 16)] == [1, 1, 1]
    assert launched("sglang@inferencex", case("zai-org/GLM-5-FP8", "b200", 8, requests=64)).intake_steps == 1


def test_four_chips_that_weights_nearly_fill_take_more_of_their_memory() -> None:
    cases = (case("deepseek-ai/DeepSeek-R1", "b200", chips, "fp8_block", requests=32) for chips in (8, 4))
    eight, four = (launched("sglang@inferencex", found) for found in cases)
    assert (eight.memory_fraction, eight.token_budget, eight.intake_steps) == (0.82, 32768, 30)
    assert (four.memory_fraction, four.token_budget, four.intake_steps) == (0.95, 8192, 10)
    assert (eight.kv_format, eight.fused_all_reduce) == ("fp8", True)


def test_budgets_grow_with_the_load_as_the_scripts_count_them() -> None:
    latent = case("deepseek-ai/DeepSeek-R1", "h200", 8, "fp8_block", prompt=1024, answer=8192, requests=4)
    assert launched("trtllm@inferencex", latent).token_budget == 1024 + 4 + 64
    dense = case("meta-llama/Llama-3.1-70B", "h200", 2, "fp8_static", prompt=1024, answer=1024, requests=4)
    found = launched("trtllm@inferencex", dense)
    assert (found.token_budget, found.wait_steps, found.wait_share) == (1024 + 1024 + 256, 20, 0.9)
    wide = case("meta-llama/Llama-3.1-70B", "h200", 8, "fp8_static", prompt=1024, answer=1024, requests=4)
    assert launched("trtllm@inferencex", wide).wait_steps == 0
    one = case("meta-llama/Llama-3.1-8B", "h100", 1, prompt=2048, answer=128, requests=8)
    found = launched("trtllm@gap_analysis", one)
    assert (found.token_budget, found.sequence_limit) == (2048 + 8, 7)
    assert launched("vllm@gap_analysis", one).token_budget == 2048 + 8


def test_short_prompts_share_a_step_in_gap_analysis() -> None:
    short = case("meta-llama/Llama-3.1-8B", "h100", 1, prompt=128, answer=128, requests=8)
    assert launched("trtllm@gap_analysis", short).token_budget == 1024 + 8
    assert launched("trtllm@gap_analysis", replace(short, prompt=1024)).token_budget == 1024 + 8
    assert launched("trtllm@gap_analysis", replace(short, prompt=1025)).token_budget == 1025 + 8
    assert launched("vllm@gap_analysis", short).token_budget == 128 + 8


def test_flashinfer_runs_experts_of_eight_bits_on_blackwell_since_its_script_lets_it() -> None:
    found = replace(case("MiniMaxAI/MiniMax-M2.5", "b200", 4), release=(0, 19, 0))
    before = replace(found, release=(0, 17, 0))
    assert launched("vllm@inferencex", found).experts_eight == "trtllm_gen triton"
    assert launched("vllm@inferencex", before).experts_eight == "triton"


def test_without_a_load_rules_that_need_one_are_left_out() -> None:
    loaded = case("meta-llama/Llama-3.1-8B", "h100", 1, prompt=2048, answer=128, requests=8)
    idle = case("meta-llama/Llama-3.1-8B", "h100", 1)
    assert launched("trtllm@gap_analysis", idle).token_budget == engine("trtllm@gap_analysis").token_budget
    assert launched("sglang", loaded) == engine("sglang")


def test_caches_follow_the_checkpoint_or_the_launch() -> None:
    static = case("meta-llama/Llama-3.1-8B", "h100", 1, "fp8_static")
    assert launched("trtllm", static).kv_format == "fp8"
    assert launched("trtllm", case("meta-llama/Llama-3.1-8B", "h100", 1)).kv_format == ""
    hopper, blackwell = (case("openai/gpt-oss-120b", system, 8) for system in ("h100", "b200"))
    assert [launched("vllm@inferencex", c).kv_format for c in (hopper, blackwell)] == ["", "fp8"]


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("0.19.0", (0, 19, 0)),
        ("v0.5.6.post2", (0, 5, 6)),
        ("1.1.0rc2.post2", (1, 1, 0)),
        ("nightly-5b8c30d62b754b57", ()),
        ("glm5-hopper", ()),
        ("", ()),
    ],
)
def test_a_release_is_read_as_numbers(text: str, release: tuple[int, ...]) -> None:
    assert release_of(text) == release


def test_a_release_decides_what_its_script_set() -> None:
    blackwell = replace(case("MiniMaxAI/MiniMax-M2.5", "b200", 4), prompt=1024, answer=1024, requests=64)
    settings = {
        release: launched("vllm@inferencex", replace(blackwell, release=release_of(release)))
        for release in ("", "0.17.0", "0.19.0", "0.20.1")
    }
    assert [found.captured_tokens for found in settings.values()] == [512, 512, 2048, 2048]
    assert [found.token_budget for found in settings.values()] == [8192, 8192, 2048, 2048]
    assert [found.kv_format for found in settings.values()] == ["fp8", "", "fp8", "fp8"]
    dense = replace(case("meta-llama/Llama-3.1-70B", "b200", 4), release=(0, 19, 0))
    assert launched("vllm@inferencex", dense).captured_tokens == 512


def test_old_releases_compile_as_they_go() -> None:
    latent = replace(case("deepseek-ai/DeepSeek-R1", "b200", 8), prompt=1024, answer=1024, requests=64)
    releases = ((), (0,), (0, 5, 6), (0, 5, 9))
    found = [launched("sglang@inferencex", replace(latent, release=release)) for release in releases]
    assert [engine.compile_pieces for engine in found] == [0.0, 18.0, 18.0, 0.0]
    narrow = replace(latent, weights="nvfp4", release=(0,))
    assert launched("sglang@inferencex", narrow).compile_pieces == 68.0


def test_compiled_dense_layers_and_flash_attention_show_no_launches() -> None:
    found = {
        (name, system): launched("vllm@inferencex", case(name, system, 8))
        for name in ("meta-llama/Llama-3.1-70B", "openai/gpt-oss-120b")
        for system in ("h200", "b200")
    }
    assert [e.eager_launch > 0.0 for e in found.values()] == [False, False, True, True]
    assert [e.prompt_step > 0.0 for e in found.values()] == [False, True, False, True]


def test_layers_with_norms_of_heads_are_not_fused_in_tensorrt_llm() -> None:
    names = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-32B")
    plain, normed = (launched("trtllm", case(name, "h100", 1)) for name in names)
    assert (plain.fused_all_reduce, plain.quantise_launches) == (True, 0.0)
    assert (normed.fused_all_reduce, normed.quantise_launches) == (False, 1.0)
    assert launched("trtllm", case("Qwen/Qwen3-235B-A22B", "h100", 8)).fused_all_reduce


def test_settings_carry_the_source_of_the_rule_that_set_them() -> None:
    found = launched("sglang@inferencex", case("deepseek-ai/DeepSeek-R1", "b200", 8, "fp8_block", requests=64))
    assert any(source.startswith("intake_steps: scheduler-recv-interval") for source in found.sources)
    assert len({source.partition(":")[0] for source in found.sources}) == len(found.sources)


def test_no_rule_names_a_model_or_a_chip() -> None:
    names = {name.lower() for name in (*model_names(), *chip_names())}
    for name in engine_names():
        document = engine_document(name)
        tables = [document, *document.get("benchmark", {}).values()]
        for rule in (rule for table in tables for rule in table.get("rules", [])):
            assert not {str(value).lower() for value in rule.get("when", {}).values()} & names
            for key, item in rule.items():
                assert key == "when" or item["source"]


def test_what_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="condition 'model' is not known"):
        _rule({"when": {"model": "DeepSeek-R1"}}, "somewhere")
    with pytest.raises(InputError, match="condition 'release' is not known"):
        _rule({"when": {"release": "0.19.0"}}, "somewhere")
    with pytest.raises(InputError, match="no settings for the benchmark 'mlperf'"):
        launched("vllm@mlperf", case("openai/gpt-oss-120b", "h100", 1))
    with pytest.raises(UnknownNameError):
        launched("triton", case("openai/gpt-oss-120b", "h100", 1))
