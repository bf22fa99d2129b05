"""What stands before the application: keys, limits, and the time at which a request has come."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taygeta.endpoint.errors import ApiError, busy
from taygeta.endpoint.reply import send_json
from taygeta.endpoint.service import Service

LOG = logging.getLogger("taygeta.endpoint")
ARRIVED = "taygeta.arrived"
"""Where the scope of a request says when its body had been read (time.monotonic)."""

DISCARD_BYTES, DISCARD_SECONDS = 64 << 20, 5.0  # of a body that is too large, so that its sender reads the answer
CLOSE = {"Connection": "close"}


class Guard:
    """ASGI middleware: refuses what may not come in, reads bodies, stamps arrivals, hides defects.

    keys: API keys of which a request to /v1 must bring one; none: all may come.
    """

    def __init__(self, app: ASGIApp, service: Service, keys: Sequence[str] = ()) -> None:
        self.app, self.service = app, service
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            self._check(scope)
            body = await self._body(scope, receive)
            if body is None:
                return
            scope[ARRIVED] = time.monotonic()
            await self.app(scope, _replayed(body, receive), noted)
        except ApiError as error:
            if not begun:
                await send_json(send, error.status, error.body, error.headers)
        except Exception:
            LOG.exception("a defect of Taygeta")
            if begun:
                raise
            error = ApiError(500, "This is a defect of Taygeta; the server's log says where it is.", code="defect")
            await send_json(send, 500, error.body, CLOSE)

    def _check(self, scope: Scope) -> None:
        most = self.service.bounds.connections
        if len(self.service.connections) > most:
            error = busy(503, f"{most:,} connections are open: come again later.", "too_many_connections")
            raise ApiError(503, error.message, code=error.code, headers={**error.headers, **CLOSE})
        if self.keys and scope["path"].startswith("/v1"):
            given = dict(scope["headers"]).get(b"authorization", b"")
            kind, _, key = given.partition(b" ")
            known = [hmac.compare_digest(key.strip(), own) for own in self.keys]  # all, whichever fits
            if kind.lower() != b"bearer" or not any(known):
                raise ApiError(
                    401,
                    "The API key is missing or wrong: send Authorization: Bearer KEY.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body; None where the client goes away before its end. Raises ApiError."""
        bounds = self.service.bounds
        length = dict(scope["headers"]).get(b"content-length", b"0")
        parts: list[bytes] = []
        size = int(length) if length.isdigit() and len(length) < 20 else 0
        if size <= bounds.body:
            size = 0
            try:
                async with asyncio.timeout(bounds.reading):
                    while size <= bounds.body:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            return None
                        parts.append(message.get("body", b""))
                        size += len(parts[-1])
                        if not message.get("more_body", False):
                            return b"".join(parts) if size <= bounds.body else await self._too_large(receive, True)
            except TimeoutError:
                message = f"The body did not come within {bounds.reading:g} s."
                raise ApiError(408, message, code="timeout", headers=CLOSE) from None
        waits = (b"expect", b"100-continue") in [(n, v.lower()) for n, v in scope["headers"]]
        return await self._too_large(receive, waits)

    async def _too_large(self, receive: Receive, over: bool) -> None:
        """Refuse a body, and let what is on its way come in so that the refusal can be read. over: nothing is."""
        size = 0
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while not over and size < DISCARD_BYTES:
                    message = await receive()
                    size += len(message.get("body", b""))
                    over = message["type"] == "http.disconnect" or not message.get("more_body", False)
        except TimeoutError:
            pass
        most = self.service.bounds.body
        raise ApiError(413, f"The body exceeds {most:,} bytes.", code="body_too_large", headers=CLOSE)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a receive that gives a body that was read already, then what comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
