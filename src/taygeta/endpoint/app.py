"""The application: OpenAI's operations over a service, health, metrics, and the document that describes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from taygeta import __version__
from taygeta.base.errors import InputError
from taygeta.endpoint import forms
from taygeta.endpoint.errors import ApiError, busy, wrong_fields
from taygeta.endpoint.fleets import Fleets
from taygeta.endpoint.guard import ARRIVED, Guard
from taygeta.endpoint.metrics import CONTENT_TYPE
from taygeta.endpoint.reply import TIMES, EventReply, Form, WholeReply
from taygeta.endpoint.schema import MAX_CHOICES, UNSUPPORTED, ChatRequest, CompletionRequest
from taygeta.endpoint.service import Service
from taygeta.endpoint.text import Ask

Background = Callable[[], Awaitable[None]]
Part = Callable[[FastAPI, Fleets], None]
"""More of an application: a function that adds routes over its fleets."""

LONG = 1 << 13  # letters of a prompt that takes longer to read than a token may wait
_ASKED = (400, 401, 404, 405, 408, 413, 429, 500, 503, 504)
_READ = (401, 405, 500, 503)


def application(
    fleets: Fleets, keys: Sequence[str] = (), tasks: Sequence[Background] = (), parts: Sequence[Part] = ()
) -> ASGIApp:
    """Return the ASGI application of fleets. keys: API keys. tasks: what runs beside the fleets. parts: more routes."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        running = [asyncio.ensure_future(task()) for task in (fleets.run, *tasks)]
        yield
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    app = FastAPI(
        title="Taygeta",
        version=__version__,
        summary="An OpenAI-compatible endpoint at the speed of a simulated fleet",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_errors(app)
    _add_operations(app, fleets)
    _add_state(app, fleets)
    for add in parts:
        add(app, fleets)
    app.openapi = lambda: _document(app, fleets)  # type: ignore[method-assign]
    return Guard(app, fleets.first, keys)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        del request
        return JSONResponse(error.body, error.status, dict(error.headers))

    @app.exception_handler(InputError)
    async def not_possible(request: Request, error: InputError) -> Response:
        return await refused(request, ApiError(400, str(error), code="invalid_value"))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await refused(request, wrong_fields(error.errors(), UNSUPPORTED))

    @app.exception_handler(HTTPException)
    async def wrong(request: Request, error: HTTPException) -> Response:
        said = {404: f"There is nothing at {request.url.path[:200]}.", 405: f"{request.method} is not possible here."}
        message = said.get(error.status_code, str(error.detail))
        return await refused(request, ApiError(error.status_code, message, headers=error.headers or {}))


def _add_operations(app: FastAPI, fleets: Fleets) -> None:
    @app.post("/v1/chat/completions", responses=forms.answers(_ASKED, forms.ChatCompletion, stream=True))
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation, at the pace of the simulated fleet."""
        service = _checked(body, fleets)
        turns = [(m.role, m.text) for m in body.messages]
        prompt = await _encoded(service.source.encode_chat, turns, sum(len(text) for _, text in turns))
        return _opened(service, body, request, [prompt], chat=True)

    @app.post("/v1/completions", responses=forms.answers(_ASKED, forms.Completion, stream=True))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Go on from a text, at the pace of the simulated fleet."""
        service = _checked(body, fleets)
        encode = service.source.encode
        prompts = [await _encoded(encode, p, len(p)) if isinstance(p, str) else p for p in body.prompts]
        return _opened(service, body, request, prompts, chat=False)

    @app.get("/v1/models", responses=forms.answers(_READ, forms.ModelList))
    async def models() -> Response:
        """List what is served: the model of each fleet, by the name that it is known by."""
        return JSONResponse({"object": "list", "data": [_card(service, service.names[0]) for service in fleets]})

    @app.get("/v1/models/{model:path}", responses=forms.answers((*_READ, 404), forms.ModelCard))
    async def model(model: str) -> Response:
        """Describe the model."""
        return JSONResponse(_card(fleets.named(model), model))


def _add_state(app: FastAPI, fleets: Fleets) -> None:
    @app.get("/health", responses=forms.answers((405, 500, 503), forms.Health))
    async def health() -> Response:
        """Say whether requests are taken."""
        if fleets.first.stopping:
            raise busy(503, "The server is stopping.", "server_stopping")
        return JSONResponse({"status": "ok"})

    metrics_text = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Done"}}

    @app.get("/metrics", responses={**forms.answers((405, 500, 503)), **metrics_text}, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Count what the fleet does, for Prometheus, by vLLM's names."""
        return Response(fleets.metrics_text(), media_type=CONTENT_TYPE)


def _checked(body: ChatRequest | CompletionRequest, fleets: Fleets) -> Service:
    """Return the fleet that is asked; refuse what contradicts itself before any work."""
    service = fleets.named(body.model)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true.", "stream_options", "invalid_value")
    if isinstance(body, ChatRequest) and body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true.", "top_logprobs", "invalid_value")
    if body.chances is not None and not service.source.real:
        raise ApiError(
            400,
            "logprobs is not supported: synthetic text has no probabilities. Leave it out, or ask a server of executed"
            " text (taygeta serve CHECKPOINT).",
            "logprobs",
            "unsupported_parameter",
        )
    return service


async def _encoded(encode: Callable[[Any], Sequence[int]], what: Any, letters: int) -> Sequence[int]:
    """Return the tokens of a prompt; of a long one in a thread, so that tokens of others leave meanwhile."""
    return await asyncio.to_thread(encode, what) if letters > LONG else encode(what)


def _opened(
    service: Service,
    body: ChatRequest | CompletionRequest,
    request: Request,
    prompts: Sequence[Sequence[int]],
    chat: bool,
) -> Response:
    """Let the answers to prompts begin; n to each, those of one prompt after the other."""
    count = body.n or 1
    if len(prompts) * count > MAX_CHOICES:
        message = f"A request makes at most {MAX_CHOICES} answers, not {len(prompts) * count}."
        raise ApiError(400, message, "n", "invalid_value")
    number = service.live.submitted
    seed = number if body.seed is None else body.seed
    asks = [
        (_ask(service, body, prompt, seed * MAX_CHOICES + place * count + n, chat), body.stops)
        for place, prompt in enumerate(prompts)
        for n in range(count)
    ]
    name = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
    tokens = sum(map(len, prompts))
    priority = -(body.priority or 0)  # vLLM's lowest goes first, the fleet's highest
    stream = service.open(name, asks, priority, cast(float, request.scope[ARRIVED]), tokens)
    form = Form(chat, name, body.model)
    if not body.stream:
        return WholeReply(service, stream, form)
    return EventReply(service, stream, form, body.usage, TIMES in request.headers)


def _ask(service: Service, body: ChatRequest | CompletionRequest, prompt: Sequence[int], seed: int, chat: bool) -> Ask:
    context, least = service.bounds.context, body.min_tokens or 0
    param = "messages" if chat else "prompt"
    wanted = max(body.limit or 1, least)
    if len(prompt) + wanted > context:
        more = f" and {wanted:,} of the answer" if wanted > 1 else ""
        raise ApiError(
            400,
            f"This model's maximum context length is {context:,} tokens; the prompt has {len(prompt):,}{more}. Shorten"
            " it, or ask for fewer tokens.",
            param,
            "context_length_exceeded",
        )
    if body.limit is not None and least > body.limit:
        raise ApiError(400, f"min_tokens {least:,} exceeds max_tokens {body.limit:,}.", "min_tokens", "invalid_value")
    return Ask(
        prompt=prompt,
        limit=body.limit or context - len(prompt),
        least=least,
        endless=bool(body.ignore_eos),
        seed=seed,
        chances=body.chances,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(0, body.top_k),
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        bias=_bias(body.logit_bias or {}),
    )


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    """Return what is added to logits by token id, from the names of JSON."""
    wrong = next((name for name in given if not (name.isascii() and name.isdecimal() and len(name) < 10)), None)
    if wrong is not None:
        raise ApiError(400, f"logit_bias is by token id, not {wrong[:100]!r}.", "logit_bias", "invalid_value")
    return {int(token): value for token, value in given.items()}


def _card(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "taygeta",
        "max_model_len": service.bounds.context,
        "text": service.source.said,
    }


def _document(app: FastAPI, fleets: Fleets) -> dict[str, Any]:
    """Return the OpenAPI document: FastAPI's, with what is served and without the status that is never given."""
    found: dict[str, Any] | None = app.openapi_schema
    if found is None:
        found = cast(dict[str, Any], json.loads(json.dumps(FastAPI.openapi(app))))
        schemas = found["components"]["schemas"]
        for operations in found["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        app.openapi_schema = found
    for name in ("ChatRequest", "CompletionRequest"):  # fleets may come while the server runs
        found["components"]["schemas"][name]["properties"]["model"]["enum"] = list(fleets.names)
    return found
