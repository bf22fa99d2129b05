"""taygeta serve: what its options do, what it refuses, and the process from its first line to its stop."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from taygeta.app.cli import app
from taygeta.endpoint import server
from taygeta.endpoint.fleets import Fleets
from taygeta.endpoint.service import Service
from taygeta.frontend.assistant import assistant_directory

MODEL = "gpt2"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - refused


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["serve", MODEL, *words])


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Service, str, list[str]]]:
    found: list[tuple[Service, str, list[str]]] = []

    def note(fleets: Fleets, listening: socket.socket, keys: list[str], parts: list[object]) -> None:
        found.append((fleets.first, server.address_of(listening), keys))
        found.extend((service, "", []) for service in [*fleets][1:])
        assert len(parts) <= 1

    monkeypatch.setattr(server, "serve", note)
    return found


def test_options(served: list[Any], tmp_path: Path) -> None:
    result = run(
        "--chip", "h100:2", "--tp", "1", "--engine-set", "token_budget=512", "--router", "round_robin", "--port", "0",
        "--speed", "10", "--osl", "9", "--lengths", "fixed", "--seed", "3", "--max-model-len", "512", "--api-key",
        "12345678", "--max-requests", "5", "--max-connections", "6", "--max-body", "1 MiB", "--timeout", "1min",
        "--grace", "2s",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    service, address, keys = served[0]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", address)
    said = f"openai-community/gpt2 on 2 x h100, 10 s of the fleet a second: {address} (Ctrl-C stops)\n"
    said += f"A page to talk to it: {address.removesuffix('v1')}\n"
    assert (result.stdout, result.stderr, keys) == ("", said, ["12345678"])
    assert service.names == ("openai-community/gpt2", MODEL)
    assert (service.live.setup.fleet.replicas, service.live.setup.fleet.router) == (2, "round_robin")
    assert service.live.setup.kinds[0].limits.token_budget == 512
    b = service.bounds
    assert (b.context, b.requests, b.connections, b.body, b.answer, b.grace) == (512, 5, 6, 1 << 20, 60.0, 2.0)
    assert service.clock.speed == 10.0
    path = tmp_path / "fleet.toml"
    path.write_text(f'model = "{MODEL}"\nchip = "h100"\n')
    result = CliRunner().invoke(app, ["serve", str(path), "--port", "0", "--speed", "max"])
    assert (result.exit_code, served[1][0].bounds.context) == (0, 1024)
    assert "as fast as possible" in result.stderr


def test_fleets_beside(served: list[Any]) -> None:
    """Formats and engine are for all; how chips are shared, and which fail, is said of the first fleet only."""
    result = run(
        "--chip", "h100:2", "--tp", "2", "--weights", "fp8", "--fail", "0@1s", "--set", "hbm.bandwidth=1TB/s",
        "--beside", "maia-100", "--beside", "b200:4,tp=4,weights=bf16", "--beside", "h100:2", "--port", "0",
        "--no-page",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    lines = [line.partition(", 1 s of")[0] for line in result.stderr.splitlines()]
    assert lines == [
        "openai-community/gpt2 on 2 x h100", "gpt2@maia-100 on 1 x maia-100",
        "gpt2@b200:4,tp=4,weights=bf16 on 4 x b200", "gpt2@h100:2 on 2 x h100",
    ]  # fmt: skip
    assert [service.names for service, _, _ in served] == [
        ("openai-community/gpt2", MODEL, "gpt2@h100"), ("gpt2@maia-100",), ("gpt2@b200:4,tp=4,weights=bf16",),
        ("gpt2@h100:2",),
    ]  # fmt: skip
    fleets = [service.live.setup.fleet for service, _, _ in served]
    deployments = [fleet.pools[0].deployment for fleet in fleets]
    assert [d.parallelism.tp for d in deployments] == [2, 1, 4, 2]
    assert [d.formats.ffn for d in deployments] == ["fp8", "fp8", "bf16", "fp8"]
    assert [len(fleet.failures) for fleet in fleets] == [1, 0, 0, 0]
    assert [d.chip.hbm.bandwidth < 2e12 for d in deployments] == [True, True, False, False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--speed", "fast"], "--speed must be max or a number such as 1, 10 or 0.1, not 'fast'."),
        (["--text", "real"], "--text must be synthetic or executed, not 'real'."),
        (["--text", "executed"],
         "--text executed needs a checkpoint on disk, a directory with config.json, safetensors and tokenizer.json, not"
         " gpt2; without a MODEL the built-in assistant is served."),
        (["--host", EVERYWHERE], "--host 0.0.0.0 can be reached from other machines: give an --api-key."),
        (["--host", EVERYWHERE, "--api-key", "short"],
         "--api-key must have 8 or more letters, digits and signs, and no space."),
        (["--port", "65536"], "--port must be 0 to 65,535, not 65536."),
        (["--max-model-len", "2000"], "--max-model-len must be 2 to the model's context of 1,024 tokens, not 2,000."),
        (["--max-requests", "0"], "--max-requests must be 1 to 65,536, not 0."),
        (["--max-body", "1"], "--max-body = '1' has no unit: write a size such as '80 GiB'."),
        (["--timeout", "0s"], "--timeout must be 1 to 86400 in SI units, not '0s'."),
        (["--tokenizer", "/no/such.json"], "/no/such.json cannot be read: No such file or directory."),
        (["--chip", "h100", "--beside", "h100:8,colour=red"],
         "A pool is written CHIP:COUNT,NAME=VALUE,... such as h100:8,tp=4,replicas=2, with the names replicas, tp, pp,"
         " ep, dp, cp, sequence, weights, activations, kv, engine; not 'h100:8,colour=red'."),
        (["--seed", "-1"], "--seed must be 0 or more, not -1."),
        (["--lengths", "many"],
         "--lengths must be fixed, uniform, uniform:LOW, lognormal or lognormal:SIGMA, not 'many'."),
        (["--chip", "h100", "--fail", "1@1s"], "Replica 1 fails, but the fleet has replicas 0 to 0."),
        (["--router", "math:nothing"],
         "The router math:nothing must be a function of math; there is none of that name."),
    ],
)  # fmt: skip
def test_errors_are_one_sentence(served: list[Any], words: list[str], message: str) -> None:
    result = run("--port", "0", *words)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {message}\n")
    assert not served


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--osl", "9"], "--osl is of synthetic text: leave it out, or say --text synthetic."),
        (["--lengths", "fixed"], "--lengths is of synthetic text: leave it out, or say --text synthetic."),
        (["--tokenizer", "x"], "--tokenizer is of synthetic text: leave it out, or say --text synthetic."),
        (["--max-model-len", "257"], "--max-model-len must be 2 to the model's context of 256 tokens, not 257."),
        (["--kv", "mx9"], "A KV cache in mx9 is not compiled for maia-100: give kv=bf16."),
        (["--pool", "maia-100", "--pool", "h100"],
         "The pools of this fleet compute different values (maia-100 and h100, or other formats or tp), so that its"
         " text has no one source: use --text synthetic, or serve them side by side with --beside."),
    ],
)  # fmt: skip
def test_what_the_assistant_is_not_asked_for(served: list[Any], words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--port", "0", *words])
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {message}\n")
    assert not served


def test_the_source_of_the_text(served: list[Any]) -> None:
    """A directory with weights is executed, unless told otherwise; so is a checkpoint by its path, on any chip."""
    path = str(assistant_directory())
    said = [["serve", path, "--chip", "maia-100", "--port", "0", "--max-model-len", "64"]]
    said += [["serve", path, "--text", "synthetic", "--port", "0", "--osl", "9"]]
    for line in said:
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 0, result.stderr
    assert [(s.source.real, s.bounds.context) for s, _, _ in served] == [(True, 64), (False, 256)]
    assert served[0][0].names == ("assistant", path)


def test_a_port_that_is_taken(served: list[Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("--port", str(port))
    assert result.stderr == f"error: Port {port} of 127.0.0.1 cannot be listened on: Address already in use.\n"


@pytest.mark.parametrize("module", ["fastapi", "uvicorn"])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = run()
    assert (result.exit_code, result.stderr) == (
        2, f"error: taygeta serve needs {module}: pip install 'taygeta[server]'\n",
    )  # fmt: skip


@pytest.mark.parametrize("heavy", ["fastapi", "uvicorn", "httpx", "numpy"])
def test_help_is_light(heavy: str) -> None:
    code = (
        "import sys\nfrom taygeta.app.cli import main\nsys.argv = ['taygeta', 'serve', '--help']\n"
        f"try:\n    main()\nexcept SystemExit:\n    pass\nassert {heavy!r} not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_process() -> None:
    """It says where it is, answers, and a signal stops it in good order."""
    command = [sys.executable, "-m", "taygeta.app.cli", "serve", MODEL, "--port", "0", "--speed", "max"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"(http://127\.0\.0\.1:\d+/v1) \(Ctrl-C stops\)", line)
    assert found, line + process.stderr.read()
    body = json.dumps({"model": MODEL, "prompt": "hello", "max_tokens": 3}).encode()
    ask = urllib.request.Request(f"{found[1]}/completions", body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(ask, timeout=30) as answer:  # noqa: S310
        assert json.load(answer)["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    with urllib.request.urlopen(found[1].removesuffix("v1"), timeout=30) as answer:  # noqa: S310
        assert b"<title>Taygeta</title>" in answer.read()
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=30)
    page = f"A page to talk to it: {found[1].removesuffix('v1')}\n"
    assert (process.returncode, out, said) == (0, "", page)
