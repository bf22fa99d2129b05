"""What clients send: OpenAI's fields, and those that vLLM and its clients add. Types are strict: "5" is no number.

Fields that shape a distribution (temperature, top_p, penalties) are taken and checked for every source; synthetic text
has no distribution that they could shape.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_CHANCES = 20
MAX_BIASES = 1024
INT31 = 1 << 31
INT64 = 9_223_372_036_854_776_000  # 2**63 in the digits of a float: OpenAPI writes bounds so, and readers take them so


def _whole(value: Any) -> Any:
    """Return a whole number as an int: to JSON, 1.0 is one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _all_whole(values: list[float]) -> list[int]:
    found = [int(value) for value in values]
    if found != values:
        raise ValueError("tokens must be whole numbers")
    return found


WHOLE = BeforeValidator(_whole)
Int64 = Annotated[int, Field(ge=-INT64, le=INT64), WHOLE]
Count = Annotated[int, Field(ge=1, lt=INT31), WHOLE]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": INT31 - 1}, "minItems": 1}
Tokens = Annotated[
    list[Annotated[float, Field(ge=0, lt=INT31)]],
    Field(min_length=1),
    AfterValidator(_all_whole),
    WithJsonSchema(_TOKENS),
]
Nothing = Literal[False] | None
Empty = Annotated[list[Any], Field(max_length=0)] | None

Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
Biases = Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)]

UNSUPPORTED = {
    "prompt_logprobs": "prompts are not scored. Leave it out.",
    "tools": "the text here calls no tools. Leave it out.",
    "tool_choice": "the text here calls no tools. Leave it out, or say none.",
    "functions": "the text here calls no functions. Leave it out.",
    "function_call": "the text here calls no functions. Leave it out, or say none.",
    "response_format": 'the text here follows no schema. Leave it out, or say {"type": "text"}.',
    "echo": "a prompt is not repeated. Leave it out.",
    "suffix": "nothing is inserted into a text. Leave it out.",
    "best_of": "every answer that is made is returned: say n instead.",
    "audio": "answers are text. Leave it out.",
    "modalities": 'answers are text. Leave it out, or say ["text"].',
}
"""Fields that are understood and refused, with the reason and what would work."""


class StreamOptions(BaseModel):
    """What a stream says beside its text."""

    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool | None = Field(None, description="A last chunk with the tokens used.")
    continuous_usage_stats: bool | None = Field(None, description="The tokens used so far, in every chunk.")
    include_obfuscation: Nothing = Field(None, description="Chunks are not padded.")


class TextFormat(BaseModel):
    """The format of plain text."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["text"]


class Request(BaseModel):
    """What both kinds of request say."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    model: str
    max_tokens: Count | None = Field(None, description="Most tokens of an answer.")
    min_tokens: Annotated[int, Field(ge=0, lt=INT31), WHOLE] | None = Field(
        None, description="Fewest tokens of an answer."
    )
    ignore_eos: bool | None = Field(None, description="Go on until max_tokens.")
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] | None = None
    seed: Int64 | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-INT31, lt=INT31), WHOLE] | None = Field(
        None, description="Lower goes first, as in vLLM."
    )
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=INT31), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0, le=2.0)] | None = None
    logit_bias: Biases | None = None
    user: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage(self) -> tuple[bool, bool]:
        """Whether a stream says its usage at the end, and in every chunk."""
        options = self.stream_options
        if options is None or not options.include_usage:
            return False, False
        return True, bool(options.continuous_usage_stats)


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation. Other fields of OpenAI's messages are taken and have no effect."""

    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Empty = None

    @property
    def text(self) -> str:
        """All of its text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(Request):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = Field(None, description="Most tokens of an answer; before max_tokens.")
    logprobs: bool | None = Field(None, description="Say the probability of every token; of executed text only.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_CHANCES), WHOLE] | None = None
    tools: Empty = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Empty = None
    function_call: Literal["none"] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer, where it says so."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def chances(self) -> int | None:
        """How many likely tokens are wanted beside each token; None for no probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Request):
    """The body of /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_CHANCES), WHOLE] | None = Field(
        None, description="Say the probability of every token and of so many likely ones; of executed text only."
    )
    prompt_logprobs: None = None
    echo: Nothing = None
    suffix: Literal[""] | None = None
    best_of: Annotated[int, Field(ge=1, le=1), WHOLE] | None = None

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer, where it says so."""
        return self.max_tokens

    @property
    def chances(self) -> int | None:
        """How many likely tokens are wanted beside each token; None for no probabilities at all."""
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], (int, float)):
            return [self.prompt]  # type: ignore[list-item] - tokens of one prompt
        return self.prompt  # type: ignore[return-value]
