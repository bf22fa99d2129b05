"""The assistant's tokenizer: byte-level BPE, trained on the questions and answers of the training part.

A word is split off before pairs are merged; a name such as H100 or Llama-3.1-8B is one word, and so is a number. So a
known name becomes one token and an unknown one several, and a number of the catalogue becomes one or two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tools.assistant.data import Draw

if TYPE_CHECKING:
    from tokenizers import Tokenizer

USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
VOCABULARY = 3072
SAMPLES = 30_000
WORDS = r" ?[A-Za-z]+(?:[A-Za-z0-9]|[-./+_](?=[A-Za-z0-9]))*| ?[0-9]+(?:\.[0-9]+)?| ?[^\sA-Za-z0-9]+|\s+"
# Each question stands alone: the last message of the user is asked, what was said before is left out.
TEMPLATE = (
    "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% if not asked %}{{ raise_exception('a conversation must have a message of the user') }}{% endif %}"
    "{% set content = asked[-1]['content'] %}"
    "<|user|>{{ content if content is string else content | map(attribute='text') | join(' ') }}<|assistant|>"
    "{% if not add_generation_prompt and messages[-1]['role'] == 'assistant' %}"
    "{{ messages[-1]['content'] }}<|end|>{% endif %}"
)


def train_tokenizer(seed: int = 0, samples: int = SAMPLES) -> Tokenizer:
    """Return the tokenizer, trained on `samples` examples of the training part drawn from a seed."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    draw = Draw(seed)
    out = Tokenizer(models.BPE())
    out.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    out.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, USER, ASSISTANT, END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    examples = (draw.example() for _ in range(samples))
    out.train_from_iterator((text for e in examples for text in (e.question, e.answer)), trainer)
    special = [(token, out.token_to_id(token)) for token in (USER, ASSISTANT)]
    # A bare question, encoded with special tokens, is the prompt that the chat template writes.
    out.post_processor = processors.TemplateProcessing(single=f"{USER} $A {ASSISTANT}", special_tokens=special)
    return out


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json with the chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        "chat_template": TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
