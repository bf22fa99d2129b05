"""The assistant that ships with Taygeta: how its data is made, how it is trained, and how it is scored.

    python -m tools.assistant.data 20                                # questions of the training part, with answers
    python -m tools.assistant.data 20 --held-out                     # of the test
    python -m tools.assistant.train --out /tmp/first --stop 3500     # tokenizer and network, on one CPU thread
    python -m tools.assistant.train --out /tmp/second --start /tmp/first --stage 2 --seed 1 --steps 2300 --rate 2e-3
    python -m tools.assistant.score /tmp/second                      # greedy decoding in bf16 by transformers, by kind
    python -m tools.assistant.score /tmp/second --chip maia-100      # by the chip's machine

All from the root of the repository, with the extras `torch` and `run`. The checkpoint in src/taygeta/data/assistant is
one that these two stages wrote; MODEL_CARD.md beside it says how it scores.

- facts.py: the entities of the catalogue and one sentence for each of their facts.
- wordings.py: how questions are worded, in the training part and in the held-out part; more_wordings.py: what the
  second stage of the training adds.
- data.py: questions with their only right answers, drawn from a seed, kept apart in two parts.
- tokenizer.py: byte-level BPE in which a known name is one token and a digit of a number is one.
- network.py: the decoder, parameter for parameter that of transformers' Qwen3.
- train.py, score.py: the two commands.
"""
