"""Tokenizers: streams give whole characters and the whole text, chat templates in a sandbox, damage in one sentence."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taygeta.base.errors import InputError, MissingExtraError, TaygetaError
from taygeta.frontend.tokenizer import PENDING, load_tokenizer

tokenizers = pytest.importorskip("tokenizers")

BEGIN = {"bos_token": "<|begin|>"}
SPECIAL = ["<|begin|>", "<|end|>"]


def byte_level(directory: Path) -> Path:
    """The 256 bytes, "he", "lo" and two special tokens: ids can be written by hand."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {"he": 256, "lo": 257}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("h", "e"), ("l", "o")]))
    library.pre_tokenizer = ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(SPECIAL)  # 258, 259
    library.post_processor = tokenizers.processors.TemplateProcessing("<|begin|> $A", None, [("<|begin|>", 258)])
    library.save(str(directory / "tokenizer.json"))
    return directory


def byte_fallback(directory: Path) -> Path:
    """As in Llama 2: words with a leading mark, single bytes for the rest."""
    vocabulary = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}, "▁a": 257, "b": 258, "▁": 259}
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [("▁", "a")] if "a" in vocabulary else [], byte_fallback=True)
    )
    d = tokenizers.decoders
    library.decoder = d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    library.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return load_tokenizer(byte_level(tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def fallback(tmp_path_factory):
    return load_tokenizer(byte_fallback(tmp_path_factory.mktemp("fallback")))


def streamed(tokenizer, ids, prompt=()):
    stream = tokenizer.stream(prompt)
    pieces = [stream.push(i) for i in ids]
    return [*pieces, stream.finish()]


def test_ids_by_hand(plain):
    assert plain.encode("helo") == [258, 256, 257]
    assert plain.encode("helo", special=False) == [256, 257]
    assert plain.encode("he<|end|>", special=False) == [256, 259]
    assert plain.decode([258, 256, 257, 259]) == "helo"
    assert plain.decode([256, 259], skip_special=False) == "he<|end|>"
    assert (plain.size, plain.id_of("he"), plain.id_of("none")) == (260, 256, None)
    assert plain.special == {"<|begin|>": 258, "<|end|>": 259}


def test_a_character_of_three_tokens_leaves_whole(plain):
    ids = plain.encode("h€!", special=False)  # the euro sign is E2 82 AC
    assert len(ids) == 5
    assert streamed(plain, ids) == ["h", "", "", "€", "!", ""]
    assert streamed(plain, ids[:3]) == ["h", "", "", "\ufffd"]


def test_leading_space_depends_on_the_prompt(fallback):
    assert streamed(fallback, [257, 258]) == ["a", "b", ""]
    assert streamed(fallback, [257, 258], prompt=[258]) == [" a", "b", ""]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(max_size=30))
def test_pieces_join_to_the_text(plain, fallback, text):
    assert "".join(streamed(plain, plain.encode(text, special=False))) == text
    bytes_of = [b + 1 for b in text.encode()]
    pieces = streamed(fallback, bytes_of, prompt=[258])
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_text_leave_in_the_end(plain):
    broken = plain.encode("€", special=False)[1:2] * (3 * PENDING)
    pieces = streamed(plain, broken)
    assert [i for i, piece in enumerate(pieces) if piece] == [PENDING - 1, 2 * PENDING - 1, 3 * PENDING - 1]
    assert "".join(pieces) == plain.decode(broken) == "\ufffd" * (3 * PENDING)


def test_end_of_text_from_three_files(tmp_path):
    byte_level(tmp_path)
    assert load_tokenizer(tmp_path).eos == ()
    (tmp_path / "config.json").write_text('{"eos_token_id": 7, "text_config": {"eos_token_id": 9}}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    assert load_tokenizer(tmp_path).eos == (7, 8, 259)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(InputError, match="eos_token_id must be a token id or a list of them, not with 'x' in it"):
        load_tokenizer(tmp_path)


def with_template(directory: Path, template: object, **more: object) -> Path:
    byte_level(directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **more}))
    return directory


CHAT = (
    "{{ bos_token }}{%- for m in messages %}\n    {%- if m.role == 'tool' %}{{ raise_exception('no tools here') }}"
    "{% endif %}\n[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "ho"}]


def test_chat_template_by_hand(tmp_path):
    tokenizer = load_tokenizer(with_template(tmp_path, CHAT, **BEGIN))
    assert tokenizer.apply_chat_template(TALK) == "<|begin|>[user] hi\n[assistant] ho\n[assistant]"
    assert tokenizer.apply_chat_template(TALK[:1], add_generation_prompt=False) == "<|begin|>[user] hi\n"
    with pytest.raises(InputError, match="cannot write this conversation: no tools here; change the messages"):
        tokenizer.apply_chat_template([{"role": "tool", "content": ""}])


@pytest.mark.torch
def test_chat_template_as_transformers(tmp_path):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    text = CHAT + "{{ messages | tojson(indent=1) }}{% for i in range(9) %}{{ i }}{% break %}{% endfor %}"
    talk = [*TALK, {"role": "user", "content": "<é>"}]
    mine = load_tokenizer(with_template(tmp_path, text, **BEGIN)).apply_chat_template(talk)
    theirs, _ = utils.render_jinja_template([talk], chat_template=text, add_generation_prompt=True, **BEGIN)
    assert mine == theirs[0]


def test_which_template_is_taken(tmp_path):
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    assert load_tokenizer(with_template(tmp_path, named)).apply_chat_template([]) == "one"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert load_tokenizer(tmp_path).apply_chat_template([]) == "three"
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="chat_template must have one called default; it has 'tool_use'"):
        load_tokenizer(with_template(tmp_path, named[1:]))
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="has no chat template, and the form of a prompt is not guessed"):
        load_tokenizer(tmp_path).apply_chat_template([])


HOSTILE = (
    "{{ ''.__class__.__mro__ }}",
    "{{ 'a' * 1000000000000 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ '%1000000000d' % 1 }}",
    "{% for i in range(100000000) %}{% endfor %}",
    "{{ messages.append(1) }}",
    "{% for",
    "{% include '/etc/passwd' %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
)


@pytest.mark.parametrize("template", HOSTILE)
def test_hostile_templates_end_in_one_sentence(tmp_path, template):
    tokenizer = load_tokenizer(with_template(tmp_path, template))
    with pytest.raises(InputError, match="the chat template cannot write this conversation: "):
        tokenizer.apply_chat_template(TALK)


def test_without_jinja_the_package_is_named(tmp_path, monkeypatch):
    tokenizer = load_tokenizer(with_template(tmp_path, "x"))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"^a chat template needs jinja2: pip install 'taygeta\[run\]'$"):
        tokenizer.apply_chat_template([])


def test_refusals_word_for_word(tmp_path, plain):
    file = tmp_path / "tokenizer.json"
    cases = {
        None: f"{file} cannot be read: No such file or directory; a checkpoint has a tokenizer.json, which "
        "AutoTokenizer.from_pretrained(...).save_pretrained writes.",
        "{": f"{file} is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
        "download the checkpoint again.",
        "[" * 200_000: f"{file} is not JSON (nested too deeply); download the checkpoint again.",
        "{}": f"{file} has no table called model; a tokenizer.json of the tokenizers library has one.",
        '{"model": {"type": "GPT"}}': None,
    }
    for content, message in cases.items():
        if content is not None:
            file.write_text(content)
        with pytest.raises(InputError) as caught:
            load_tokenizer(tmp_path)
        text = str(caught.value)
        assert text == message if message else text.startswith(f"{file} cannot be read: the tokenizers library says ")
    with pytest.raises(InputError, match=r"^-1 is not a token id; ids are whole numbers from 0 to 259\.$"):
        plain.decode([-1])
    with pytest.raises(InputError, match="character 1 is half of a surrogate pair"):
        plain.encode("a\ud800")


def values(tree: object, path: tuple = ()):
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from values(value, (*path, key))


def test_damaged_files_end_in_one_sentence(tmp_path, capfd):
    """800 damaged tokenizers: each is refused in one sentence, or reads and answers; none ends the interpreter."""
    odd = (None, -1, 0, 2**31, 2**63, 1e300, "", "x", "\x00", [], {}, [[]], True, "BPE", "Unigram", [["a", 1.0]])
    sources = [(byte_level, tmp_path / "a"), (byte_fallback, tmp_path / "b")]
    rng, messages = random.Random(3), []  # noqa: S311
    for make, directory in sources:
        directory.mkdir()
        good = (make(directory) / "tokenizer.json").read_text()
        padding = {"strategy": {"Fixed": 2**60}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                   "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
        places = [path for path in values(json.loads(good)) if path and "vocab" not in path[1:-1]]
        for _ in range(400):
            table = {**json.loads(good), "padding": padding}
            for path in rng.sample(places, rng.choice((1, 1, 2, 3))):
                inner = table
                try:
                    for key in path[:-1]:
                        inner = inner[key]
                    inner[path[-1]] = rng.choice(odd)
                except (KeyError, IndexError, TypeError):
                    continue
            (directory / "tokenizer.json").write_text(json.dumps(table))
            try:
                tokenizer = load_tokenizer(directory)
                tokenizer.decode(tokenizer.encode("helo € a b <|end|>"))
                streamed(tokenizer, [1, 250, 257, 10_000, 3])
            except TaygetaError as error:
                messages.append(str(error))
    capfd.readouterr()  # a panic also writes to stderr
    assert len(messages) > 300
    assert all(message.isprintable() and message.endswith(".") for message in messages)
