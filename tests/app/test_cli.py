"""The commands: what they ask of the library, what they print, how they end."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import result_samples as samples
from typer.testing import CliRunner, Result

from taygeta import __version__, api
from taygeta.app.cli import app
from taygeta.base import errors
from taygeta.spec.deployment import Batch

COMMANDS = ("predict", "compare", "plan", "sweep", "explain", "chips", "models", "show")
LONG = ("predict", "compare", "plan", "sweep", "explain")


def run(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, list(words))


class Library:
    """Stands for the library: notes what a command asks, and answers with results made by hand."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def answer(self, name: str, result: object) -> Any:
        def verb(*args: Any, **options: Any) -> object:
            self.asked[name] = (args, options)
            return result

        return verb


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()

    class Recipe:
        sheet = staticmethod(samples.sheet)

    step = samples.step(samples.deployed(), Batch.decode(16, 1536), 0.01)
    answers = {
        "deploy": samples.deployed(),
        "recipe": Recipe,
        "serve_rate": samples.service(),
        "predict": step,
        "compare": samples.comparisons(),
        "plan": samples.planned(),
        "sweep": samples.swept(),
        "explain": samples.sensitivities(),
    }
    for name, result in answers.items():
        monkeypatch.setattr(api, name, made.answer(name, result))
    return made


def words_of(command: str) -> list[str]:
    extra = {"compare": ["--chips", "toy:4,tiny:1"], "sweep": ["--set", "hbm.bandwidth=1TB/s..8TB/s"]}
    return [command, "acme/small", *extra.get(command, [])]


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"taygeta {__version__}\n")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_a_sentence_and_an_example(command: str) -> None:
    result = run(*([command] if command else []), "--help")
    assert result.exit_code == 0
    assert re.search(rf"Example:\s+taygeta {command or 'predict'}", result.stdout)
    options = re.findall(r"^  --?\S.*", result.stdout, re.MULTILINE)
    assert options


def test_help_of_every_option_is_a_sentence() -> None:
    import typer.main

    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        for parameter in command.params:
            text = getattr(parameter, "help", None)
            assert text, f"{name} {parameter.name} has no help"
            assert text.endswith("."), f"{name} {parameter.name}: {text}"


def test_commands_that_print_a_result_take_json() -> None:
    """As the README says: all but serve, which ends with none; validate writes a file."""
    import typer.main

    group: Any = typer.main.get_command(app)
    found = {
        name: next((p for p in command.params if "--json" in p.opts), None) for name, command in group.commands.items()
    }
    assert {name for name, option in found.items() if option is None} == {"serve"}
    assert {name for name, option in found.items() if option and not option.is_flag} == {"validate"}


def test_predict(library: Library) -> None:
    result = run(
        "predict",
        "acme/small",
        "--chip",
        "toy:4",
        "--isl",
        "2048",
        "--tp",
        "2",
        "--set",
        "clock=2GHz",
        "--price",
        "2 $/h",
    )
    assert result.exit_code == 0
    assert "acme/small on toy:4\n" in result.stdout
    assert re.search(r"time per output token, TPOT +20\.0 ms +16\.0 to 25\.0 ms", result.stdout)
    args, options = library.asked["deploy"]
    assert args == ("acme/small", "toy:4")
    assert options["tp"] == 2
    assert options["settings"] == {"clock": "2GHz"}
    assert library.asked["serve_rate"][0][1:] == (2048, 1024, 16, "2 $/h")


def test_predict_a_step(library: Library) -> None:
    """Four chips, tp=2: two replicas share 16 requests, in the middle of 1,024 output tokens."""
    assert run("predict", "acme/small", "--step", "decode").exit_code == 0
    assert library.asked["predict"][0][1] == Batch.decode(8, 1024 + 512)
    assert run("predict", "acme/small", "--step", "prefill", "--isl", "100").exit_code == 0
    assert library.asked["predict"][0][1] == Batch.prefill(1, 100)


def test_compare(library: Library) -> None:
    result = run(
        "compare", "acme/small", "--chips", "toy:4,tiny:1", "--price", "toy:4=2 $/h", "--weights", "fp8"
    )
    assert result.exit_code == 0
    assert result.stdout.index("quick:4") < result.stdout.index("toy:4")
    assert "tiny:1: It needs 141 GB; 1 x tiny has 8 GB." in result.stdout
    args, options = library.asked["compare"]
    assert args[:6] == ("acme/small", ["toy:4", "tiny:1"], 1024, 1024, 16, ["2 $/h", None])
    assert options["weights"] == "fp8"


def test_a_comparison_without_an_answer_exits_with_three(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "compare", library.answer("compare", samples.comparisons()[2:]))
    result = run("compare", "acme/small", "--chips", "tiny:1")
    assert result.exit_code == 3
    assert "tiny:1: It needs 141 GB; 1 x tiny has 8 GB." in result.stdout
    assert "below each number" not in result.stdout
    assert json.loads(run("compare", "acme/small", "--chips", "tiny:1", "--json").stdout)["results"][0]["best"] is None


def test_a_plan_without_an_answer_exits_with_three(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "plan", library.answer("plan", replace(samples.planned(), best=None, front=())))
    result = run("plan", "acme/small", "--chip", "toy:4", "--tpot", "1us")
    assert result.exit_code == 3
    assert "nothing tried meets the goal" in result.stdout


def test_plan(library: Library) -> None:
    result = run("plan", "acme/small", "--chip", "toy:4", "--tpot", "25ms", "--prefill", "2s")
    assert result.exit_code == 0
    assert "most tokens/s with TPOT at most 25ms and prefill at most 2s" in result.stdout
    args, _ = library.asked["plan"]
    assert args[:7] == ("acme/small", "toy:4", 1024, 1024, 0.025, 2.0, None)


def test_sweep_separates_ranges_from_settings(library: Library) -> None:
    result = run(
        "sweep", "acme/small", "--set", "hbm.bandwidth=1TB/s..8TB/s", "--set", "clock=2GHz", "--steps", "4"
    )
    assert result.exit_code == 0
    args, options = library.asked["sweep"]
    assert args[2] == {"hbm.bandwidth": "1TB/s..8TB/s"}
    assert args[6] == 4
    assert options["settings"] == {"clock": "2GHz"}


def test_explain(library: Library) -> None:
    result = run("explain", "acme/small", "--concurrency", "64")
    assert result.exit_code == 0
    assert "10 % better hbm.bandwidth changes TPOT by -6.2 %." in result.stdout
    assert library.asked["explain"][0][:5] == ("acme/small", "h100", 1024, 1024, 64)


@pytest.mark.parametrize("command", LONG)
def test_json_is_all_of_the_output(library: Library, command: str) -> None:
    result = run(*words_of(command), "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    first = {
        "predict": "deployment",
        "compare": "results",
        "plan": "best",
        "sweep": "fields",
        "explain": "results",
    }[command]
    assert first in document
    if command == "predict":
        assert document["assumptions"][0]["field"] == "clock"


@pytest.mark.parametrize("command", LONG)
def test_html(library: Library, command: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    result = run(*words_of(command), "--json", "--html", str(path))
    assert result.exit_code == 0
    json.loads(result.stdout)
    assert result.stderr == f"wrote {path}\n"
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_html_is_refused_before_the_work(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    missing = tmp_path / "no" / "report.html"
    cases = {
        str(tmp_path): f"error: --html {tmp_path} is a directory: give the name of a file.\n",
        str(missing): f"error: --html {missing} cannot be written: {missing.parent} is no directory.\n",
    }
    for path, message in cases.items():
        result = run("compare", "acme/small", "--chips", "toy:4", "--html", path)
        assert (result.exit_code, result.stderr) == (2, message)

    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(errors.importlib, "import_module", absent)
    result = run("compare", "acme/small", "--chips", "toy:4", "--html", "report.html")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --html needs matplotlib: pip install 'taygeta[plots]'\n",
    )
    assert library.asked == {}


def test_bad_input_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise errors.DoesNotFitError("It needs 141 GB [of memory]; 1 x tiny has 8 GB.")

    monkeypatch.setattr(api, "deploy", refuse)
    result = run("predict", "acme/small")
    assert (result.exit_code, result.stdout, result.stderr) == (
        2,
        "",
        "error: It needs 141 GB [of memory]; 1 x tiny has 8 GB.\n",
    )


def test_a_defect_is_one_sentence_and_a_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(api, "compare", fail)
    result = run("compare", "acme/small", "--chips", "toy:4")
    said = "ZeroDivisionError: division by zero. This is a defect of Taygeta; --debug shows where it is."
    assert (result.exit_code, result.stderr) == (1, f"error: {said}\n")
    assert isinstance(run("--debug", "compare", "m", "--chips", "toy:4").exception, ZeroDivisionError)


def test_an_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "compare", interrupt)
    result = run("compare", "acme/small", "--chips", "toy:4")
    assert (result.exit_code, result.stderr) == (130, "")


def test_show_a_chip_and_a_model() -> None:
    assert "source or reason" in run("show", "h100").stdout
    assert json.loads(run("show", "h100", "--json").stdout)["id"] == "h100"
    assert (
        json.loads(run("show", "h100", "--set", "clock=1GHz", "--json").stdout)["numbers"]["clock"]["nominal"]
        == 1e9
    )
    model = json.loads(run("show", "gpt-oss-120b", "--json").stdout)
    assert model["parameters"] == 116_829_156_672
    assert "GQA 64 heads, 8 KV, 64 wide, window 128, sinks" in run("show", "openai/gpt-oss-120b").stdout


def test_show_an_unpublished_model() -> None:
    result = run("show", "gpt-4")
    assert "openai/gpt-4 is unpublished: its shapes are estimates." in result.stdout
    assert "who estimated it" in result.stdout


def test_show_a_file(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config |= {
        "num_key_value_heads": 4,
        "vocab_size": 100,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    config |= {"hidden_act": "silu", "rms_norm_eps": 1e-6, "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in (tmp_path, tmp_path / "config.json"):
        assert json.loads(run("show", str(name), "--json").stdout)["layers"] == 2
    chip = tmp_path / "mine.toml"
    chip.write_text('id = "mine"\nfamily = "generic-npu"\n')
    result = run("show", str(chip))
    assert result.exit_code == 2
    assert "mine.toml: cores.count is missing" in result.stderr.replace("\n", "")


def test_show_fields() -> None:
    assert "hbm.bandwidth" in run("show", "--fields").stdout
    assert "hbm.bandwidth" in [
        f["field"] for f in json.loads(run("show", "--fields", "--json").stdout)["fields"]
    ]


def test_show_errors() -> None:
    assert run("show").stderr == (
        "error: Show what? Give a chip or a model such as maia-100 or openai/gpt-oss-120b, or --fields.\n"
    )
    assert run("show", "mai-100").stderr == (
        "error: Name 'mai-100' is neither in the catalogue nor a file. Did you mean maia-100?"
        " `taygeta chips` and `taygeta models` list what there is.\n"
    ).replace("Did you mean maia-100?", suggestion(run("show", "mai-100").stderr))


def suggestion(text: str) -> str:
    found = re.search(r"Did you mean [^?]*maia-100[^?]*\?", text)
    assert found, text
    return found[0]


def test_lists() -> None:
    from taygeta.frontend.catalog import model_names
    from taygeta.spec.catalog import chip_names

    assert [c["id"] for c in json.loads(run("chips", "--json").stdout)["chips"]] == list(chip_names())
    assert [m["name"] for m in json.loads(run("models", "--json").stdout)["models"]] == list(model_names())
    assert "maia-100" in run("chips").stdout
    assert "openai/gpt-4 (unpublished)" in run("models").stdout
