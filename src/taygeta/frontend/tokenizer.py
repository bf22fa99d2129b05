"""Tokenizers: text to token ids and back, piece by piece for streams, with the chat template of the checkpoint.

The tokenizers library does the work. It is written in Rust, and a damaged tokenizer.json can make it panic: a panic
arrives here as an exception that is no Exception, and leaves as one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from taygeta.base.errors import InputError, require
from taygeta.frontend.chat import ChatTemplate, chat_template
from taygeta.frontend.config import read_json, shown

if TYPE_CHECKING:
    import tokenizers

MAX_BYTES = 64 * 1024 * 1024  # the largest published tokenizer.json, Gemma 3's, has 33 MB
MAX_IDS = 10_000_000
MAX_TEXT = 16 * 1024 * 1024
CONTEXT = 6  # tokens before the stream whose text decides about a leading space
PENDING = 16  # tokens that are held back for one character of at most four bytes, before they are taken as no text
UNFINISHED = "\ufffd"  # what decoders put where bytes are no UTF-8

T = TypeVar("T")


class Tokenizer:
    """Token ids of a text and text of token ids, as the checkpoint's tokenizer.json says.

    eos: the ids that end a text, of config.json, generation_config.json and tokenizer_config.json together.
    chat: the chat template, None where the checkpoint has none.
    """

    def __init__(
        self, library: tokenizers.Tokenizer, where: Path, eos: tuple[int, ...], chat: ChatTemplate | None
    ) -> None:
        self._library, self._where = library, where
        self.eos = eos
        self.chat = chat
        self.special: dict[str, int] = {
            token.content: number for number, token in library.get_added_tokens_decoder().items() if token.special
        }

    @property
    def size(self) -> int:
        """How many ids there are, added tokens included."""
        return self._library.get_vocab_size(with_added_tokens=True)

    def id_of(self, token: str) -> int | None:
        """Return the id of a token as it is written in the vocabulary, None where there is none."""
        return self._library.token_to_id(token)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the ids of a text; `special` adds what the tokenizer puts around a text (a begin-of-text token).

        Special tokens that are written out in the text are recognised. Raises InputError.
        """
        if len(text) > MAX_TEXT:
            raise InputError(f"a text of {len(text)} characters is too long to encode; at most {MAX_TEXT} are taken.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text cannot be encoded: character {error.start} is half of a surrogate pair; give valid Unicode."
            ) from None
        return self._guarded(lambda: self._library.encode(text, add_special_tokens=special).ids, "encode this text")

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of token ids; special tokens are left out unless told otherwise. Raises InputError."""
        checked = [self._id(i) for i in ids]
        return self._guarded(
            lambda: self._library.decode(checked, skip_special_tokens=skip_special), "decode these token ids"
        )

    def stream(self, prompt: Sequence[int] = (), skip_special: bool = True) -> Stream:
        """Return a stream of the text that follows `prompt`, to be given one token id after the other."""
        return Stream(self, prompt, skip_special)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: object
    ) -> str:
        """Return the prompt of a conversation; encode it with special=False. Raises InputError, MissingExtraError."""
        if self.chat is None:
            raise InputError(
                f"{self._where.parent} has no chat template, and the form of a prompt is not guessed; give plain text, "
                f"or put a chat_template.jinja beside tokenizer.json."
            )
        return self.chat.render(messages, add_generation_prompt, variables)

    def _id(self, value: int) -> int:
        if isinstance(value, bool) or not 0 <= int(value) < MAX_IDS:
            raise InputError(f"{shown(value)} is not a token id; ids are whole numbers from 0 to {self.size - 1}.")
        return int(value)

    def _guarded(self, call: Callable[[], T], what: str) -> T:
        return _without_panic(call, f"{self._where} cannot {what}")


class Stream:
    """Text that grows with the tokens: `push` gives the piece that a token completes, "" while it completes none.

    A token may end inside a character, so text is held back while it ends in an unfinished one, as in vLLM's
    detokenizer: the window of tokens since the last complete text is decoded with and without the new ones, and the
    difference is the piece. Where bytes never become a character, they leave as U+FFFD after `PENDING` tokens.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), skip_special: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special
        self._window = list(prompt[-CONTEXT:]) if prompt else []
        self._given = len(self._window)  # tokens of the window whose text has been given
        self._before = tokenizer.decode(self._window, skip_special)

    def push(self, token: int) -> str:
        """Return the text that this token completes. Raises InputError."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window, self._skip)
        waiting = len(self._window) - self._given
        if text.endswith(UNFINISHED) and waiting < PENDING:
            return ""
        return self._give(text)

    def finish(self) -> str:
        """Return what is still held back, an unfinished character as U+FFFD."""
        return self._give(self._tokenizer.decode(self._window, self._skip))

    def _give(self, text: str) -> str:
        piece = text[len(self._before) :]
        if piece:
            self._window = self._window[self._given :]
            self._before = self._tokenizer.decode(self._window, self._skip)
        self._given = len(self._window)
        return piece


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Return the tokenizer in a checkpoint's directory, or in the directory of a tokenizer.json.

    Padding and truncation that the file asks for are left out: prompts are taken whole. Raises InputError and
    MissingExtraError.
    """
    path = Path(directory)
    file = path if path.name == "tokenizer.json" else path / "tokenizer.json"
    data = _bounded(file)
    library = require("tokenizers", "run", "reading tokenizer.json")
    found: tokenizers.Tokenizer = _without_panic(lambda: library.Tokenizer.from_buffer(data), f"{file} cannot be read")
    settings = {
        name: _settings(file.with_name(name))
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    }
    config = settings["tokenizer_config.json"]
    return Tokenizer(found, file, _eos(found, settings, file.parent), chat_template(file.parent, config))


def _bounded(file: Path) -> bytes:
    """Return a tokenizer.json without padding and truncation, whose sizes the library would take as given."""
    try:
        regular, size = file.is_file(), file.stat().st_size
        if not regular or size > MAX_BYTES:
            kind = f"has {size} bytes" if regular else "is not a regular file"
            raise InputError(f"{file} {kind}; a tokenizer.json is a file of at most {MAX_BYTES} bytes.")
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a usable file name"
        raise InputError(
            f"{shown(str(file)) if isinstance(error, ValueError) else file} cannot be read: {reason}; "
            f"a checkpoint has a tokenizer.json, which AutoTokenizer.from_pretrained(...).save_pretrained writes."
        ) from None
    try:
        table = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise InputError(f"{file} is not JSON ({reason}); download the checkpoint again.") from None
    if not isinstance(table, dict) or not isinstance(table.get("model"), dict):
        raise InputError(f"{file} has no table called model; a tokenizer.json of the tokenizers library has one.")
    if table.get("truncation") is None and table.get("padding") is None:
        return data
    return json.dumps({**table, "truncation": None, "padding": None}).encode("utf-8", "surrogatepass")


def _settings(file: Path) -> Mapping[str, Any]:
    return read_json(file) if file.is_file() else {}


def _eos(library: tokenizers.Tokenizer, settings: Mapping[str, Mapping[str, Any]], directory: Path) -> tuple[int, ...]:
    """Return the ids that end a text, each once, in increasing order. Raises InputError for what is no id."""
    out: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        inner = settings[name].get("text_config")
        table = settings[name]
        given = table.get("eos_token_id")
        if given is None and isinstance(inner, Mapping):  # multimodal files keep it with the text model
            given = inner.get("eos_token_id")
        for value in given if isinstance(given, list) else [] if given is None else [given]:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_IDS:
                raise InputError(
                    f"{directory / name}: eos_token_id must be a token id or a list of them, not with {shown(value)} "
                    f"in it."
                )
            out.add(value)
    token = settings["tokenizer_config.json"].get("eos_token")
    if isinstance(token, Mapping):
        token = token.get("content")
    if isinstance(token, str):
        number = library.token_to_id(token)
        out |= {number} if number is not None else set()
    return tuple(sorted(out))


def _without_panic(call: Callable[[], T], what: str) -> T:
    """Return what `call` returns; an error of the library, or a panic inside it, becomes an InputError."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a panic is pyo3_runtime.PanicException, which derives from BaseException
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{what}: the tokenizers library says {reason!r}; download the checkpoint again.") from None
