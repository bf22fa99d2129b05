"""The two ways to answer: events as tokens leave, or all at the end; in the forms of OpenAI's two operations."""

from __future__ import annotations

import asyncio
import json
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from taygeta.endpoint.errors import ApiError
from taygeta.endpoint.logprobs import of_chat, of_text
from taygeta.endpoint.service import Service
from taygeta.endpoint.stream import Choice, Mark, Stream

EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"
ARRIVED = "x-taygeta-arrived"
"""The header that says when a request arrived, in seconds of the fleet since it started."""
TIMES = "x-taygeta-times"
"""The header with which a client asks that every event say its time, in the same seconds."""
BLOCKED = 0.002  # seconds; a write takes a few tens of microseconds unless the client does not read


class Form:
    """The words of one operation: /v1/chat/completions or /v1/completions."""

    def __init__(self, chat: bool, name: str, model: str) -> None:
        self.chat = chat
        kind = ("chat.completion" if chat else "text_completion") if name else ""
        self.head = {"id": name, "object": kind, "created": int(time.time()), "model": model}
        chunk = {**self.head, "object": "chat.completion.chunk" if chat else kind}
        self.chunk_head = json.dumps(chunk)[:-1]

    def chunk(self, choice: Choice, text: str, first: bool, usage: str, at: float | None = None) -> str:
        """Return an event with some text of an answer. usage: JSON, or nothing. at: its time, where it is said."""
        words, ends = json.dumps(text), f'"{choice.reason}"' if choice.reason else "null"
        chances = json.dumps(self.logprobs(choice)) if choice.chances else "null"
        if self.chat:
            role = '"role": "assistant", ' if first else ""
            said = f'"delta": {{{role}"content": {words}}}'
        else:
            said = f'"text": {words}'
        more = f', "usage": {usage}' if usage else ""
        more += f', "taygeta": {{"at": {at:.6f}}}' if at is not None else ""
        one = f'{{"index": {choice.index}, {said}, "logprobs": {chances}, "finish_reason": {ends}}}'
        return f'data: {self.chunk_head}, "choices": [{one}]{more}}}\n\n'

    def last_chunk(self, usage: str) -> str:
        """Return the event that says the usage and nothing else."""
        return f'data: {self.chunk_head}, "choices": [], "usage": {usage}}}\n\n'

    def whole(self, texts: Sequence[str], choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """Return the body with all answers."""
        out = []
        for text, choice in zip(texts, choices, strict=True):
            message = {"role": "assistant", "content": text, "refusal": None}
            said: dict[str, Any] = {"message": message} if self.chat else {"text": text}
            said["logprobs"] = self.logprobs(choice)
            out.append({"index": choice.index, **said, "finish_reason": choice.reason})
        return {**self.head, "choices": out, "usage": usage}

    def logprobs(self, choice: Choice) -> dict[str, Any] | None:
        """Return the probabilities of the tokens since the last event, and forget them; None where none are there."""
        found, choice.chances = choice.chances, []
        if not found:
            return None
        before = choice.letters
        choice.letters += sum(len(own.text) for own, *_ in found)
        return of_chat(found) if self.chat else of_text(found, before)


class Reply(Response):
    """Answers a request whose stream is open; watches for a client that goes away."""

    def __init__(self, service: Service, stream: Stream, form: Form) -> None:
        self.service, self.stream, self.form = service, stream, form
        self.background = None
        self.status_code = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the answers; whatever happens, the request is closed."""
        loop = asyncio.get_running_loop()
        bound = self.service.bounds.answer
        late = ApiError(504, f"The answer took more than {bound:g} s.", code="timeout")
        timer = loop.call_later(bound, self.stream.fail, late)
        watch = asyncio.create_task(self._watch(receive))
        try:
            await self.write(send)
        finally:
            timer.cancel()
            watch.cancel()
            self.service.close(self.stream)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.stream.leave()

    @abstractmethod
    async def write(self, send: Send) -> None:
        """Write the answers."""

    async def take(self, choice: Choice, mark: Mark) -> str:
        """Return the text of tokens whose time has come and that are there; end their answer where it ends.

        Waits for one at least, unless the stream ends early.
        """
        before, text, reason, answer = choice.sent, "", None, choice.answer
        await self.stream.until(lambda: answer.made > before)
        while choice.sent < min(mark.tokens, answer.made) and reason is None:
            piece = answer.piece(choice.sent)
            choice.sent += 1
            text += choice.stops.feed(piece.text)
            if piece.chances:
                choice.chances.append(piece.chances)
            if choice.stops.found or piece.last:
                reason = "stop"
            elif mark.last and choice.sent == mark.tokens:
                reason = "length"
        self.service.note(self.stream, mark, choice.sent - before)
        if reason is not None:
            text += choice.stops.rest()
            self.service.end(self.stream, choice, reason)
        return text

    def owes(self, choice: Choice, mark: Mark) -> bool:
        """Return whether tokens of a mark are still to be written: none are after a stop has ended the answer."""
        return choice.reason is None and choice.sent < mark.tokens and not self.stream.broken

    @property
    def arrived(self) -> dict[str, str]:
        """The header of its arrival."""
        return {ARRIVED: f"{self.stream.arrived:.6f}"}

    def usage(self, tokens: int) -> dict[str, int]:
        """Return the tokens used."""
        prompt = self.stream.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


class WholeReply(Reply):
    """All answers at the end."""

    async def write(self, send: Send) -> None:
        """Wait for all answers, and write them."""
        texts = [""] * len(self.stream.choices)
        while not self.stream.done:
            mark = await self.stream.next()
            if mark is None:
                break
            choice = self.stream.choices[mark.choice]
            while self.owes(choice, mark):
                texts[choice.index] += await self.take(choice, mark)
        problem = self.stream.problem
        if self.stream.gone:
            return
        if problem is not None and not self.stream.done:
            await send_json(send, problem.status, problem.body, problem.headers)
            return
        body = self.form.whole(texts, self.stream.choices, self.usage(self.stream.tokens))
        await send_json(send, 200, body, self.arrived)


class EventReply(Reply):
    """Server-sent events, one for the tokens of an answer that leave together."""

    def __init__(
        self, service: Service, stream: Stream, form: Form, usage: tuple[bool, bool], times: bool = False
    ) -> None:
        super().__init__(service, stream, form)
        self.usage_last, self.usage_always = usage
        self.times = times

    async def write(self, send: Send) -> None:
        """Write events until every answer has ended, or an error."""
        stream, first = self.stream, set(range(len(self.stream.choices)))
        headers = [*EVENTS, *((name.encode(), value.encode()) for name, value in self.arrived.items())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while not stream.done:
            mark = await stream.next()
            if mark is None:
                break
            choice = stream.choices[mark.choice]
            while self.owes(choice, mark):
                text = await self.take(choice, mark)
                if not text and choice.reason is None:  # a stop may have begun, or a letter is not whole
                    continue
                usage = json.dumps(self.usage(stream.tokens)) if self.usage_always else ""
                event = self.form.chunk(choice, text, choice.index in first, usage, mark.at if self.times else None)
                first.discard(choice.index)
                await self._send(send, event.encode() + (self._end() if stream.done else b""), stream.done)
        if stream.problem is not None and not stream.done:
            failed = f"data: {json.dumps(stream.problem.body)}\n\n"
            await self._send(send, failed.encode() + DONE, True)

    def _end(self) -> bytes:
        usage = self.form.last_chunk(json.dumps(self.usage(self.stream.tokens))) if self.usage_last else ""
        return usage.encode() + DONE

    async def _send(self, send: Send, body: bytes, last: bool) -> None:
        began = time.monotonic()
        await send({"type": "http.response.body", "body": body, "more_body": not last})
        if (now := time.monotonic()) - began > BLOCKED:
            self.stream.free = now


async def send_json(send: Send, status: int, body: Any, headers: Any = None) -> None:
    """Write a response of JSON."""
    text = json.dumps(body).encode()
    lines = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    lines += [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    start: Message = {"type": "http.response.start", "status": status, "headers": lines}
    await send(start)
    await send({"type": "http.response.body", "body": text})
