"""Errors as OpenAI's API words them: a status, and a body {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class ApiError(Exception):
    """What a client is told instead of an answer. param: the field that is wrong; code: a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def busy(status: int, message: str, code: str, seconds: int = 1) -> ApiError:
    """Return an error after which a client may come again."""
    return ApiError(status, message, code=code, headers={"Retry-After": str(seconds)})


def wrong_fields(errors: Sequence[Any], reasons: Mapping[str, str]) -> ApiError:
    """Return the error of a request that does not fit its schema, from pydantic's; the first one counts.

    reasons: sentences on fields that are understood and not supported.
    """
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not JSON: {first['ctx']['error']}.", code="invalid_json")
    place = [str(part) for part in first["loc"] if part != "body"]
    if not place:
        return ApiError(400, "The body must be a JSON object, with Content-Type: application/json.")
    param = place[0]
    if param in reasons:
        return ApiError(400, f"{param} is not supported: {reasons[param]}", param, "unsupported_parameter")
    if first["type"] == "extra_forbidden":
        name = ".".join(place)[:100]
        return ApiError(400, f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")
    message = first["msg"][:1].lower() + first["msg"][1:]
    return ApiError(400, f"{'.'.join(place)[:100]}: {message}.", param, first["type"])
