"""taygeta run, check and compile: what they print, what they refuse, and how they end."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

sys.path.append(str(Path(__file__).parents[1] / "graph"))
import tiny_models as tiny

from taygeta.app.cli import app
from taygeta.machine import quality, sweep

pytestmark = pytest.mark.torch

LAB = str(Path(__file__).parents[1] / "chips" / "lab.toml")
FP32 = ("--chip", LAB, "--weights", "fp32", "--activations", "fp32")


def run(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, list(words))


def answer(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 of 97 tokens with a tokenizer of single bytes, of which the first 97 are in the vocabulary."""
    tokenizers = pytest.importorskip("tokenizers")
    directory = tmp_path_factory.mktemp("gpt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny.torch_model("gpt2").save_pretrained(directory)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:97]
    library = tokenizers.Tokenizer(tokenizers.models.BPE({x: i for i, x in enumerate(letters)}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.save(str(directory / "tokenizer.json"))
    return directory


def test_run_streams_text_and_prices_it(checkpoint):
    result = run("run", str(checkpoint), "HELLO", *FP32, "--max-tokens", "6")
    assert result.exit_code == 0, result.stderr
    found = answer("run", str(checkpoint), "HELLO", *FP32, "--max-tokens", "6")
    ids = found["prompt_tokens"]
    expected, _ = tiny.torch_greedy("gpt2", tuple(ids), 6)
    stop = next((i for i, t in enumerate(expected) if t == 2), 5)
    assert found["tokens"] == expected[: stop + 1]
    assert result.stdout.startswith(found["text"])
    assert "Where the time of a token goes" in result.stdout
    assert "every value below is computed in these formats" in result.stderr
    assert "timed on the chip's engines" in result.stdout
    assert found["checked_sums"] > 0
    assert found["prompt"]["steps"] == 1
    assert found["decode"]["timed_s"] == pytest.approx(sum(found["decode"]["parts_s"].values()))
    assert found["decode"]["modelled_s"]["low"] < found["decode"]["modelled_s"]["nominal"]


def test_run_needs_no_tokenizer_with_ids(checkpoint, tmp_path):
    found = answer("run", str(checkpoint), "5, 6 7", "--ids", "--chip", "maia-100", "--weights", "mx6",
                   "--activations", "mx9", "--max-tokens", "3")  # fmt: skip
    assert found["prompt_tokens"] == [5, 6, 7]
    assert found["text"] is None
    assert len(found["tokens"]) <= 3
    assert found["formats"]["ffn"] == "mx6"
    assert found["decode"]["joules_at_full_power"] == pytest.approx(700.0 * found["decode"]["timed_s"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("{c}", "HI", "--chip", "h100"), "h100 cannot be compiled for: it does not state"),
        (("{c}", "HI", "--weights", "fp32", "--activations", "fp32"), "maia-100 cannot multiply fp32 by fp32"),
        (("{c}", "HI", "--weights", "fp99"), "Format 'fp99'"),
        (("{c}", "HI", "--kv", "fp8"), "give kv=bf16"),
        (("{c}", "HI" * 65), "The prompt has 130 tokens, and the context of"),
        (("{c}", "", "--ids"), "the prompt is token ids such as 1,2,3, not ''"),
        (("{c}", "1,x", "--ids"), "the prompt is token ids such as 1,2,3, not '1,x'"),
        (("{c}", "97", "--ids"), "Token 97 is not in the vocabulary of 97 tokens"),
        (("{c}", "HI", "--max-tokens", "0"), "max-tokens must be 1 to"),
        (("{c}", "HI", "--temperature", "-1"), "temperature must be 0"),
        (("{c}", "HI", "--chat"), "has no chat template"),
        (("/nowhere", "HI"), "/nowhere is no directory: running needs a checkpoint on disk"),
    ],
)
def test_what_run_refuses_is_one_sentence(checkpoint, words, sentence):
    result = run("run", *(w.replace("{c}", str(checkpoint)) for w in words))
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_tensors_that_are_missing_wrong_or_cut_off_are_refused(checkpoint, tmp_path):
    from safetensors.numpy import load_file, save_file

    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    tensors = load_file(checkpoint / "model.safetensors")
    name = next(n for n in tensors if n.endswith("h.1.mlp.c_fc.weight"))
    target = tmp_path / "model.safetensors"
    save_file({k: v for k, v in tensors.items() if k != name}, target)
    assert f"the tensor '{name}' is missing" in run("run", str(tmp_path), "HI", *FP32).stderr
    save_file(tensors | {name: tensors[name][:, :-1].copy()}, target)
    assert f"the tensor '{name}' is 32 x 127" in run("run", str(tmp_path), "HI", *FP32).stderr
    target.write_bytes((checkpoint / "model.safetensors").read_bytes()[:-5])
    result = run("run", str(tmp_path), "HI", *FP32)
    assert result.exit_code == 2
    assert "is cut off" in result.stderr or "would be bytes" in result.stderr


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.txt"
    path.write_text(" ".join(str(3 + i * 7 % 90) for i in range(50)))
    return path


def test_check_against_torch(checkpoint, ids):
    found = answer("check", str(checkpoint), "--ids", str(ids), *FP32, "--window", "25")
    assert found["reference"] == "PyTorch, eager, fp32"
    assert (found["tokens"], found["windows"]) == (50, 2)
    chip, half = found["quality"]["chip"], found["quality"]["PyTorch bf16"]
    assert chip["error_max"] < 1e-4
    assert chip["agreement"] == 1.0
    assert chip["kl"] < 1e-9 < half["kl"]
    assert chip["perplexity"] == pytest.approx(found["quality"]["reference"]["perplexity"], rel=1e-5)
    assert found["first_divergence"] is None
    assert found["checked_sums"] > 0
    assert max(e["relative"] for e in found["operations"]) < 1e-5
    result = run("check", str(checkpoint), "--ids", str(ids), "--chip", LAB, "--weights", "mxfp4", "--activations",
                 "mxfp4", "--window", "25")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "first divergence  layer 0" in result.stdout
    assert "PyTorch bf16" in result.stdout


def test_check_without_torch_says_what_it_compares_with(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "has_torch", lambda: False)
    text = tmp_path / "corpus.txt"
    text.write_text("HELLO WORLD HELLO")
    found = answer("check", str(checkpoint), "--text", str(text), *FP32, "--window", "8")
    assert "PyTorch is not installed" in found["reference"]
    assert set(found["quality"]) == {"chip", "reference"}
    assert found["windows"] == 2  # 17 tokens: the last is alone and left out
    assert found["quality"]["chip"]["agreement"] == 1.0


def test_sweep_of_formats(checkpoint, ids, monkeypatch):
    monkeypatch.setattr(sweep, "format_pairs", lambda chip: (("bf16", "bf16"), ("mx9", "mx9"), ("mx6", "mx6")))
    found = answer("check", str(checkpoint), "--ids", str(ids), "--sweep", "formats", "--window", "25")
    rows = {r["weights"]: r for r in found["rows"]}
    assert rows["bf16"]["kl"] < rows["mx9"]["kl"] < rows["mx6"]["kl"]
    assert rows["bf16"]["bytes"] > rows["mx9"]["bytes"] > rows["mx6"]["bytes"]
    assert rows["mx6"]["mode"] == "mx6"
    assert all(r["seconds"] > 0 for r in found["rows"])
    assert rows["bf16"]["pareto"]

    measured = sweep.measure

    def stops(d, *rest):
        if d.formats.ffn == "mx6":
            raise KeyboardInterrupt
        return measured(d, *rest)

    monkeypatch.setattr(sweep, "measure", stops)
    result = run("check", str(checkpoint), "--ids", str(ids), "--sweep", "formats", "--window", "25")
    assert result.exit_code == 130
    assert "Interrupted: 2 of 3 pairs were tried." in result.stdout


def test_questions_are_asked(monkeypatch, tmp_path):
    """Without a checkpoint: the assistant, its own questions; in other formats too, and with a file of one's own."""
    monkeypatch.setattr(sweep, "format_pairs", lambda chip: (("bf16", "bf16"), ("mx6", "mx9")))
    found = answer("check", "--sweep", "formats", "--ask", "3", "--tokens", "60")
    assert (found["model"], found["questions"]) == ("assistant", 3)
    assert [(r["weights"], r["right"]) for r in found["rows"]] == [("bf16", 3), ("mx6", 3)]
    asked = tmp_path / "asked.jsonl"
    asked.write_text(
        '{"question": "Who makes Maia 100?", "answer": "Maia 100 is made by Microsoft."}\n'
        '{"question": "Who makes H100?", "answer": "nobody"}\n'
    )
    found = answer("check", "--questions", str(asked), "--weights", "mx9", "--activations", "mx9")
    assert (found["questions"], found["right_answers"], found["windows"]) == (2, 1, 2)
    assert "1 of 2" in run("check", "--questions", str(asked)).stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Give what is to be predicted"),
        (("--questions", "/nowhere"), "/nowhere must be a file"),
        (("--questions", "{ids}"), "line 1: a question is a JSON object"),
        (("--ids", "{ids}", "--ask", "0"), "--ask must be 1 to 10,000"),
        (("--text", "/nowhere"), "/nowhere must be a file"),
        (("--ids", "{ids}", "--window", "1"), "window must be 2 to 128"),
        (("--ids", "{ids}", "--tokens", "1"), "tokens must be 2 to"),
        (("--ids", "{ids}", "--diverges", "0"), "diverges must be"),
        (("--ids", "{ids}", "--sweep", "formats", "--weights", "mx6"), "leave out --weights"),
    ],
)
def test_what_check_refuses(checkpoint, ids, words, sentence):
    result = run("check", str(checkpoint), *(w.replace("{ids}", str(ids)) for w in words))
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_compile_prints_the_program_or_its_sum():
    from taygeta.compiler.text import parse

    result = run("compile", "gpt2", "--chip", LAB, "--context", "100", "--print")
    assert result.exit_code == 0, result.stderr
    program = parse(result.stdout)
    assert (program.chip, program.chips) == ("lab", 1)
    found = answer("compile", "gpt2", "--chip", LAB, "--context", "100", "--requests", "2")
    assert found["requests"] == 2
    assert found["instructions"] > 100
    assert found["bytes"]["sram"] <= found["memory_bytes"]["sram"]
    assert found["timed_s"] == pytest.approx(sum(found["parts_s"].values()))
    assert "Where the time goes" in run("compile", "gpt2", "--chip", LAB, "--context", "100").stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("gpt2", "--chip", "h100"), "h100 cannot be compiled for"),
        (("gpt2", "--context", "1024"), "1,025 tokens exceed the context"),
        (("gpt2", "--requests", "0"), "--requests must be 1 to"),
        (("Qwen/Qwen3.5-27B",), "can be predicted and not executed"),
        (("openai/gpt-4",), "of main memory on each of 1 x maia-100"),
    ],
)
def test_what_compile_refuses(words, sentence):
    result = run("compile", *words)
    assert result.exit_code == 2
    assert sentence in result.stderr
