"""What clients get, as the OpenAPI document says it; the bodies themselves are made in `reply`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorDetail


class Usage(BaseModel):
    """Tokens of the prompt, once, and of all answers to it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """An answer in a conversation."""

    role: Literal["assistant"]
    content: str
    refusal: None


class TokenChance(BaseModel):
    """A token that could stand at a place. bytes: of its text in UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TokenChance):
    """A token of an answer, and the likeliest ones of its place."""

    top_logprobs: list[TokenChance]


class ChatLogprobs(BaseModel):
    """The probabilities of the tokens of an answer."""

    content: list[ChatToken]
    refusal: None


class ChatChoice(BaseModel):
    """One of n answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextLogprobs(BaseModel):
    """The probabilities of the tokens of a text, and where in it they begin."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class TextChoice(BaseModel):
    """One of n texts."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """The texts that go on from a prompt."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ModelCard(BaseModel):
    """A model that is served. max_model_len: most tokens of a prompt and its answer. text: where its words are from."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    text: str


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["ok"]


_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_STREAM = {"text/event-stream": {"schema": _EVENT}}  # of each event; the last one's data is [DONE]


def answers(statuses: tuple[int, ...], form: type[BaseModel] | None = None, stream: bool = False) -> dict[Any, Any]:
    """Return the responses of an operation for its OpenAPI document: its form, and errors by status."""
    found: dict[Any, Any] = {status: {"model": ErrorBody, "description": _SAID[status]} for status in statuses}
    if form is not None:
        found[200] = {"model": form, "description": "Done"}
    if stream:
        found[200]["content"] = dict(_STREAM)
    return found


_SAID = {
    400: "What is asked cannot be done",
    401: "The API key is missing or wrong",
    404: "There is no such model",
    405: "There is no such method",
    408: "The body did not come in time",
    413: "The body is too large",
    429: "Too many requests are in flight",
    500: "A defect",
    503: "The server is stopping, or has too many connections",
    504: "The answer took too long",
}
