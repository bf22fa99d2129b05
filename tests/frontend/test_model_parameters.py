"""Parameter counts: exactly those of transformers on the meta device; published counts, within their rounding."""

import json
from pathlib import Path

import pytest

from taygeta.frontend import entries, import_config, load_config, model
from taygeta.frontend.catalog import Entry
from taygeta.spec.model import Model, MoeFfn

ENTRIES = {entry.name: entry for entry in entries()}
PUBLISHED = sorted(name for name, entry in ENTRIES.items() if not model(name).assumed)
SHARED = Path(__file__).parents[3] / "shared" / "models"
FILES = sorted(SHARED.glob("*.json"))

# Classes that transformers knows by another name: each file's architectures, or its modelling code, says so.
TWINS = {"kimi_k2": "deepseek_v3", "mimo": "qwen2"}


def stored_as_buffers(found: Model) -> int:
    """The corrections of routing scores: weights of the checkpoint that transformers keeps outside its parameters."""
    moes = [layer.ffn for layer in found.layers if isinstance(layer.ffn, MoeFfn)]
    return sum(moe.experts for moe in moes if moe.correction_bias)


def count_with_transformers(config: dict) -> int:
    """Count the parameters of the same text model on torch's meta device; MTP modules are not in these classes."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = {**config, **config.get("text_config", {})} if "text_config" in config else dict(config)
    for name in ("quantization_config", "auto_map", "text_config", "vision_config", "architectures"):
        config.pop(name, None)
    kind = config.pop("model_type")
    built = transformers.AutoConfig.for_model(TWINS.get(kind, kind), **config)
    with torch.device("meta"):
        found = transformers.AutoModelForCausalLM.from_config(built)
    return sum(p.numel() for p in found.parameters())  # parameters() gives a tied head once


@pytest.mark.torch
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_catalogue_counts_as_transformers(name):
    found = model(name)
    assert found.parameters() - stored_as_buffers(found) == count_with_transformers(dict(ENTRIES[name].config))


@pytest.mark.torch
@pytest.mark.skipif(not FILES, reason="the published config.json files are not beside the repository")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_published_files_count_as_transformers(path):
    found = load_config(path)
    assert found.parameters() - stored_as_buffers(found) == count_with_transformers(json.loads(path.read_text()))


# Llama 4's total counts its vision tower: 34 layers of 4 x 1408^2 + 2 x 1408 x 5632, and the projector's
# 5632 x 4096 + 4096^2 + 4096 x 5120.
BESIDES = {
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": 34 * (4 * 1408**2 + 2 * 1408 * 5632) + 4096 * (5632 + 4096 + 5120)
}


def rounding(published: float) -> float:
    """One unit of the last digit that a card prints (405 for 405.85 is cut, not rounded); Kimi prints 1 T."""
    if published == 1.0e12:
        return 0.1e12
    digits = f"{published / 1e9:g}"
    return 1e9 / 10 ** len(digits.partition(".")[2])


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_are_the_published_ones(name):
    entry, found = ENTRIES[name], model(name)
    counts = [found.parameters() + BESIDES.get(name, 0), found.parameters(mtp=True)]
    assert min(abs(count - entry.total) for count in counts) < rounding(entry.total)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if ENTRIES[name].active])
def test_active_parameters_are_the_published_ones(name):
    """Cards count the embedding or leave it out, and say not which."""
    entry, found = ENTRIES[name], model(name)
    counts = [found.active_parameters(embedding) for embedding in (True, False)]
    assert min(abs(count - entry.active) for count in counts) < rounding(entry.active)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gpt-oss-120b", (116.8, 5.1)),
        ("gpt-oss-20b", (20.9, 3.6)),
        ("qwen3-30b-a3b", (30.5, 3.0)),
        ("qwen3-235b-a22b", (235.1, 21.6)),
        ("deepseek-v3", (671.0, 36.6)),
        ("kimi-k2", (1026.4, 31.7)),
        ("mixtral-8x7b", (46.7, 12.7)),
    ],
)
def test_active_parameters_without_the_embedding(name, billions):
    found = model(name)
    assert (round(found.parameters() / 1e9, 1), round(found.active_parameters(False) / 1e9, 1)) == billions


def test_mtp_modules_are_the_published_size():
    # DeepSeek-V3 publishes 11.5 B of its own for the MTP module, Nemotron 123.6 B with it, MiMo 7.83 B with it.
    deepseek, nemotron, mimo = model("deepseek-v3"), model("nemotron-3-super"), model("mimo-7b")
    assert deepseek.parameters(True) - deepseek.parameters() == pytest.approx(11.5e9, rel=0.02)
    assert nemotron.parameters(True) == pytest.approx(123.6e9, rel=0.001)
    assert mimo.parameters(True) == pytest.approx(7.83e9, rel=0.002)


def test_an_entry_can_be_imported_again_from_its_own_fields():
    entry: Entry = ENTRIES["openai/gpt-oss-20b"]
    assert import_config(entry.config, entry.name, entry.source) == model("gpt-oss-20b")
