"""The operations through OpenAI's own client, and what goes over the wire."""

from __future__ import annotations

import select
from collections.abc import Iterator

import openai
import pytest
from running import CONTEXT, KEY, MODEL, Running, chat, events, post, service, wait_for
from small_fleets import bounds

from taygeta.endpoint.synthetic import split


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with Running(service(), KEY, "another-key-for-tests") as found:
        yield found


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=running.url, api_key=KEY, max_retries=0, timeout=20) as found:
        yield found


def user(text: str) -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_models(client: openai.OpenAI) -> None:
    assert [(m.id, m.owned_by) for m in client.models.list()] == [(MODEL, "taygeta")]
    assert client.models.retrieve(MODEL).model_extra == {
        "max_model_len": CONTEXT, "text": "synthetic text",
    }  # fmt: skip
    assert client.models.retrieve("small").id == "small"
    with pytest.raises(openai.NotFoundError, match="There is no model 'large' here; acme/small is"):
        client.models.retrieve("large")


def test_a_conversation(client: openai.OpenAI) -> None:
    """3 words and their role cost 4 tokens and 3 signs, and the answer that they invite 3: OpenAI's rule."""
    found = client.chat.completions.create(model=MODEL, messages=user("one two three"))
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (10, 7, 17)
    choice = found.choices[0]
    assert (found.object, found.model, choice.finish_reason, choice.message.role) == (
        "chat.completion", MODEL, "stop", "assistant",
    )  # fmt: skip
    assert len(split(choice.message.content or "")) == 7
    assert (choice.message.content or "").endswith(".")


def test_a_completion_of_texts_and_of_tokens(client: openai.OpenAI) -> None:
    found = client.completions.create(model="small", prompt="one two", max_tokens=3)
    assert found.usage is not None
    assert (found.object, found.usage.prompt_tokens, found.choices[0].finish_reason) == ("text_completion", 2, "length")
    assert len(split(found.choices[0].text)) == 3
    for prompt, tokens in (([1, 2, 3], 3), ([[1, 2], [3]], 3), (["a b", "c"], 3), ("", 1)):
        found = client.completions.create(model=MODEL, prompt=prompt, max_tokens=2, n=2)  # type: ignore[arg-type]
        prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
        assert found.usage is not None
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (tokens, 4 * prompts)
        assert [c.index for c in found.choices] == list(range(2 * prompts))


def test_tokens_come_one_by_one(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=user("hi"), max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    found = list(stream)
    assert [len(c.choices) for c in found] == [1, 1, 1, 1, 1, 0]
    assert [c.choices[0].finish_reason for c in found[:-1]] == [None] * 4 + ["length"]
    assert [c.choices[0].delta.role for c in found[:-1]] == ["assistant"] + [None] * 4
    assert all(len(split(c.choices[0].delta.content or "")) == 1 for c in found[:-1])
    assert [c.usage is None for c in found] == [True] * 5 + [False]
    assert (found[-1].usage and found[-1].usage.completion_tokens) == 5


def test_usage_in_every_chunk(client: openai.OpenAI) -> None:
    more = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.completions.create(
        model=MODEL, prompt="a b c", max_tokens=3, stream=True, extra_body={"stream_options": more}
    )
    assert [c.usage.completion_tokens for c in stream if c.usage] == [1, 2, 3, 3]


def test_the_wire(running: Running) -> None:
    with running.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        found = client.post("/v1/chat/completions", json=chat(stream=True, max_tokens=2))
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert found.text.endswith("data: [DONE]\n\n")
    assert float(found.headers["x-taygeta-arrived"]) >= 0.0
    assert [e if isinstance(e, str) else e["object"] for e in events(found.text)] == ["chat.completion.chunk"] * 2 + [
        "[DONE]"
    ]


def test_answers_are_drawn_from_the_seed(client: openai.OpenAI) -> None:
    def said(**more) -> list[str | None]:
        found = client.chat.completions.create(model=MODEL, messages=user("hi"), **more)
        return [c.message.content for c in found.choices]

    assert said(seed=1) == said(seed=1)
    assert said(seed=1) != said(seed=2)
    assert len(set(said(n=3, seed=1))) == 3
    assert said() != said()


def test_several_answers_in_one_stream(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=user("hi"), n=3, seed=5, max_tokens=4)
    texts, ends = ["", "", ""], []
    for chunk in client.chat.completions.create(
        model=MODEL, messages=user("hi"), n=3, seed=5, max_tokens=4, stream=True
    ):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.finish_reason] if choice.finish_reason else []
    assert (texts, ends) == ([c.message.content for c in whole.choices], ["length"] * 3)


def test_lengths(client: openai.OpenAI) -> None:
    def made(**more) -> tuple[int, str]:
        found = client.completions.create(model=MODEL, prompt="a", extra_body=more)
        assert found.usage is not None
        return found.usage.completion_tokens, found.choices[0].finish_reason

    assert made() == (7, "stop")
    assert made(max_tokens=7) == (7, "length")
    assert made(max_tokens=8) == (7, "stop")
    assert made(max_tokens=20, ignore_eos=True) == (20, "length")
    assert made(max_tokens=20, min_tokens=12) == (12, "stop")
    found = client.chat.completions.create(model=MODEL, messages=user("a"), max_completion_tokens=2, max_tokens=9)
    assert (found.usage and found.usage.completion_tokens) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_ends_an_answer_before_it(client: openai.OpenAI, running: Running, stream: bool) -> None:
    whole = client.completions.create(model=MODEL, prompt="a", seed=9, max_tokens=40, extra_body={"ignore_eos": True})
    words = whole.choices[0].text.split(" ")
    stop = " ".join(words[10:12])  # over two tokens
    more = {"ignore_eos": True, "stop": ["never said", stop]}
    found = client.completions.create(model=MODEL, prompt="a", seed=9, max_tokens=40, extra_body=more, stream=stream)
    parts = [c.choices[0] for c in found] if stream else [found.choices[0]]  # type: ignore[union-attr]
    text = "".join(p.text for p in parts)
    assert text == whole.choices[0].text[: whole.choices[0].text.index(stop)]
    assert parts[-1].finish_reason == "stop"
    assert running.service.live.use().running == 0
    ignored = {"ignore_eos": True, "stop": stop, "min_tokens": 40}
    late = client.completions.create(model=MODEL, prompt="a", seed=9, max_tokens=40, extra_body=ignored)
    assert late.choices[0].text == whole.choices[0].text


def test_lower_priority_goes_first() -> None:
    """One at a time: of three that wait, the one with the lowest number is next."""
    with Running(service(speed=1.0, step=0.1, limits=bounds(sequence_limit=1))) as running:
        asked = {}
        for count, priority in enumerate((0, 5, -5), start=1):
            connection = running.raw()
            connection.sendall(post(chat(max_tokens=2, priority=priority)))
            asked[connection] = priority
            wait_for(lambda count=count: running.service.live.submitted == count)
        order = []
        while asked:
            for connection in select.select(list(asked), [], [], 20)[0]:
                order.append(asked.pop(connection))
                connection.close()
    assert order == [0, -5, 5]


def test_health_metrics_and_document_need_no_key(running: Running) -> None:
    with running.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
        document = client.get("/openapi.json").json()
        assert client.get("/docs").status_code == 404  # its assets would come from elsewhere
    paths = ["/health", "/metrics", "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}"]
    assert sorted(document["paths"]) == paths
    asked = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert asked["model"]["enum"] == [MODEL, "small"]


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer wrong", f"Basic {KEY}", "Bearer \u00e9", f"Bearer {KEY}x"])
def test_a_wrong_key(running: Running, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    with running.client() as client:
        found = client.get("/v1/models", headers=headers)
    assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer")
    assert found.json()["error"] == {
        "message": "The API key is missing or wrong: send Authorization: Bearer KEY.",
        "type": "authentication_error", "param": None, "code": "invalid_api_key",
    }  # fmt: skip


def test_each_key_opens(running: Running) -> None:
    with running.client() as client:
        for key in (KEY, "another-key-for-tests"):
            assert client.get("/v1/models", headers={"Authorization": f"bearer {key}"}).status_code == 200
