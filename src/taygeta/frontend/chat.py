"""Chat templates: the Jinja text of a checkpoint that turns a conversation into a prompt, run in Jinja's sandbox.

Templates come with the weights, from anyone: the sandbox keeps them from attributes and from calls into Python, and
repetition, output and text are bounded. Names and filters are those that transformers gives (its
utils/chat_template_utils.py): raise_exception, strftime_now, tojson without HTML escapes, loop controls.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from taygeta.base.errors import InputError, TaygetaError, require
from taygeta.frontend.config import shown

MAX_TEMPLATE = 1024 * 1024  # the longest published ones have 20 KiB
MAX_PROMPT = 16 * 1024 * 1024
MAX_REPEAT = 1_000_000


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template, the file it comes from, and the texts of the special tokens that it may name."""

    text: str = field(repr=False)
    where: Path
    tokens: Mapping[str, str]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Return the prompt of `messages` ({role, content} tables), ready for the model's answer.

        Raises InputError with the template's own words where it refuses a conversation, MissingExtraError without
        jinja2.
        """
        environment = _environment()
        given = {**self.tokens, "messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            pieces: list[str] = []
            length = 0
            for piece in environment.from_string(self.text).generate({**given, **(variables or {})}):
                pieces.append(piece)
                length += len(piece)
                if length > MAX_PROMPT:
                    raise InputError(
                        f"{self.where}: the chat template writes more than {MAX_PROMPT} characters for this "
                        f"conversation; give a shorter one, or a plain prompt."
                    )
            return "".join(pieces)
        except TaygetaError:
            raise
        except Exception as error:  # whatever a template of unknown origin can raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(
                f"{self.where}: the chat template cannot write this conversation: {reason}; "
                f"change the messages, or give a plain prompt."
            ) from None


def chat_template(directory: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """Return the template of a checkpoint: chat_template.jinja where it is, else the one in tokenizer_config.json
    (`config`), the one called default where that has several; None where neither has one. Raises InputError.
    """
    file = directory / "chat_template.jinja"
    tokens = {name: text for name in config if name.endswith("_token") and (text := _token(config[name])) is not None}
    if file.is_file():
        try:
            with file.open("rb") as stream:
                text = stream.read(MAX_TEMPLATE + 1).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise InputError(f"{file} cannot be read: {reason}.") from None
        return _bounded(text, file, tokens)
    file, given = directory / "tokenizer_config.json", config.get("chat_template")
    if isinstance(given, list):
        named = {str(e.get("name")): e.get("template") for e in given if isinstance(e, Mapping)}
        if "default" not in named:
            names = ", ".join(shown(name) for name in sorted(named)[:8]) or "none"
            raise InputError(f"{file}: chat_template must have one called default; it has {names}.")
        given = named["default"]
    if given is None:
        return None
    if not isinstance(given, str):
        raise InputError(f"{file}: chat_template must be a text or a list of named texts, not {shown(given)}.")
    return _bounded(given, file, tokens)


def _bounded(text: str, file: Path, tokens: Mapping[str, str]) -> ChatTemplate:
    if len(text) > MAX_TEMPLATE:
        raise InputError(f"{file}: the chat template is longer than {MAX_TEMPLATE} characters, which no model's is.")
    return ChatTemplate(text, file, tokens)


def _token(value: object) -> str | None:
    """A special token is a text, or a table whose `content` is."""
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else None


def _environment() -> Any:
    """Return a sandbox whose products and powers are bounded: 'a' * 10**12 is a full memory in nine characters."""
    require("jinja2", "run", "a chat template")
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            texts = [x for x in (left, right) if hasattr(x, "__len__")]
            if operator == "%" and isinstance(left, str):
                raise SecurityError("formatting a text with % is not allowed; templates use ~ or format")
            if operator == "*" and texts and max(len(texts[0]), 1) * (right if texts[0] is left else left) > MAX_REPEAT:
                raise SecurityError(f"a text is repeated to more than {MAX_REPEAT} characters")
            if operator == "**" and (abs(left) > MAX_REPEAT or abs(right) > 64):
                raise SecurityError("a power is too large")
            return super().call_binop(context, operator, left, right)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(value: object, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().astimezone().strftime(form)
    return environment
