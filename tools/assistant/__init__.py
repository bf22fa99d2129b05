"""The assistant that ships with Taygeta: how its data is made, how it is trained, and how it is scored.

    python -m tools.assistant.data 20                                # questions of the training part, with answers
    python -m tools.assistant.data 20 --held-out                     # of the test
    python -m tools.assistant.train --out /tmp/assistant             # tokenizer and network, on one CPU thread
    python -m tools.assistant.score /tmp/assistant                   # greedy decoding in bf16 by transformers, by kind
    python -m tools.assistant.score /tmp/assistant --chip maia-100   # by the chip's machine
    python -m tools.assistant.data 500 --held-out --lines            # questions.jsonl of the package

All from the root of the repository, with the extras `torch` and `run`. The checkpoint in src/taygeta/data/assistant is
what this training wrote; MODEL_CARD.md beside it says how it scores.

- facts.py: the entities of the catalogue and one sentence for each of their facts.
- wordings.py: how questions are worded, in the training part and in the held-out part; more_wordings.py: more of the
  training part.
- data.py: questions with their only right answers, drawn from a seed, kept apart in two parts.
- tokenizer.py: byte-level BPE in which a known name is one token, and so are most numbers.
- network.py: the decoder, parameter for parameter that of transformers' Qwen3.
- train.py, score.py: the two commands.
"""
