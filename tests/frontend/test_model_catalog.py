"""The catalogue: names, corners of unpublished models, agreement with published files, errors word for word."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from taygeta.base.errors import InputError, UnknownNameError
from taygeta.frontend import entries, load_config, model, model_names

SHARED = Path(__file__).parents[3] / "shared" / "models"
FILES = sorted(SHARED.glob("*.json"))
# Their config.json says nothing of formats; the entry has them from the publisher's other documents.
SILENT = ("nvidia/DeepSeek-V3.1-NVFP4", "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("openai/gpt-oss-120b", "openai/gpt-oss-120b"),
        ("GPT-OSS-120B", "openai/gpt-oss-120b"),
        ("llama-3.1-70b", "meta-llama/Llama-3.1-70B"),
        ("meta-llama/Meta-Llama-3.1-70B", "meta-llama/Llama-3.1-70B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "nvidia/Llama-3.1-8B-Instruct-FP8"),
        ("zhipuai/GLM-5", "zai-org/GLM-5"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-R1"),
        ("Qwen/Qwen3.5-397B-A17B", "Qwen/Qwen3.5-397B-A17B"),
        ("qwen/qwen3-235b-a22b-fp8", "Qwen/Qwen3-235B-A22B-FP8"),
        ("MiniMaxAI/MiniMax-M2.5", "MiniMaxAI/MiniMax-M2.5"),
        ("gpt-3", "openai/gpt-3-175b"),
        (" gpt2-small ", "openai-community/gpt2"),
    ],
)
def test_names_are_found_in_any_spelling(name, found):
    assert model(name).name == found


def test_every_entry_builds_and_says_its_source():
    assert len(model_names()) == len(set(model_names())) >= 55
    for entry in entries():
        assert model(entry.name).source == entry.source
        assert entry.source.startswith(("https://", "arXiv", "unpublished"))


def shapes(found):
    """A model without its arithmetic, on which the catalogue's entries may be silent."""
    plain = {"mixer": {"scale", "softcap", "rope", "norm_eps", "norm_offset"}}
    plain["ffn"] = {"scoring", "normalise", "route_scale", "limit", "alpha", "shift"}

    def half(part, names):
        return part and replace(part, **{f.name: f.default for f in fields(part) if f.name in names})

    def bare(layers):
        return tuple(replace(x, **{k: half(getattr(x, k), names) for k, names in plain.items()}) for x in layers)

    return replace(found, layers=bare(found.layers), mtp=bare(found.mtp), arithmetic=None, refusal="")


@pytest.mark.skipif(not FILES, reason="the published config.json files are not beside the repository")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_built_in_entry_is_the_published_file(path):
    published = load_config(path)
    built_in = model(published.name)
    bare = {"name": "", "source": "", "notes": ()}
    if built_in.name in SILENT:
        assert built_in.native != published.native
        bare["native"] = published.native
    assert shapes(replace(built_in, **bare)) == shapes(replace(published, **bare))


def test_an_unpublished_model_is_a_set_of_guesses():
    gpt4 = model("gpt-4")
    assert gpt4.assumed
    assert {guess.field for guess in gpt4.guesses} >= {"hidden_size", "num_hidden_layers", "num_local_experts"}
    assert all(guess.low <= guess.nominal <= guess.high and len(guess.reason) > 20 for guess in gpt4.guesses)
    assert not model("gpt-3").assumed


@pytest.mark.parametrize("name", ["gpt-4", "gpt-3.5-turbo"])
def test_corners_order_the_parameters(name):
    low, nominal, high = (model(name, corner) for corner in ("low", "nominal", "high"))
    assert low.parameters() < nominal.parameters() < high.parameters()
    assert nominal == model(name)


def test_gpt_4_has_the_totals_of_the_rumour():
    gpt4 = model("gpt-4")
    assert gpt4.parameters() == pytest.approx(1.8e12, rel=0.02)  # "~1.8T parameters"
    assert gpt4.active_parameters() == pytest.approx(280e9, rel=0.005)  # "~280B active"
    attention = sum(w.elements for w in gpt4.layers[0].mixer.weights(gpt4.d_model)) * 120
    assert attention == pytest.approx(55e9, rel=0.02)  # "~55B shared attention parameters"
    one_expert = 120 * 3 * gpt4.d_model * gpt4.layers[0].ffn.d_ff
    assert one_expert == pytest.approx(111e9, rel=0.001)  # "16 experts of ~111B MLP parameters"


def test_a_published_model_has_one_corner():
    assert model("llama-3.1-8b", "low") == model("llama-3.1-8b", "high")


def test_an_entry_in_toml_is_a_model_too(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TINY)
    mine = model(str(path))
    assert (mine.name, mine.source, mine.notes) == ("me/mine", "a drawing", ("a note",))
    assert [layer.mixer.heads for layer in mine.layers] == [4] * 3
    assert len(model(str(path), "low").layers) == 2


TINY = """
name = "me/mine"
source = "a drawing"
notes = ["a note"]
[config]
model_type = "llama"
hidden_size = 64
num_attention_heads = 4
intermediate_size = 128
vocab_size = 100
max_position_embeddings = 512
hidden_act = "silu"
num_hidden_layers = {low = 2, nominal = 3, high = 3, reason = "I said so."}
"""


def refusal(text, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        model(str(path))
    return str(caught.value)


def test_errors_of_entries(tmp_path):
    low = TINY.replace("low = 2", "low = 9")
    assert refusal(low, tmp_path) == "mine.toml: num_hidden_layers must have low <= nominal <= high, not 9, 3, 3."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ', reason = "I said so."',
            "",
            "mine.toml: num_hidden_layers must have low, nominal, high and a reason that names who estimated it.",
        ),
        ('source = "a drawing"', "", "mine.toml: source must be a text, not null."),
        (
            "[config]",
            "[configuration]",
            "mine.toml: config is missing; it must be a table with the fields of a Hugging Face config.json.",
        ),
        (
            'name = "me/mine"',
            'name = "me/mine"\ncolour = "red"',
            "mine.toml: colour = 'red' is not a field that the import of catalogue models understands; "
            "if it does not change the computation, remove it.",
        ),
        (
            "[config]",
            "published_parameters = {total = true}\n[config]",
            "mine.toml: published_parameters must be numbers named total and active, such as {total = 8.03e9}.",
        ),
    ],
)
def test_errors_of_entries_word_for_word(tmp_path, old, new, message):
    assert refusal(TINY.replace(old, new, 1), tmp_path) == message


def test_unknown_names():
    with pytest.raises(UnknownNameError) as caught:
        model("lama-3.1-70b")
    text = str(caught.value)
    assert text.startswith("Model 'lama-3.1-70b' is neither in the catalogue nor a file. Did you mean llama-3.1-70b")
    assert text.endswith("`taygeta models` lists the catalogue; a config.json works too.")
    with pytest.raises(InputError, match=r"^Model file nowhere\.json does not exist\.$"):
        model("nowhere.json")
    with pytest.raises(InputError, match=r"^corner must be low, nominal or high, not 'middle'\.$"):
        model("gpt2", corner="middle")


@pytest.mark.parametrize("name", ["", " ", "\0", "a" * 100_000, "/", "..", "name\n", "\ud800"])
def test_strange_names_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        model(name)


def test_the_catalogue_imports_nothing_heavy():
    code = (
        "import sys; from taygeta.frontend import model; model('gpt-oss-120b'); "
        "print([m for m in ('torch', 'numpy', 'pydantic', 'transformers', 'polars', 'numba') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
