"""Text that is executed while the fleet says when it leaves: the model's own words, whoever else is served."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from running import MODEL, Running, chat, events, post, wait_for
from scripted import (
    ASSISTANT,
    CONTEXT,
    END,
    STEP,
    VOCAB,
    Scripted,
    assistant,
    deployed,
    service_of,
    source_of,
    tokenizer,
    words,
)

from taygeta.endpoint.worker import Worker
from taygeta.machine.generate import Sampling, generate
from taygeta.machine.session import Session, checkpoint_weights

QUESTION = "How much memory does an H100 have?"
QUESTIONS = (QUESTION, "What is a KV cache?", "Which has more memory, H100 or Maia 100?")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as found:
        yield found


@pytest.fixture(scope="module")
def running(worker: Worker) -> Iterator[Running]:
    """The assistant on Maia 100, before a fleet of steps of 10 ms that goes as fast as its text."""
    found, said = worker.call(assistant)
    with Running(service_of(source_of(found, worker, said=said))) as server:
        yield server


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=running.url, api_key="x", max_retries=0, timeout=60) as found:
        yield found


def asked(client: openai.OpenAI, text: str = QUESTION, **more: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}], **more)


def prompt_of(text: str) -> list[int]:
    message = tokenizer().apply_chat_template([{"role": "user", "content": text}])
    return tokenizer().encode(message, special=False)


def executed(text: str, count: int = 60, how: Sampling | None = None) -> list[int]:
    """Tokens of the assistant from a session of its own."""
    d = deployed("maia-100")
    session = Session(d, checkpoint_weights(ASSISTANT, d), CONTEXT)
    prompt = prompt_of(text)
    return [t for (t,) in generate(session, [prompt], count, how, tokenizer().eos) if t is not None]


def test_greedy_text_is_that_of_the_machine(client: openai.OpenAI) -> None:
    for text in QUESTIONS[:2]:
        tokens = executed(text)
        found = asked(client, text)
        assert found.choices[0].message.content == tokenizer().decode(tokens)
        assert found.choices[0].finish_reason == "stop"
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(prompt_of(text)), len(tokens))
    said = client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=3).choices[0]
    assert (said.text, said.finish_reason) == (tokenizer().decode(executed(QUESTION)[:3]), "length")
    ids = client.completions.create(model=MODEL, prompt=prompt_of(QUESTION), max_tokens=3).choices[0]
    assert ids.text == said.text
    drawn = executed(QUESTION, 8, Sampling(2.0, seed=7 * 128))
    found = asked(client, temperature=2.0, seed=7, max_tokens=8)
    assert found.choices[0].message.content == tokenizer().decode(drawn)


@pytest.mark.torch
def test_a_chip_without_tiles_says_what_transformers_says(worker: Worker) -> None:
    """In fp32, whatever its formats: and says so."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(ASSISTANT, dtype=torch.float32)
    found, said = worker.call(lambda: assistant("h100"))
    assert said == "text computed in fp32, not in the chip's formats (h100 does not state its tiles)"
    with Running(service_of(source_of(found, worker, said=said))) as server, openai.OpenAI(
        base_url=server.url, api_key="x"
    ) as client:  # fmt: skip
        assert client.models.retrieve(MODEL).model_extra == {"max_model_len": CONTEXT, "text": said}
        for text in QUESTIONS:
            prompt = torch.tensor([prompt_of(text)])
            with torch.no_grad():
                out = model.generate(prompt, max_new_tokens=60, do_sample=False)[0, prompt.shape[1] :].tolist()
                logits = model(prompt).logits[0, -1]
            answer = asked(client, text, logprobs=True)
            assert answer.choices[0].message.content == tokenizer().decode(out)
            first = answer.choices[0].logprobs.content[0].logprob
            assert first == pytest.approx(float(torch.log_softmax(logits, -1)[out[0]]), abs=1e-4)


def test_an_answer_depends_on_nobody_else(client: openai.OpenAI) -> None:
    """Five at once, of prompts of different lengths, are to the last probability what each is alone."""
    asks = [(text, seed) for seed, text in enumerate((*QUESTIONS, QUESTION, "Hi. " * 20))]

    def one(ask: tuple[str, int], into: dict[int, Any]) -> None:
        found = asked(client, ask[0], temperature=1.5, seed=ask[1], max_tokens=12, logprobs=True, top_logprobs=3)
        into[ask[1]] = found.choices[0].model_dump()

    alone: dict[int, Any] = {}
    together: dict[int, Any] = {}
    for ask in asks:
        one(ask, alone)
    threads = [threading.Thread(target=one, args=(ask, together)) for ask in reversed(asks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == alone


def test_several_answers_differ_and_repeat(client: openai.OpenAI) -> None:
    def said(**more: Any) -> list[str]:
        return [c.message.content for c in asked(client, n=2, temperature=2.0, max_tokens=8, **more).choices]

    first = said(seed=1)
    assert first[0] != first[1]
    assert said(seed=1) == first != said(seed=2)
    greedy = [c.message.content for c in asked(client, n=2, temperature=0, max_tokens=8).choices]
    assert greedy[0] == greedy[1]


def test_probabilities_are_those_of_the_logits(client: openai.OpenAI) -> None:
    d = deployed("maia-100")
    session = Session(d, checkpoint_weights(ASSISTANT, d), CONTEXT)
    logits = session.extend([prompt_of(QUESTION)])[0].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    found = asked(client, logprobs=True, top_logprobs=20, max_tokens=5)
    content = found.choices[0].logprobs.content
    assert (len(content), [len(c.top_logprobs) for c in content]) == (5, [20] * 5)
    assert "".join(c.token for c in content) == found.choices[0].message.content
    for entry in content:
        likely = [t.logprob for t in entry.top_logprobs]
        assert likely == sorted(likely, reverse=True)
        assert entry.logprob == likely[0]  # greedy
        assert bytes(entry.bytes or ()).decode() == entry.token
        assert sum(map(math.exp, likely)) <= 1.0 + 1e-9
    best = np.argsort(-expected)[:20]
    assert [t.logprob for t in content[0].top_logprobs] == pytest.approx(expected[best].tolist())
    text = client.completions.create(model=MODEL, prompt=QUESTION, logprobs=2, max_tokens=5).choices[0]
    chances = text.logprobs
    assert chances is not None
    assert chances.tokens == [c.token for c in content]
    assert chances.token_logprobs == pytest.approx([c.logprob for c in content])
    assert chances.text_offset == [len("".join(chances.tokens[:i])) for i in range(5)]  # type: ignore[index]
    assert [len(t) for t in chances.top_logprobs or ()] == [2] * 5
    pieces = list(client.completions.create(model=MODEL, prompt=QUESTION, logprobs=0, max_tokens=5, stream=True))
    streamed = [p.choices[0].logprobs for p in pieces]
    assert [o for p in streamed if p for o in p.text_offset or ()] == chances.text_offset
    assert [x for p in streamed if p for x in p.token_logprobs or ()] == chances.token_logprobs
    assert asked(client, max_tokens=2).choices[0].logprobs is None


def test_the_fleet_waits_for_the_text_to_know_where_it_ends(worker: Worker) -> None:
    """A script of 5 tokens and its end are 6 steps of 10 ms, though 200 tokens were allowed; then the next comes."""
    script = words("one two three")[:5]
    with Running(service_of(source_of(Scripted(script, delay=0.02), worker))) as running, running.client() as client:
        for number in (1, 2):
            found = client.post(
                "/v1/chat/completions", json=chat(stream=True, max_tokens=200), headers={"x-taygeta-times": "1"}
            )
            *said, _ = events(found.text)
            arrived = float(found.headers["x-taygeta-arrived"])
            assert [e["taygeta"]["at"] - arrived for e in said] == pytest.approx([STEP * i for i in range(1, 7)])
            assert said[-1]["choices"][0]["finish_reason"] == "stop"
            metrics = running.service.metrics
            assert (metrics.generation_tokens, metrics.e2e.sum) == (6 * number, pytest.approx(6 * STEP * number))
            assert running.service.live.use().running == 0
        assert running.service.now() == pytest.approx(12 * STEP)


def test_text_that_comes_late_is_counted_late_and_holds_nobody_up(worker: Worker) -> None:
    """At the speed of life a token that takes 60 ms leaves 50 ms late, the second 100; health answers meanwhile."""
    served = service_of(source_of(Scripted(words("one two three")[:5], delay=0.06), worker), speed=1.0)
    with Running(served) as running, running.client() as client:
        waits: list[float] = []
        done = threading.Event()

        def look() -> None:
            with running.client() as other:
                while not done.is_set():
                    began = time.monotonic()
                    assert other.get("/health").status_code == 200
                    waits.append(time.monotonic() - began)
                    time.sleep(0.01)

        looker = threading.Thread(target=look)
        looker.start()
        found = client.post("/v1/chat/completions", json=chat(stream=True, max_tokens=200))
        done.set()
        looker.join()
        assert len(events(found.text)) == 7
        assert (served.metrics.lag.seen, served.metrics.lag.late) == (6, 6)
        assert served.metrics.lag.largest(time.monotonic()) >= 6 * 0.05
        assert len(waits) > 6


def test_letters_of_several_tokens_stay_whole(worker: Worker) -> None:
    text = "na\u00efve \u20ac \U0001f600 ok"
    script = words(text)
    with Running(service_of(source_of(Scripted(script), worker))) as running, running.client() as client:
        found = client.post("/v1/chat/completions", json=chat(stream=True, logprobs=True, max_tokens=99))
        *said, _ = events(found.text)
        pieces = [e["choices"][0]["delta"]["content"] for e in said]
        assert "".join(pieces) == text
        assert all("\ufffd" not in piece for piece in pieces)
        assert sum(len(e["choices"][0]["logprobs"]["content"]) for e in said) == len(script) + 1  # the end is one
        cut = client.post("/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 3})
        assert cut.json()["choices"][0]["text"] == "na\ufffd"  # half a letter, at the limit


def test_a_stop_ends_it_and_least_and_endless_go_on(worker: Worker) -> None:
    with Running(service_of(source_of(Scripted(words("one two three")), worker))) as running:
        client = openai.OpenAI(base_url=running.url, api_key="x", max_retries=0)
        found = client.completions.create(model=MODEL, prompt="x", stop="two")
        assert (found.choices[0].text, found.choices[0].finish_reason) == ("one ", "stop")
        on = client.completions.create(model=MODEL, prompt="x", max_tokens=9, extra_body={"ignore_eos": True})
        assert on.usage is not None
        assert (on.usage.completion_tokens, on.choices[0].finish_reason) == (9, "length")
        more = client.completions.create(model=MODEL, prompt="x", max_tokens=20, extra_body={"min_tokens": 8})
        assert more.usage is not None
        assert more.usage.completion_tokens == 9  # what it would have ended with could not be drawn before the 9th
        client.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_closes_what_it_asked_for(stream: bool) -> None:
    gate = threading.Semaphore(0)
    with Worker() as worker:
        with Running(service_of(source_of(Scripted(words("one two"), gate), worker))) as running:
            connection = running.raw()
            connection.sendall(post(chat(stream=stream, max_tokens=100, ignore_eos=True)))
            wait_for(lambda: worker.held > 0)
            gate.release(3)
            connection.close()
            wait_for(lambda: not running.service.streams)
            gate.release(1)  # the token that it was at
            wait_for(lambda: worker.held == 0)
            assert running.service.live.use().running == 0
            assert running.service.metrics.finished["abort"] == 1
            gate.release(100)
            with running.client() as client:
                assert client.post("/v1/chat/completions", json=chat(max_tokens=2)).status_code == 200
        gate.release(1000)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (ValueError("secret"), "This is a defect of Taygeta; the server's log says where it is."),
        (None, "The logits are not numbers: a value left the range of the formats; wider weights, activations or KV"
         " cache would hold it."),
    ],
)  # fmt: skip
def test_what_goes_wrong_reaches_the_client(worker: Worker, wrong: Exception | None, message: str) -> None:
    class Broken(Scripted):
        def begin(self, tokens: int):
            extend = super().begin(tokens)
            return lambda new: extend(new) * (np.nan if wrong is None else 1.0)

    found = Broken([] if wrong else words("one"), wrong=wrong)
    with Running(service_of(source_of(found, worker))) as running, running.client() as client:
        answer = client.post("/v1/chat/completions", json=chat())
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "execution_failed")
        assert answer.json()["error"]["message"] == message
        streamed = client.post("/v1/chat/completions", json=chat(stream=True))
        *_, failed, done = events(streamed.text)
        assert (failed["error"]["message"], done) == (message, "[DONE]")
        assert "secret" not in answer.text + streamed.text
        wait_for(lambda: not running.service.streams and worker.held == 0)
        assert running.service.live.use().running == 0
        running.service.source = source_of(Scripted(words("one")), worker)
        assert client.post("/v1/chat/completions", json=chat()).json()["choices"][0]["message"]["content"] == "one"


def test_answers_that_find_no_room_wait_their_turn() -> None:
    """Each may have 50 bytes and the prompt's; there is room for two."""
    found = Scripted(words("one two"))
    with Worker(room=130) as worker, Running(service_of(source_of(found, worker))) as running:
        most: list[int] = []
        real = Scripted.begin

        def begin(tokens: int):
            most.append(worker.held)
            return real(found, tokens)

        found.begin = begin  # type: ignore[method-assign]
        with running.client() as client:
            answer = client.post("/v1/chat/completions", json=chat(n=6, max_tokens=50))
        assert [c["message"]["content"] for c in answer.json()["choices"]] == ["one two"] * 6
        assert (len(most), max(most)) == (6, 2 * (50 + len(prompt_of("one two three"))))


def test_a_stop_of_the_server_ends_the_worker_and_what_waits() -> None:
    gate = threading.Semaphore(0)
    worker = Worker()
    with worker, Running(service_of(source_of(Scripted(words("one"), gate), worker), grace=0.2)) as running:
        connection = running.raw()
        connection.sendall(post(chat(stream=True)))
        wait_for(lambda: worker.held > 0)
        running.stop()
        text = b""
        while part := connection.recv(1 << 16):
            text += part
        connection.close()
        assert b"The server has stopped." in text
        assert text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        gate.release(10)
    assert not worker.alive


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("chat/completions", {"messages": [{"role": "system", "content": "x"}]},
         "a conversation must have a message of the user"),
        ("chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}, "half of a surrogate pair"),
        ("completions", {"prompt": [VOCAB]}, f"Token {VOCAB} is not in the vocabulary of 3,072 tokens."),
        ("completions", {"prompt": "x", "logit_bias": {"5000": 1}}, "Token of logit_bias, 5000 is not in the vocab"),
        ("completions", {"prompt": "x", "max_tokens": CONTEXT}, "maximum context length is 256 tokens"),
        ("completions", {"prompt": "x " * 9000}, "maximum context length is 256 tokens"),
    ],
)  # fmt: skip
def test_what_is_refused(running: Running, path: str, body: dict[str, Any], message: str) -> None:
    with running.client() as client:
        text = json.dumps({"model": MODEL, **body})
        found = client.post(f"/v1/{path}", content=text, headers={"Content-Type": "application/json"})
    assert found.status_code == 400
    assert message in found.json()["error"]["message"]


def test_serve_alone() -> None:
    """No model, no download: it says what it serves, and answers OpenAI's client; a signal ends it in good order."""
    command = [sys.executable, "-m", "taygeta.app.cli", "serve", "--port", "0", "--beside", "h100", "--speed", "max"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(3)]
    url = lines[0].rpartition(": ")[2].partition(" ")[0]
    said = "text executed in the chip's formats (weights bf16; activations bf16; KV cache bf16)"
    plain = "text computed in fp32, not in the chip's formats (h100 does not state its tiles)"
    assert lines == [
        f"assistant on 1 x maia-100, as fast as possible, {said}: {url} (Ctrl-C stops)\n",
        f"assistant@h100 on 1 x h100, as fast as possible, {plain}: {url} (Ctrl-C stops)\n",
        f"A page to talk to it: {url.removesuffix('v1')}\n",
    ]
    with openai.OpenAI(base_url=url, api_key="x", timeout=60) as client:
        assert [m.id for m in client.models.list()] == ["assistant", "assistant@h100"]
        for model in ("assistant", "assistant@h100"):
            found = client.chat.completions.create(model=model, messages=[{"role": "user", "content": QUESTION}])
            assert found.choices[0].message.content == "H100 has 80 GiB of memory."
    process.terminate()
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


def test_the_end_is_one_token() -> None:
    assert tokenizer().eos == (END,)
