"""What is behind the page: fleets and their state, further ones at run time, results, the catalogue, its files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from page_server import NAME, PageServer
from running import Running, events, service

from taygeta.base.errors import InputError
from taygeta.endpoint.beside import MAX_CHIPS, check_text
from taygeta.endpoint.fleets import MAX_FLEETS
from taygeta.endpoint.page import results, routes
from taygeta.endpoint.page.state import batch_of
from taygeta.report.html import page as report_page
from taygeta.serving.live import Step
from taygeta.spec.deployment import Batch

FREE = float("inf")
H100 = "Llama-3.1-8B@h100"


@pytest.fixture(scope="module")
def running() -> Iterator[PageServer]:
    with PageServer(osl=8, speed=FREE, others=["h100"]) as found:
        yield found


@pytest.fixture
def client(running: PageServer) -> Iterator[httpx.Client]:
    with running.client() as found:
        yield found


def ask(client: httpx.Client, model: str, **headers: str) -> list[Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "one two"}], "stream": True, "seed": 1}
    answer = client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return [float(answer.headers["x-taygeta-arrived"]), *events(answer.text)]


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


def test_each_fleet_is_a_model_of_its_own(client: httpx.Client) -> None:
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == [NAME, H100]
    assert client.get(f"/v1/models/{H100}").json()["id"] == H100
    slow, fast = ask(client, NAME), ask(client, H100)
    assert [e["model"] for e in (slow[1], fast[1])] == [NAME, H100]
    texts = ["".join(e["choices"][0]["delta"]["content"] for e in found[1:-1]) for found in (slow, fast)]
    assert texts[0] == texts[1]  # one seed, one text, whoever makes it
    message = refused(client.post("/v1/completions", json={"model": "no", "prompt": "x"}), 404)
    assert message == f"There is no model 'no' here; {NAME}, {H100} are."
    document = client.get("/openapi.json").json()
    assert document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == [
        NAME, "llama-3.1-8b", H100,
    ]  # fmt: skip
    assert not [path for path in document["paths"] if "taygeta" in path or path == "/"]


def test_events_say_their_time_where_it_is_asked(client: httpx.Client) -> None:
    assert all("taygeta" not in event for event in ask(client, NAME)[1:-1])
    arrived, *found, done = ask(client, NAME, **{"X-Taygeta-Times": "1"})
    times = [event["taygeta"]["at"] for event in found]
    gaps = [b - a for a, b in pairwise(times)]
    assert done == "[DONE]"
    assert len(gaps) == 7
    assert times[0] > arrived
    assert min(gaps) >= 0.0  # an engine may hold the first ones back with the first of all
    assert 0.0083 < max(gaps) < 0.040  # 15 GB of weights at 1.8 TB/s are 8.3 ms


def test_metrics_of_all_fleets_say_each_name_once(client: httpx.Client) -> None:
    text = client.get("/metrics").text
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(names) == len(set(names)) > 15
    for name in (NAME, H100):
        assert text.count(f'vllm:num_requests_running{{model_name="{name}"}} 0') == 1
    blocks = re.split(r"^# HELP (\S+) .*\n# TYPE .*\n", text, flags=re.MULTILINE)[1:]
    for name, lines in zip(blocks[::2], blocks[1::2], strict=True):  # samples stand with their own name
        assert all(line.startswith(name) for line in lines.splitlines()), name
    assert text.endswith("\n")


def test_the_state_of_a_fleet(client: httpx.Client) -> None:
    """What the parts of a step leave of it is the host's, and all together are the step."""
    ask(client, NAME)
    said = client.get("/v1/taygeta/fleets").json()
    assert (said["most"], said["served"]) == (MAX_FLEETS, "llama-3.1-8b")
    fleet = said["fleets"][0]
    assert (fleet["name"], fleet["chips"], fleet["weights"]) == (NAME, "1 × Microsoft Maia 100", "bf16")
    assert (fleet["running"], fleet["waiting"], fleet["speed"]) == (0, 0, None)
    assert fleet["lines"][0] == "tp=1, engine vllm"
    step = fleet["step"]
    assert (step["decodes"], step["prompts"], step["prompt_tokens"]) == (1, 0, 0)
    assert 9 <= step["context"] <= 20  # 2 words and 7 signs of the conversation, then the answer
    parts = sum(part["seconds"] for part in step["parts"])
    assert parts + step["host"] == pytest.approx(step["seconds"], rel=1e-9)
    assert step["host"] > 0.0
    assert [engine["name"] for engine in step["engines"]] == ["tensor", "memory", "on_chip", "vector", "link", "fixed"]
    memory = step["engines"][1]["seconds"]
    assert 15.0e9 / 1.8e12 < memory < step["seconds"]  # the weights, all but the embedding, at the full bandwidth


def test_the_batch_of_a_step() -> None:
    assert batch_of(Step(0, 1.0, 0.1, 3, 20.4, ((5, 0), (2, 8)))) == (
        Batch.decode(3, 20) + Batch.prefill(1, 5) + Batch.prefill(1, 2, 8)
    )
    assert batch_of(Step(0, 1.0, 0.1, 0, 0.0, ((5, 0),))) == Batch.prefill(1, 5)


def test_the_latest_step_is_the_one_that_began_last() -> None:
    """Steps of 10 ms: prompts of 4 and 2 tokens, then both decode with 4 and 2 tokens in the cache."""
    live = service(step=0.01).live
    assert live.latest_step() is None
    live.submit(1.0, 4, 3)
    live.submit(1.0, 2, 3)
    live.advance_until(1.005)
    first = live.latest_step()
    assert first is not None
    assert (first.start, round(first.seconds, 9)) == (1.0, 0.01)
    live.advance_until(1.015)
    second = live.latest_step()
    assert second is not None
    assert sum(new for new, _ in (*first.pieces, *second.pieces)) == 6
    live.advance_until(10.0)
    last = live.latest_step()  # it stays when nothing runs any more
    assert last is not None
    assert (last.pieces, last.decodes) in (((), 1), ((), 2))
    assert last.start > second.start


def test_fleets_come_at_run_time_and_no_more_than_there_is_room_for() -> None:
    with PageServer(osl=4, speed=FREE) as running, running.client() as client:
        name = "Llama-3.1-8B@"
        wanted = [
            ("h100", f"{name}h100"), ("h100:2", f"{name}h100:2"), ("h100:2,tp=1", f"{name}h100:2,tp=1"),
            ("h100,weights=fp8", f"{name}h100,weights=fp8"), ("b200", f"{name}b200"), ("b200:2", f"{name}b200:2"),
            ("maia-100:1", f"{name}maia-100"),
        ]  # fmt: skip
        for number, (text, expected) in enumerate(wanted):
            added = client.post("/v1/taygeta/fleets", json={"fleet": text})
            assert (added.status_code, added.json()["name"]) == (201, expected)
            assert len(ask(client, expected)) == 6  # its arrival, 4 tokens, the end
            if number == 3:
                again = client.post("/v1/taygeta/fleets", json={"fleet": text})
                assert refused(again, 409) == f"{expected} is served already."
        assert len(running.fleets) == MAX_FLEETS
        message = refused(client.post("/v1/taygeta/fleets", json={"fleet": "l4"}), 409)
        assert message == f"A server holds at most {MAX_FLEETS} fleets."
        weights = [fleet["weights"] for fleet in client.get("/v1/taygeta/fleets").json()["fleets"]]
        assert weights == ["bf16", "bf16", "bf16", "bf16", "fp8", "bf16", "bf16", "bf16"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/etc/passwd", "There is no chip '/etc/passwd' in the catalogue: write CHIP:COUNT such as h100:8."),
        ("tests/chips/lab.toml:8",
         "There is no chip 'tests/chips/lab.toml' in the catalogue: write CHIP:COUNT such as h100:8."),
        ("h100:1025", f"A fleet has at most {MAX_CHIPS:,} chips here, not 1,025."),
        ("h100,replicas=16384", f"A fleet has at most {MAX_CHIPS:,} chips here, not 16,384."),
        ("h100,dp=64,tp=64", f"A fleet has at most {MAX_CHIPS:,} chips here, not 4,096."),
        ("h100," + "tp=1," * 40 + "pp=1", "A fleet is written in at most 200 signs, not 209."),
        ("h100:8,colour=red",
         "A pool is written CHIP:COUNT,NAME=VALUE,... such as h100:8,tp=4,replicas=2, with the names replicas, tp, pp,"
         " ep, dp, cp, sequence, weights, activations, kv, engine; not 'h100:8,colour=red'."),
    ],
)  # fmt: skip
def test_fleets_that_a_client_may_not_ask_for(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        check_text(text)
    assert str(error.value) == message


def test_refusals_over_http(client: httpx.Client) -> None:
    def add(**more: Any) -> httpx.Response:
        return client.post("/v1/taygeta/fleets", **more)

    assert "needs" in refused(add(json={"fleet": "groq-lpu-v1:1"}), 400)  # 16 GB into 230 MB
    assert refused(add(json={"fleet": "h100:8,tp=7"}), 400)
    assert refused(add(json={"fleet": 8}), 400) == "fleet: input should be a valid string."
    assert refused(add(json={"chips": "h100"}), 400).startswith("Unrecognized request argument")
    assert refused(add(json={"fleet": "h100"}, headers={"Origin": "https://elsewhere.example"}), 403)
    assert refused(add(json={"fleet": "h100"}, headers={"Host": "elsewhere.example"}), 403) == (
        "'elsewhere.example' is no name of this machine."
    )
    plain = add(content=b'{"fleet": "h100:2"}', headers={"Content-Type": "text/plain"})
    assert plain.status_code == 400  # what another site could send without asking first
    for path in ("compare", "simulate"):
        body = {"model": NAME, "chips": ["h100"]} if path == "compare" else {"model": NAME, "fleet": "h100"}
        assert refused(client.post(f"/v1/taygeta/{path}", json=body, headers={"Host": "elsewhere.example"}), 403)


def test_a_key_guards_what_is_behind_the_page() -> None:
    with PageServer("a-key-for-tests", osl=4, speed=FREE) as running, running.client() as client:
        assert client.get("/").status_code == client.get("/page/main.js").status_code == 200
        for path in ("fleets", "choices", "catalogue", "chips/h100"):
            assert client.get(f"/v1/taygeta/{path}").status_code == 401
        assert client.post("/v1/taygeta/fleets", json={"fleet": "h100"}).status_code == 401
        client.headers["Authorization"] = "Bearer a-key-for-tests"
        assert client.get("/v1/taygeta/fleets").status_code == 200
        elsewhere = {"Host": "chips.example"}  # with a key it may have any name
        assert client.post("/v1/taygeta/fleets", json={"fleet": "h100"}, headers=elsewhere).status_code == 201


def test_files(client: httpx.Client) -> None:
    index = client.get("/")
    policy = index.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"<style|style=|<script>|\son\w+=", index.text)
    for name in re.findall(r'"/page/([^"]+)"', index.text):
        assert client.get(f"/page/{name}").status_code == 200
    for name, body in routes.read_assets().items():
        if name.endswith(".js"):
            for other in re.findall(rb'from "/page/([^"]+)"', body):
                assert other.decode() in routes.read_assets(), name
        assert not re.search(rb"https?://(?!www\.w3\.org)\w", body), name  # nothing from elsewhere
    for path in ("/page/nothing.js", "/page/..%2Froutes.py", "/page/%2e%2e/routes.py", "/page/"):
        assert client.get(path).status_code == 404


def test_without_the_page() -> None:
    with Running(service()) as running, running.client() as client:
        assert client.get("/").status_code == client.get("/v1/taygeta/fleets").status_code == 404


def test_a_comparison(client: httpx.Client) -> None:
    body = {"model": NAME, "chips": ["h100:1", "maia-100:1"], "isl": 100, "osl": 10, "concurrency": 2}
    found = client.post("/v1/taygeta/compare", json=body)
    assert found.status_code == 200, found.text
    view = found.json()["view"]
    assert view["title"] == f"{NAME} on 2 kinds of chip"
    assert {row[0]["text"] for row in view["grids"][0]["rows"]} == {"h100:1", "maia-100:1"}
    pictures = found.json()["pictures"]
    assert len(pictures) == 4
    for picture in pictures:
        assert picture["svg"].startswith("<svg stroke-linejoin=")
        assert not re.search(r"style|<script|\son\w+=|https?://(?!www\.w3\.org)", picture["svg"])
        assert "var(--c0)" in picture["svg"]


def test_a_simulation(client: httpx.Client) -> None:
    body = {"model": "llama-3.1-8b", "fleet": "h100:2,tp=1", "isl": 64, "osl": 16, "rate": 50.0, "requests": 40}
    found = client.post("/v1/taygeta/simulate", json=body)
    assert found.status_code == 200, found.text
    assert found.json()["view"]["title"] == f"{NAME} on h100:2"
    assert len(found.json()["pictures"]) == 3


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("compare", {"model": "/etc/passwd", "chips": ["h100"]}, "There is no model '/etc/passwd' in the catalogue."),
        ("compare", {"model": NAME, "chips": ["x"]},
         "There is no chip 'x' in the catalogue: write CHIP:COUNT such as h100:8."),
        ("compare", {"model": NAME, "chips": ["h100"] * 7},
         "chips: list should have at most 6 items after validation, not 7."),
        ("compare", {"model": NAME, "chips": ["h100"], "isl": 1 << 18},
         "isl: input should be less than or equal to 131072."),
        ("simulate", {"model": NAME, "fleet": "h100", "isl": 131072, "osl": 1},
         "isl and osl must be 131,072 tokens together at most, not 131,073."),
        ("simulate", {"model": NAME, "fleet": "h100", "requests": 5001},
         "requests: input should be less than or equal to 5000."),
        ("simulate", {"model": "gpt-4", "fleet": "h100:1025"}, "There is no model 'gpt-4' in the catalogue."),
    ],
)  # fmt: skip
def test_results_that_are_refused(client: httpx.Client, path: str, body: Any, message: str) -> None:
    assert refused(client.post(f"/v1/taygeta/{path}", json=body), 400) == message


def test_the_catalogue(client: httpx.Client) -> None:
    found = client.get("/v1/taygeta/catalogue").json()
    for kind in ("chips", "models"):
        assert len(found[kind]["ids"]) == len(found[kind]["view"]["grids"][0]["rows"]) > 30
    choices = client.get("/v1/taygeta/choices").json()
    assert {"id": "maia-100", "name": "Microsoft Maia 100"} in choices["chips"]
    assert "mxfp4" in choices["formats"]
    chip = client.get("/v1/taygeta/chips/maia-100").json()["view"]
    rows = {row[0]["text"]: row for row in chip["grids"][0]["rows"]}
    assert rows["hbm.bandwidth"][1]["text"] == "1.8 TB/s"
    assert "Hot Chips 2024" in rows["hbm.bandwidth"][2]["text"]
    assert all(row[2]["text"] for row in chip["grids"][0]["rows"])  # every number says where it is from
    assert all(bool(row[1]["below"]) == row[2]["text"].startswith("assumed") for row in chip["grids"][0]["rows"])
    for name in found["models"]["ids"][:3]:
        assert client.get(f"/v1/taygeta/models/{name}").json()["view"]["title"].startswith(name)
    for path in ("chips/nothing", "chips/..%2Flab", "models/a/b", "models//etc/passwd"):
        assert client.get(f"/v1/taygeta/{path}").status_code == 404


def test_every_sheet_can_be_shown() -> None:
    for name in results.catalogue()["chips"]["ids"]:
        assert results.chip_sheet(name) is not None
    for name in results.catalogue()["models"]["ids"]:
        assert results.model_sheet(name) is not None


def test_styles_become_attributes() -> None:
    svg = (
        '<svg viewBox="0 0 1 1"><defs>\n <style type="text/css">*{stroke-linejoin: round}</style>\n</defs>'
        '<path d="M 0 0" style="fill: none; stroke: var(--c0); stroke-width: 0.8"/></svg>'
    )
    assert results.plain_svg(svg) == (
        '<svg stroke-linejoin="round" stroke-linecap="butt" viewBox="0 0 1 1">'
        '<path d="M 0 0" fill="none" stroke="var(--c0)" stroke-width="0.8"/></svg>'
    )


def _palette(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z0-9-]+): ([^;]+);", css))


def test_colours_are_those_of_the_reports_and_can_be_read() -> None:
    """Light and dark; text has a contrast of 4.5 at least (WCAG 2.2, 1.4.3), edges of controls 3 (1.4.11)."""
    from taygeta.report.view import View

    whole = report_page(View("x"))
    light, dark = whole.split("@media (prefers-color-scheme: dark)")[:2]
    own = _palette(routes.read_assets()["style.css"].decode())
    both = {name: re.fullmatch(r"light-dark\((#\w{6}), (#\w{6})\)", value) for name, value in own.items()}
    for place, css in ((1, light), (2, dark)):
        theirs = _palette(css)
        colours = {name: found[place] for name, found in both.items() if found}
        for name in {name for name, value in theirs.items() if value.startswith("#")}:
            assert colours[name] == theirs[name], name
        for text, papers in (("ink", ("paper", "band", "mark")), ("soft", ("paper", "band")), ("main", ("paper",)),
                             ("warn", ("paper", "warn-band", "band")), ("on-main", ("main",))):  # fmt: skip
            for paper in papers:
                assert _contrast(colours[text], colours[paper]) >= 4.5, (place, text, paper)
        assert _contrast(colours["edge"], colours["paper"]) >= 3.0


def _contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)
